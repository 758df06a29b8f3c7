from __future__ import annotations

import numpy as np
import pytest

from tvmops.ops import op_of
from tvmops.signatures.dtypes import FLOAT8, decode, encode
from tvmops.workloads import Workload, workload


def product(**fields: object) -> Workload:
    return workload("matmul_fp8", **{"m": 3, "n": 5, "k": 40, **fields})


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize("scales, rows, columns", [("tensor", 1, 1), ("rows", 3, 5)])
def test_the_reference_scales_the_product(dtype: str, scales: str, rows: int, columns: int) -> None:
    work = product(dtype=dtype, scales=scales)
    op = op_of(work)
    assert [spec.shape for spec in op.inputs(work)] == [(3, 40), (5, 40), (rows,), (columns,)]
    a, b, a_scale, b_scale = op.random_inputs(work, seed=1)
    assert a.dtype == b.dtype == np.uint8
    left, right = decode(a, dtype).astype(np.float64), decode(b, dtype).astype(np.float64)
    (c,) = op.reference(work, left, right, a_scale, b_scale)
    for i in range(3):
        for j in range(5):
            scale = float(a_scale[i % rows]) * float(b_scale[j % columns])
            assert c[i, j] == pytest.approx(scale * sum(left[i] * right[j]), abs=1e-12)


def test_flops_and_bytes() -> None:
    work = product()
    assert op_of(work).flops(work) == 2 * 3 * 5 * 40
    assert op_of(work).nbytes(work) == 3 * 40 + 5 * 40 + 2 * 4 + 2 * 3 * 5


def test_a_product_that_lacks_a_step_along_k_is_not_tolerated() -> None:
    work = product(m=64, n=64, k=4096)
    rng = np.random.default_rng(0)
    a, b = (rng.random((64, 4096)) * 2 - 1 for _ in range(2))
    lost = np.abs(a[:, :64] @ b[:, :64].T).max()
    assert op_of(work).tolerance(work) < lost


def test_the_expression_has_the_signature_s_arrays() -> None:
    pytest.importorskip("tvm")
    work = product(scales="rows", out_dtype="float32")
    tensors = op_of(work).expression(work)
    assert [(str(t.op.name), str(t.dtype)) for t in tensors] == [
        ("a", "float8_e4m3fn"), ("b", "float8_e4m3fn"), ("a_scale", "float32"), ("b_scale", "float32"),
        ("c", "float32"),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOAT8)
def test_every_byte_keeps_its_value(dtype: str) -> None:
    every = np.arange(256, dtype=np.uint8)
    values = decode(every, dtype)
    finite = np.isfinite(values)
    assert (encode(values[finite], dtype) == every[finite]).all()
    assert np.isnan(decode(encode(np.array([np.nan]), dtype), dtype)).all()


@pytest.mark.parametrize(
    "dtype, largest, least", [(FLOAT8[0], 448.0, 2.0**-9), (FLOAT8[1], 57344.0, 2.0**-16)]
)
def test_the_largest_and_the_least(dtype: str, largest: float, least: float) -> None:
    values = np.array([1e9, -np.inf, least, least * 0.49, least * 0.51, 1.0])
    assert decode(encode(values, dtype), dtype).tolist() == [largest, -largest, least, 0.0, least, 1.0]


def test_ties_go_to_even() -> None:
    assert decode(encode(np.array([1.0625, 1.1875]), FLOAT8[0]), FLOAT8[0]).tolist() == [1.0, 1.25]


@pytest.mark.parametrize("dtype", FLOAT8)
def test_rounding_is_pytorch_s(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal(20_000).astype(np.float32) * np.float32(0.1)
    theirs = torch.from_numpy(values).to(getattr(torch, dtype)).view(torch.uint8).numpy()
    assert (encode(values, dtype) == theirs).all()
