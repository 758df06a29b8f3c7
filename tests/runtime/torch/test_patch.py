"""A patched model gives what the model gives, by the kernels that there are, and nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tvm", reason="exports a library")

import tvmops  # noqa: E402
from tests.libraries import default_record, write_log  # noqa: E402
from tvmops.errors import ArgumentError, CallError  # noqa: E402
from tvmops.library.export import export  # noqa: E402
from tvmops.runtime.load import Library  # noqa: E402
from tvmops.runtime.torch import patch, workloads  # noqa: E402
from tvmops.targets import target  # noqa: E402

nn, F = torch.nn, torch.nn.functional


class Residual(nn.Module):  # type: ignore[name-defined, misc]
    """Convolutions with all that a kernel computes with them, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 18, 3, 1, 1, bias=False), nn.BatchNorm2d(18)
        self.conv2, self.bn2 = nn.Conv2d(18, 20, 3, 2, 1), nn.BatchNorm2d(20)
        self.shortcut = nn.Sequential(nn.Conv2d(16, 20, 1, 2, bias=False), nn.BatchNorm2d(20, affine=False))
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU(inplace=True)
        for norm in (self.bn1, self.bn2, self.shortcut[1]):
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.pool(self.relu(y))


class Block(nn.Module):  # type: ignore[name-defined, misc]
    """A layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.project = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16, bias=False)
        self.up, self.down, self.dropout = nn.Linear(16, 24), nn.Linear(24, 16), nn.Dropout(0.5)

    def forward(self, x: Any) -> Any:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=2)
        shape = batch, length, 2, 8
        q, k, v = q.view(shape).transpose(1, 2), k.view(shape).transpose(1, 2), v.view(shape).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self.dropout(self.project(y))
        return torch.softmax(x + self.down(F.gelu(self.up(x), approximate="tanh")), dim=-1)


class Branching(nn.Module):  # type: ignore[name-defined, misc]
    """Code that depends on values, which no tracer follows, around blocks that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), nn.Linear(16, 7)

    def forward(self, x: Any) -> Any:
        return self.head(self.block(x)) if x.sum() > 0 else x


torch.manual_seed(0)
MODELS = {
    "residual": (Residual().eval(), torch.rand(2, 16, 9, 9)),
    "branching": (Branching().eval(), torch.rand(1, 9, 16)),
}
MODELS["channels last"] = MODELS["residual"][0], MODELS["residual"][1].to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A library of what `workloads` says."""
    folder, machine = tmp_path_factory.mktemp("patch") / "library", target("native")
    work = list({each: None for model, x in MODELS.values() for each in workloads(model, x)})
    log = write_log(Path(f"{folder}.jsonl"), *(default_record(each, machine) for each in work))
    return tvmops.load(export(work, machine, [log], folder))


def test_workloads_are_those_of_chains_with_their_counts() -> None:
    found = {str(work): count for work, count in workloads(*MODELS["residual"]).items()}
    shape, end = "conv2d n=2 h=9 w=9", "dtype=float32 bias=true"
    assert found == {
        f"{shape} ci=16 co=18 kh=3 kw=3 padding=1 {end} activation=relu packed=winograd4": 1,
        f"{shape} ci=18 co=20 kh=3 kw=3 stride=2 padding=1 {end} activation=relu residual=true": 1,
        f"{shape} ci=16 co=20 kh=1 kw=1 stride=2 {end}": 1,
        "pool2d n=2 h=5 w=5 c=20 kernel=2 stride=2 kind=max dtype=float32": 1,
    }
    names = [str(work) for work in workloads(*MODELS["branching"])]
    assert "matmul m=9 n=24 k=16 dtype=float32 bias=true activation=gelu_tanh packed=panels" in names
    assert "matmul m=9 n=16 k=24 dtype=float32 bias=true residual=true packed=panels" in names
    assert {name.split()[0] for name in names} == {"matmul", "attention", "layer_norm", "softmax"}
    two = nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    assert list(workloads(two, torch.rand(3, 4)).values()) == [2]


def test_channels_last_stay_so() -> None:
    model, x = MODELS["channels last"]
    found = [str(work) for work in workloads(model, x)]
    assert all("layout=NHWC" in work for work in found)
    assert sum("packed=panels-nhwc" in work for work in found) == 3


@pytest.mark.parametrize("name", MODELS)
def test_the_output_is_the_same_by_tuned_kernels_alone(lib: Library, name: str) -> None:
    model, x = MODELS[name]
    before = copy.deepcopy(model.state_dict())
    patched = patch(model, lib, x)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(patched(x), model(x), rtol=1e-4, atol=1e-5, check_stride=True)
    assert lib.misses() == {}
    report = patched.report()
    assert report.count("exact kernel for") == len(report.splitlines()) == len(workloads(model, x))
    assert patched.original is model
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_other_shapes_are_left_to_pytorch_unless_asked(lib: Library) -> None:
    model, _ = MODELS["residual"]
    x = torch.rand(1, 16, 11, 8)
    patched = patch(model, lib, x)
    assert "PyTorch: only a generic kernel for 'conv2d n=1 h=11" in patched.report()
    with torch.no_grad():
        assert torch.allclose(patched(x), model(x), atol=1e-5)
    assert lib.misses() == {}
    with pytest.warns(UserWarning, match="was not tuned"):
        patched = patch(model, lib, x, generic=True)
    with torch.no_grad():
        assert torch.allclose(patched(x), model(x), atol=1e-4)
    assert "generic kernel for" in patched.report()


def test_pytorch_has_one_thread_where_it_only_copies(lib: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of them where it computes what the library does not, and afterwards."""
    seen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)

    def threads_in(model: Any, x: Any) -> list[int]:
        patched = patch(model.eval(), lib, x)
        seen.clear()
        with torch.inference_mode():
            patched(x)
        return list(seen)

    linear, x = nn.Linear(16, 48), torch.rand(9, 16)
    assert threads_in(nn.Sequential(linear, nn.Identity()), x) == [1, 2]
    assert threads_in(nn.Sequential(linear, nn.Tanhshrink()), x) == []
    assert threads_in(nn.Sequential(linear, nn.Linear(48, 50)), x) == []
    assert threads_in(MODELS["branching"][0], MODELS["branching"][1]) == []


def test_what_a_kernel_does_not_compute_pytorch_does(lib: Library) -> None:
    """An activation that no kernel of the library has; arrays that none takes."""
    model = nn.Sequential(nn.Linear(16, 48), nn.Tanh(), nn.ReLU()).eval()
    x = torch.rand(9, 16)
    patched = patch(model, lib, x)
    assert patched.report().startswith("_0: linear + tanh: exact kernel for 'matmul m=9 n=48")
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        assert torch.allclose(patched(x), model(x), atol=1e-5)
        assert torch.equal(patch(double, lib)(x.double()), double(x.double()))


def test_what_else_reads_is_not_fused(lib: Library) -> None:
    """Both what goes into an activation and what comes out of it are used; an addend is changed in place."""

    class Both(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16, bias=False)

        def forward(self, x: Any) -> Any:
            y = self.linear(x)
            z = F.relu(y) + y
            w = self.linear(x)
            x.add_(1)
            return z + (w + x)

    model, x = Both().eval(), torch.rand(9, 16)
    patched = patch(model, lib)
    with torch.no_grad():
        assert torch.allclose(patched(x.clone()), model(x.clone()), atol=1e-5)


def test_gradients_and_training_are_refused(lib: Library) -> None:
    model, x = MODELS["residual"]
    with pytest.raises(CallError, match="requires grad"):
        patch(model, lib)(x.clone().requires_grad_())
    with pytest.raises(ArgumentError, match="'model' is 'in training mode'"):
        patch(nn.Linear(2, 2), lib)
