"""Row ops through an exported library: any shape, axis, mask and form, twice (the second goes straight)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
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
from tvmops.runtime.load import Library  # noqa: E402
from tvmops.signatures.activations import ACTIVATIONS  # noqa: E402
from tvmops.signatures.dtypes import decode, encode  # noqa: E402
from tvmops.targets import target  # noqa: E402
from tvmops.workloads import Workload  # noqa: E402

NAMES = [name for name in ACTIVATIONS if name != "none"]
WORK = [
    "softmax rows=8 cols=16",
    "softmax rows=8 cols=16 log=true",
    "softmax rows=2 cols=4 inner=16 axis=middle",
    "softmax rows=2 cols=4 inner=16 axis=middle log=true",
    "softmax rows=8 cols=16 scaled=true mask_rows=4",
    "layer_norm rows=8 cols=16",
    "layer_norm rows=8 cols=16 weight=true bias=true",
    "layer_norm rows=8 cols=16 weight=true bias=true residual=true",
    "rms_norm rows=8 cols=16 weight=true",
    "softmax rows=8 cols=16 mask_rows=4",
    "softmax rows=2 cols=4 inner=16 axis=middle mask_rows=2",
    *(f"activation size=128 activation={name}" for name in NAMES),
]
WORK += [f"{text} dtype=bfloat16" for text in WORK if "mask_rows=4" not in text]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 16), dtype="float32")
WEIGHT, BIAS = RNG.standard_normal((2, 16), dtype="float32")
TX, TW, TB = (torch.from_numpy(array) for array in (X, WEIGHT, BIAS))
F = torch.nn.functional


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder, machine = tmp_path_factory.mktemp("rows") / "library", target("native")
    work = [Workload.parse(text) for text in WORK]
    log = write_log(Path(f"{folder}.jsonl"), *(default_record(each, machine) for each in work))
    return tvmops.load(export(work, machine, [log], folder))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes that were not tuned
        yield


def agree(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), rtol=2e-5, atol=2e-6)


def agree_rounded(ours: Any, theirs: Any) -> None:
    """Compare a tensor of bfloat16 with float32 of the same arithmetic: one rounding, and what that hides."""
    assert ours.dtype == torch.bfloat16
    np.testing.assert_allclose(ours.float().numpy(), theirs.numpy(), rtol=2**-8 + 2e-5, atol=2e-6)


@pytest.mark.parametrize("turn", [1, 2])
def test_softmax(lib: Library, turn: int) -> None:
    agree(lib.softmax(X), torch.softmax(TX, -1))
    agree(lib.softmax(X, axis=2, log=True), torch.log_softmax(TX, -1))
    agree(lib.softmax(X[:, :3, 2:11], log=True), torch.log_softmax(TX[:, :3, 2:11], -1))
    agree(lib.softmax(X, axis=1), torch.softmax(TX, 1))
    agree(lib.softmax(X[:1], axis=-3, log=True), torch.log_softmax(TX[:1], 0))
    assert isinstance(lib.softmax(TX), torch.Tensor)
    agree(lib.softmax(TX), torch.softmax(TX, -1))


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("shape", [(16,), (4, 16), (2, 4, 16), (2, 1, 16), (1, 1, 16), (4, 1)])
def test_softmax_with_a_mask(lib: Library, shape: tuple[int, ...], turn: int) -> None:
    mask = np.random.default_rng(turn).standard_normal(shape, dtype="float32")
    agree(lib.softmax(X, scale=0.3, mask=mask), torch.softmax(TX * 0.3 + torch.from_numpy(mask), -1))
    kept = torch.from_numpy(mask > -1)
    expected = torch.softmax((TX * 0.3).masked_fill(~kept, -np.inf), -1)
    agree(lib.softmax(X, scale=0.3, mask=mask > -1), expected)
    agree(lib.softmax(TX, scale=0.3, mask=kept), expected)


@pytest.mark.parametrize("turn", [1, 2])
def test_norms(lib: Library, turn: int) -> None:
    agree(lib.layer_norm(X), F.layer_norm(TX, (16,)))
    agree(lib.layer_norm(X, WEIGHT, BIAS, eps=0.1), F.layer_norm(TX, (16,), TW, TB, eps=0.1))
    agree(lib.layer_norm(X, WEIGHT, BIAS, eps=1e-5), F.layer_norm(TX, (16,), TW, TB, eps=1e-5))
    agree(lib.rms_norm(X, WEIGHT), F.rms_norm(TX, (16,), TW, eps=1e-5))
    out, total = lib.layer_norm(X, WEIGHT, BIAS, residual=X[::-1])
    agree(total, TX + TX.flip(0))
    agree(out, F.layer_norm(TX + TX.flip(0), (16,), TW, TB))
    given = np.empty_like(X), np.empty_like(X)
    found = lib.layer_norm(X, WEIGHT, BIAS, residual=X[::-1], out=given)
    assert found[0] is given[0]
    assert found[1] is given[1]
    agree(given[0], torch.from_numpy(out))


def test_norms_over_the_last_dimensions_of_the_weight(lib: Library) -> None:
    weight = RNG.standard_normal((4, 16), dtype="float32")
    expected = F.rms_norm(TX, (4, 16), torch.from_numpy(weight), eps=1e-5)
    agree(lib.rms_norm(X, weight), expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(4, 16), (2, 4, 16), (2, 1, 16), (4, 1), (1,), ()])
def test_softmax_with_a_mask_along_another_axis(lib: Library, shape: tuple[int, ...], axis: int) -> None:
    mask = np.random.default_rng(axis).standard_normal(shape, dtype="float32")
    for x, tx in ((X, TX), (X[..., :1], TX[..., :1])):
        given = mask[..., :1] if shape else mask
        agree(lib.softmax(x, axis, mask=given), torch.softmax(tx + torch.from_numpy(given), axis))
    kept = torch.from_numpy(np.asarray(mask > -1))
    agree(lib.softmax(TX, axis, mask=kept), torch.softmax(TX.masked_fill(~kept, -np.inf), axis))


@pytest.mark.parametrize("turn", [1, 2])
def test_bfloat16(lib: Library, turn: int) -> None:
    x, weight, bias = (array.bfloat16() for array in (TX, TW, TB))
    wide, wide_weight, wide_bias = (array.float() for array in (x, weight, bias))
    agree_rounded(lib.softmax(x), torch.softmax(wide, -1))
    agree_rounded(lib.softmax(x, axis=1, log=True), torch.log_softmax(wide, 1))
    mask = torch.from_numpy(X > -1)
    agree_rounded(lib.softmax(x, 1, mask=mask), torch.softmax(wide.masked_fill(~mask, -np.inf), 1))
    agree_rounded(lib.softmax(x, 1, mask=x), torch.softmax(wide * 2, 1))
    agree_rounded(lib.rms_norm(x, weight), F.rms_norm(wide, (16,), wide_weight, eps=1e-5))
    agree_rounded(lib.layer_norm(x), F.layer_norm(wide, (16,)))
    out, total = lib.layer_norm(x, weight, bias, residual=weight.expand(2, 4, 16))
    added = wide + wide_weight
    agree_rounded(total, added)
    found = F.layer_norm(added, (16,), wide_weight, wide_bias)
    np.testing.assert_allclose(out.float().numpy(), found.numpy(), rtol=2**-8, atol=1e-5)
    bits = encode(X, "bfloat16")
    given = np.empty_like(bits)
    assert lib.softmax(bits, out=given) is given
    agree(decode(given, "bfloat16"), lib.softmax(x).float())


@pytest.mark.parametrize("name", NAMES)
def test_activations(lib: Library, name: str) -> None:
    torchs = (lambda x: F.gelu(x, approximate="tanh")) if name == "gelu_tanh" else getattr(F, name)
    for _ in range(2):
        agree(lib.activation(name, X), torchs(TX))
        agree_rounded(lib.activation(name, TX.bfloat16()), torchs(TX.bfloat16().float()))


def test_what_does_not_fit_is_refused_by_name(lib: Library) -> None:
    misfits: dict[str, Callable[[], Any]] = {
        "'axis' is 3; expected from -3 to 2": lambda: lib.softmax(X, axis=3),
        "'mask' is of shape (5, 16)": lambda: lib.softmax(X, mask=np.zeros((5, 16), np.float32)),
        "'weight' is of shape (15,)": lambda: lib.layer_norm(X, WEIGHT[:15]),
        "'residual' is of shape": lambda: lib.layer_norm(X, residual=X[0]),
        "'activation' is mish": lambda: lib.activation("mish", X),
    }
    for expected, call in misfits.items():
        with pytest.raises(CallError, match=re.escape(expected)):
            call()
    wrong: dict[str, Callable[[], Any]] = {
        "'eps' is 'small'": lambda: lib.layer_norm(X, WEIGHT, BIAS, eps="small"),  # type: ignore[arg-type]
        "'out' is ndarray; expected a pair": lambda: lib.layer_norm(X, residual=X, out=X.copy()),
        "'x' is of dtype float64": lambda: lib.softmax(X.astype("float64")),
        "'mask' is of dtype float32; expected dtype bfloat16": lambda: lib.softmax(TX.bfloat16(), mask=X),
        "'weight' is of dtype float32; expected dtype bfloat16": lambda: lib.rms_norm(TX.bfloat16(), TW),
        "'axis' is 0.5": lambda: lib.softmax(X, axis=0.5),  # type: ignore[arg-type]
    }
    for expected, call in wrong.items():
        with pytest.raises(CallTypeError, match=re.escape(expected)):
            call()


def test_nothing_comes_of_nothing(lib: Library) -> None:
    assert lib.softmax(X[:0]).shape == (0, 4, 16)
    assert lib.softmax(X[..., :0]).shape == (2, 4, 0)
    assert lib.layer_norm(X[:0], WEIGHT, BIAS).shape == (0, 4, 16)
    assert lib.activation("gelu", X[:0]).shape == (0, 4, 16)
