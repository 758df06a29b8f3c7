"""Pooling through an exported library: as PyTorch does it, tuned and generic kernels."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tvm")

import tvmops  # noqa: E402
from tests.libraries import default_record, write_log  # noqa: E402
from tvmops.errors import CallError, CallTypeError  # noqa: E402
from tvmops.library.export import export  # noqa: E402
from tvmops.report.compare import compare  # noqa: E402
from tvmops.report.peers import PEERS  # noqa: E402
from tvmops.runtime.load import Library  # noqa: E402
from tvmops.targets import target  # noqa: E402
from tvmops.workloads import Workload  # noqa: E402

SIZE = "pool2d n=2 h=9 w=20 c=6"
WORK = [
    f"{SIZE} kernel=3 stride=2 padding=1 kind=max",
    f"{SIZE} kernel=3 stride=2 padding=1 kind=max layout=NHWC",
    f"{SIZE} kernel=3x2 dilation=1x2 padding=1 ceil_mode=true stride=2 kind=max",
    f"{SIZE} kernel=2 stride=2 kind=average",
    f"{SIZE} kernel=3 stride=2 padding=1 kind=average ceil_mode=true",
    f"{SIZE} kernel=3 stride=2 padding=1 kind=average count_include_pad=false layout=NHWC",
    *(
        f"{SIZE} kernel=global kind={kind} layout={layout}"
        for kind in ("max", "average")
        for layout in ("NCHW", "NHWC")
    ),
]
X = np.random.default_rng(0).standard_normal((2, 6, 9, 20), dtype="float32")
F = torch.nn.functional


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder, machine = tmp_path_factory.mktemp("pool") / "library", target("native")
    work = [Workload.parse(text) for text in WORK]
    log = write_log(Path(f"{folder}.jsonl"), *(default_record(each, machine) for each in work))
    return tvmops.load(export(work, machine, [log], folder))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes that were not tuned
        yield


def last(array: Any) -> Any:
    return np.ascontiguousarray(np.moveaxis(np.asarray(array), 1, 3))


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("cut", [20, 19])  # tuned and not
def test_it_is_pytorchs(lib: Library, cut: int, turn: int) -> None:
    x = X[..., :cut]
    t = torch.from_numpy(x)
    maximum = F.max_pool2d(t, 3, 2, 1).numpy()
    np.testing.assert_array_equal(lib.pool2d(x, 3, 2, 1), maximum)
    np.testing.assert_array_equal(lib.pool2d(last(x), 3, 2, 1, layout="NHWC"), last(maximum))
    expected = F.max_pool2d(t, (3, 2), 2, 1, (1, 2), ceil_mode=True)
    np.testing.assert_array_equal(lib.pool2d(x, (3, 2), 2, 1, dilation=(1, 2), ceil_mode=True), expected)
    agree(lib.pool2d(x, 2, kind="average"), F.avg_pool2d(t, 2))
    agree(lib.pool2d(x, 3, 2, 1, "average", ceil_mode=True), F.avg_pool2d(t, 3, 2, 1, ceil_mode=True))
    found = lib.pool2d(last(x), 3, 2, 1, "average", count_include_pad=False, layout="NHWC")
    agree(found, last(F.avg_pool2d(t, 3, 2, 1, count_include_pad=False)))
    agree(lib.pool2d(x, "global", kind="average"), F.adaptive_avg_pool2d(t, 1))
    agree(lib.pool2d(last(x), "global", layout="NHWC"), last(F.adaptive_max_pool2d(t, 1)))
    assert isinstance(lib.pool2d(t, 3, 2, 1), torch.Tensor)


def agree(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", [WORK[index] for index in (1, 5, 8)])
def test_every_peer_agrees(lib: Library, text: str) -> None:
    assert lib.explain(text).tier == "exact"
    (compared,) = compare(lib, [Workload.parse(text)], list(PEERS), rounds=1)
    assert compared.wrong == []
    assert {"tvmops", "torch"} <= compared.timings.keys()


def test_an_empty_batch(lib: Library) -> None:
    assert lib.pool2d(X[:0], 3, 2, 1).shape == (0, 6, 5, 10)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"kernel": 3, "padding": 2}, "'padding' is (2, 2, 2, 2); expected at most half of the kernel"),
        ({"kernel": 12}, "'x' is of h=9; expected at least 12"),
        ({"kernel": 0}, "'kernel' is 0; expected 'global', or"),
        ({"kernel": "all"}, "'kernel' is all"),
        ({"kernel": 2, "stride": 0}, "'stride' is 0"),
        ({"kernel": 2, "kind": "avg"}, "'kind' is avg; expected one of max, average"),
        ({"kernel": 2, "kind": "average", "dilation": 2}, "'dilation' is (2, 2)"),
        ({"kernel": "global", "stride": 2}, "'stride' is (2, 2)"),
        ({"kernel": 2, "layout": "CHWN"}, "'layout' is CHWN"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(lib: Library, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(CallError, match=re.escape(said)):
        lib.pool2d(X, **arguments)


def test_wrong_arrays_are_refused(lib: Library) -> None:
    with pytest.raises(CallError, match="four dimensions"):
        lib.pool2d(X[0], 2)
    with pytest.raises(CallError, match="an empty batch at most"):
        lib.pool2d(X[:, :0], 2)
    with pytest.raises(CallTypeError, match="float64"):
        lib.pool2d(X.astype("float64"), 3, 2, 1)
    with pytest.raises(CallError, match="shares memory"):
        lib.pool2d(X, 3, 2, 1, out=X.reshape(-1)[:600].reshape(2, 6, 5, 10))
