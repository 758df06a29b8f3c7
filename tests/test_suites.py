"""Workloads from texts and TOML files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tvmops import suites
from tvmops.errors import SuiteError, UnknownSuiteError, WorkloadError
from tvmops.ops import op_of
from tvmops.schedules import TEMPLATES, templates_for
from tvmops.suites import read_specs, suite_names
from tvmops.targets import target
from tvmops.workloads import workload

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SQUARE = workload("matmul", m=8, n=8, k=8)
FLAT = workload("matmul", m=1, n=8, k=8)
TABLE = '[[workload]]\nop = "matmul"\nm = 8\nn = 8\nk = 8\n'


def test_texts_and_files_in_order_with_weights_added_up(tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(f"{TABLE}weight = 2.5\n{TABLE}")
    assert read_specs([str(FLAT), str(suite), str(FLAT)]) == {FLAT: 2.0, SQUARE: 3.5}
    assert list(read_specs([str(FLAT), str(suite)])) == [FLAT, SQUARE]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workload = [", "is no TOML"),
        ("", "holds nothing; expected [[workload]] tables"),
        ("[workload]\nop = 1", "holds workload; expected [[workload]] tables"),
        ('[[workload]]\nspec = "matmul m=1 n=1 k=1"\nop = "matmul"', "workload 1 has no op"),
        ('[[workload]]\nspec = "matmul m=1 n=1 k=1"\nm = 2', "workload 1 holds m beside its spec"),
        ('[[workload]]\nspec = "matmul m=1"', "workload 1: matmul: field 'n' is 'missing'"),
        (f'name = "x"\n{TABLE}', "holds name, workload; expected"),
        ("[[workload]]\nm = 1", "workload 1 has no op"),
        (f"{TABLE}weight = 0", "workload 1: weight is 0; expected a number above 0"),
        (f"{TABLE}weight = true", "workload 1: weight is True"),
        (f"{TABLE}{TABLE}p = 1", "workload 2: matmul: field 'p' is 1"),
        (f"{TABLE[:-6]}k = 0", "workload 1: matmul: field 'k' is 0"),
        ("workload = [3]", "workload 1 has no op"),
    ],
)
def test_what_is_wrong_with_a_suite(text: str, said: str, tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(text)
    with pytest.raises(SuiteError) as caught:
        read_specs([str(suite)])
    assert str(caught.value).startswith(f"suite file {suite}: ")
    assert said in str(caught.value)


def test_a_suite_that_is_not_there() -> None:
    with pytest.raises(SuiteError, match="No such file"):
        read_specs(["missing.toml"])


def test_a_text_that_is_no_workload() -> None:
    with pytest.raises(WorkloadError):
        read_specs(["matmul m=8"])


def test_a_name_that_is_no_suite_lists_those_there_are() -> None:
    with pytest.raises(UnknownSuiteError, match=r"'resnet51' names no suite; expected one of .*resnet50"):
        read_specs(["resnet51"])


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_names_its_source(name: str) -> None:
    path = Path(suites.__file__).parent / f"{name}.toml"
    assert len(tomllib.loads(path.read_text())["source"]) > 20


@pytest.mark.parametrize(
    ("name", "op", "layers", "gflops"),
    [
        ("resnet18", "conv2d", 20, 3.63),
        ("resnet50", "conv2d", 53, 8.17),
        ("mobilenet-v2", "conv2d", 52, 0.60),
        ("vgg16", "conv2d", 13, 30.7),
        ("vit-b16", "matmul", 49, 33.7),
        ("bert-base", "matmul", 72, 21.7),
    ],
)
def test_the_suites_of_models_add_up(name: str, op: str, layers: int, gflops: float) -> None:
    """Layers as the papers count them, and twice the multiply-adds that torchvision's models state."""
    work = {w: count for w, count in read_specs([name]).items() if w.op == op}
    assert sum(work.values()) == layers
    flops = sum(count * op_of(w).flops(w) for w, count in work.items())
    assert flops / 1e9 == pytest.approx(gflops, rel=0.02)


@pytest.mark.parametrize(
    ("name", "op", "norms"),
    [
        ("bert-base", "layer_norm", 1 + 2 * 12),
        ("vit-b16", "layer_norm", 2 * 12 + 1),
        ("llama3-8b-decode", "rms_norm", 2 * 32 + 1),
        ("llama3-8b-prefill", "rms_norm", 2 * 32 + 1),
    ],
)
def test_all_norms_of_a_transformer_but_the_first_follow_a_sum(name: str, op: str, norms: int) -> None:
    counts = [(w["residual"], count) for w, count in read_specs([name]).items() if w.op == op]
    assert sorted(counts) == [(False, 1), (True, norms - 1)]


def test_the_suite_for_sanitizers_has_a_workload_for_each_cuda_template() -> None:
    machine = target("nvidia-h200")
    work = read_specs([str(Path(__file__).parent.parent / "scripts" / "suites" / "cuda-small.toml")])
    fitting = {template.label for w in work for template in templates_for(w, machine)}
    assert fitting >= {template.label for template in TEMPLATES if template.name.startswith("cuda.")}
    assert all(op_of(w).flops(w) < 2**26 for w in work)
