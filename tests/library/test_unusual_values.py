"""Infinities, NaN, denormals and extremes through an exported library do as the float64 reference says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tvmops
from tests.libraries import default_record, no_generic_kernels, write_log
from tvmops.library.export import export
from tvmops.ops import op_of
from tvmops.runtime.calls import CALL_ARGUMENTS
from tvmops.signatures.dtypes import decode, encode
from tvmops.workloads import Workload

SOFTMAX = "softmax rows=3 cols=37"
ATTENTION = "attention batch=1 heads=2 kv_heads=1 q_len=20 kv_len=33 head_dim=16 mask=float32"
BEFORE_KEYS = "attention batch=1 heads=2 kv_heads=1 q_len=20 kv_len=5 head_dim=16 causal=true"
DECODE = "attention batch=1 heads=2 kv_heads=1 q_len=2 kv_len=33 head_dim=16 mask=bool"
MATMUL = "matmul m=5 n=18 k=20"
WEIGHT_ONLY = "matmul_weight_only m=3 n=19 k=70 group=32 bits=4"  # n odd; the last group beyond k
INT8 = "matmul_int8 m=5 n=18 k=1003"
POOL = "pool2d n=1 h=9 w=9 c=3 kernel=3 stride=2 padding=1"
CONV = "conv2d n=1 h=12 w=12 ci=32 co=16 kh=3 kw=3 padding=1 layout=NHWC packed=winograd4"

INF, NAN, TINY = np.inf, np.nan, 1e-40  # denormal in float32 and in bfloat16


def put(index: int, at: Any, value: float) -> Callable[[list[Any]], None]:
    """Return what stores `value` at `at` of the input `index`."""

    def alter(inputs: list[Any]) -> None:
        inputs[index][at] = value

    return alter


def times(index: int, value: float) -> Callable[[list[Any]], None]:
    def alter(inputs: list[Any]) -> None:
        inputs[index] *= np.float32(value)

    return alter


CASES: list[tuple[str, str, Callable[[list[Any]], None]]] = [
    (SOFTMAX, "a row of -inf", put(0, 1, -INF)),
    (SOFTMAX, "+inf in a row", put(0, (1, 4), INF)),
    (SOFTMAX, "NaN in a row", put(0, (1, 4), NAN)),
    (SOFTMAX, "numbers as large as there are", put(0, (1, slice(4, 7)), 3e38)),
    (f"{SOFTMAX} log=true", "a row of -inf", put(0, 1, -INF)),
    (f"{SOFTMAX} log=true", "-inf in a row", put(0, (1, 4), -INF)),
    (ATTENTION, "a query that sees nothing", put(3, (..., 4, slice(None)), -INF)),
    (ATTENTION, "NaN in a key", put(1, (..., 30, 2), NAN)),
    (ATTENTION, "inf in a value", put(2, (..., 30, 2), INF)),
    (ATTENTION, "denormal keys", times(1, TINY)),
    (ATTENTION, "denormal values", times(2, TINY)),
    (BEFORE_KEYS, "queries before the first key", lambda inputs: None),
    (DECODE, "a query that sees nothing", put(3, (..., 1, slice(None)), 0)),
    (MATMUL, "inf in a row", put(0, (2, 3), INF)),
    (MATMUL, "NaN in a column", put(1, (2, 3), NAN)),
    (MATMUL, "denormal rows", times(0, TINY)),
    (WEIGHT_ONLY, "inf in a row", put(0, (1, 3), INF)),
    (WEIGHT_ONLY, "NaN in the last group", put(0, (1, 69), NAN)),
    (WEIGHT_ONLY, "denormal rows", times(0, TINY)),
    ("layer_norm rows=3 cols=37", "rows that are all alike", put(0, 1, 3.0)),
    ("layer_norm rows=3 cols=37", "inf in a row", put(0, (1, 4), INF)),
    ("rms_norm rows=3 cols=37 weight=true", "a row of zeros", put(0, 1, 0.0)),
    ("rms_norm rows=3 cols=37 weight=true", "NaN in a row", put(0, (1, 4), NAN)),
    ("rms_norm rows=3 cols=37 weight=true", "a denormal row", put(0, 1, TINY)),
    (f"{POOL} kind=max", "NaN in a window", put(0, (0, 1, 4, 4), NAN)),
    (f"{POOL} kind=max", "windows of -inf", put(0, (0, 1), -INF)),
    (f"{POOL} kind=average", "inf in a window", put(0, (0, 1, 4, 4), INF)),
    ("activation size=37 activation=gelu", "NaN", put(0, 4, NAN)),
    ("activation size=37 activation=silu", "-inf", put(0, 4, -1e38)),
    ("activation size=37 activation=tanh", "+inf", put(0, 4, INF)),
]
BOTH = (SOFTMAX, ATTENTION, BEFORE_KEYS, DECODE, MATMUL, "layer_norm rows=3 cols=37")  # dtypes
CASES += [(f"{text} dtype=bfloat16", why, alter) for text, why, alter in CASES if text in BOTH]
INTEGERS = [INT8, f"{INT8} packed=words", f"{INT8} dtype=int8 packed=words"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tvmops.Library:
    folder, machine = tmp_path_factory.mktemp("unusual"), tvmops.target("native")
    texts = dict.fromkeys([*(text for text, _, _ in CASES), *INTEGERS, CONV])
    work = [Workload.parse(text) for text in texts]
    log = write_log(folder / "log.jsonl", *(default_record(each, machine) for each in work))
    with no_generic_kernels():
        return tvmops.load(export(work, machine, [log], folder / "library"))


def called(library: tvmops.Library, work: Workload, inputs: list[Any]) -> Any:
    return getattr(library, work.op)(**CALL_ARGUMENTS[work.op](work, inputs))


@pytest.mark.parametrize(
    "text, alter", [pytest.param(text, alter, id=f"{text}: {why}") for text, why, alter in CASES]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_unusual_values_do_as_in_float64(
    library: tvmops.Library, text: str, alter: Callable[[list[Any]], None]
) -> None:
    work = Workload.parse(text)
    op = op_of(work)
    specs = op.inputs(work)
    drawn = op.random_inputs(work, seed=3)
    inputs = [decode(array, spec.dtype).copy() for array, spec in zip(drawn, specs)]
    alter(inputs)
    held = [
        encode(array, spec.dtype) if spec.dtype == "bfloat16" else array for array, spec in zip(inputs, specs)
    ]
    exact = op.reference(work, *(decode(array, spec.dtype) for array, spec in zip(held, specs)))[0]
    result = decode(called(library, work, held), op.outputs(work)[0].dtype).reshape(exact.shape)
    same = (result == exact) | (np.isnan(result) & np.isnan(exact))
    assert np.abs(np.where(same, 0.0, result - exact)).max() <= op.tolerance(work)


@pytest.mark.parametrize("text", INTEGERS)
@pytest.mark.parametrize("ends", [(0, 1), (1, 1), (0, 0), (1, 0)])
@pytest.mark.parametrize("zero", [0, 1])
def test_the_extremes_of_integers_are_exact(
    library: tvmops.Library, text: str, ends: tuple[int, int], zero: int
) -> None:
    work = Workload.parse(text)
    limits = {dtype: (np.iinfo(dtype).min, np.iinfo(dtype).max) for dtype in ("uint8", "int8")}
    dtype = str(work["dtype"])
    a = np.full((5, 1003), limits[dtype][ends[0]], dtype)
    b = np.full((1003, 18), limits["int8"][ends[1]], "int8")
    right = b if work["packed"] == "none" else library.pack("matmul_int8", b)
    point = int(limits[dtype][zero])
    expected = (a.astype("int64") - point) @ b.astype("int64")
    assert np.array_equal(library.matmul_int8(a, right, a_zero_point=point), expected)


@pytest.mark.parametrize("value", [INF, NAN])
def test_what_is_not_finite_stays_in_the_tiles_of_winograd(library: tvmops.Library, value: float) -> None:
    work = Workload.parse(CONV)
    x, w = op_of(work).random_inputs(work, seed=2)
    before = called(library, work, [x, w])
    x[0, 5, 5, 3] = value
    after = called(library, work, [x, w])
    assert not np.isfinite(after[0, 4:7, 4:7]).any()
    assert np.array_equal(after[0, 8:], before[0, 8:])
    assert np.array_equal(after[0, :, 8:], before[0, :, 8:])


def test_sums_of_nothing_are_zeros(library: tvmops.Library) -> None:
    empty = np.zeros((5, 0), np.float32), np.zeros((0, 18), np.float32)
    assert (library.matmul(*empty) == 0).all()
    assert library.matmul(np.zeros((0, 20), np.float32), np.zeros((20, 18), np.float32)).shape == (0, 18)
    assert library.conv2d(np.zeros((0, 9, 9, 32), np.float32), np.zeros((16, 3, 3, 32), np.float32),
                          layout="NHWC").shape == (0, 7, 7, 16)  # fmt: skip
