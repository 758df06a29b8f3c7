"""A library for a GPU is built where there is none, and refused there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.libraries import default_record, write_log
from tests.schedules.cuda.compiled import needs_nvcc
from tvmops import gpu
from tvmops.errors import LibraryTargetError
from tvmops.library.export import export
from tvmops.machine import this_machine
from tvmops.manifest import Manifest
from tvmops.runtime.load import load
from tvmops.runtime.variants import choose
from tvmops.targets import target
from tvmops.workloads import Workload, workload

H200 = target("nvidia-h200")
W = workload("matmul", m=4096, n=4096, k=4096, dtype="bfloat16")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    return export(W, H200, [write_log(folder / "log.jsonl", default_record(W, H200))], folder / "lib")


@needs_nvcc
def test_it_holds_the_kernels_and_both_runtimes(library: Path) -> None:
    manifest = Manifest.read(library)
    (variant,) = manifest.variants
    assert variant.device == "cuda" and variant.needs == ("sm_90a",)
    assert {"libtvm_runtime.so", "libtvm_runtime_cuda.so"} < manifest.files.keys()
    code = (library / variant.module).read_bytes()
    assert all(f"{entry.function}_kernel".encode() in code for entry in variant.kernels)
    generic = [entry for entry in variant.kernels if entry.seconds is None]
    assert generic[0].multiples == {"n": 8, "k": 8}
    assert not generic[-1].multiples and not generic[-1].ranges  # answers every shape
    for entry in variant.kernels:  # those that copy operands say how much workspace that takes
        says = f"__tvm_ffi_{entry.function}_workspace".encode() in code
        assert says is entry.template.startswith("cuda.gemm_padded")


@needs_nvcc
def test_a_machine_without_that_gpu_refuses_it(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "capabilities", lambda: ((8, 0),))
    with pytest.raises(
        LibraryTargetError, match=r"holds nvidia-h200; this machine .* lacks sm_90a for nvidia-h200"
    ):
        load(library)


@needs_nvcc
def test_convolutions_of_any_shape_are_answered(tmp_path: Path) -> None:
    layer = workload(
        "conv2d", n=8, h=14, w=14, ci=256, co=256, kh=3, kw=3, padding=1, layout="NHWC", dtype="float16"
    )
    record = default_record(layer, H200)
    folder = export(layer, H200, [write_log(tmp_path / "log.jsonl", record)], tmp_path / "lib")
    (variant,) = Manifest.read(folder).variants
    tuned, *generic = sorted(variant.kernels, key=lambda entry: entry.seconds is None)
    assert tuned.template.startswith("cuda.conv_halo")
    templates = [entry.template.split("@")[0] for entry in generic]
    assert templates == ["cuda.conv_wgmma", "cuda.conv_mma", "cuda.conv_mma"]
    assert [entry.multiples for entry in generic] == [{"ci": 8, "co": 8}, {"ci": 8}, {}]


_EM_CUDA = 190  # the machine in an ELF header
FLEET = {"nvidia-a100": (8, 0), "rtx-3090": (8, 6), "rtx-4090": (8, 9), "nvidia-h200": (9, 0)}


def capabilities(library: Path) -> set[tuple[int, int]]:
    """Return the compute capabilities that the machine code within a shared library is for."""
    code, found = library.read_bytes(), set()
    for start in (match.start() for match in re.finditer(b"\x7fELF", code)):
        machine, flags = (int.from_bytes(code[start + at : start + at + 4], "little") for at in (18, 48))
        if machine & 0xFFFF == _EM_CUDA:
            found.add(divmod(flags >> 8 & 0xFF, 10))
    return found


@needs_nvcc
def test_one_library_holds_machine_code_for_each_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = workload("softmax", rows=64, cols=304, dtype="float16")
    machines = [target(name) for name in FLEET]
    log = write_log(tmp_path / "log.jsonl", *(default_record(rows, machine) for machine in machines))
    manifest = Manifest.read(folder := export(rows, machines, [log], tmp_path / "lib"))
    assert {v.target: capabilities(folder / v.module) for v in manifest.variants} == {
        name: {capability} for name, capability in FLEET.items()
    }
    for name, capability in FLEET.items():
        monkeypatch.setattr(gpu, "capabilities", lambda found=capability: (found,))
        assert choose(folder, manifest, this_machine()).taken["cuda"].target == name
    monkeypatch.setattr(gpu, "capabilities", lambda: ((8, 7),))  # runs code of 8.0 and 8.6
    assert choose(folder, manifest, this_machine()).taken["cuda"].target == "rtx-3090"
    monkeypatch.setattr(gpu, "capabilities", lambda: ((10, 0),))
    with pytest.raises(LibraryTargetError, match=r"lacks? .*sm_90a|sm_90a for nvidia-h200"):
        choose(folder, manifest, this_machine())


@needs_nvcc
def test_kernels_of_sketch_search_lie_beside_those_of_templates(tmp_path: Path) -> None:
    pool = workload("pool2d", n=1, h=9, w=7, c=16, kernel=3, stride=2, padding=1)
    rows = workload("softmax", rows=64, cols=304, dtype="float16")
    log = write_log(tmp_path / "log.jsonl", *(default_record(work, H200) for work in (pool, rows)))
    folder = export([pool, rows], H200, [log], tmp_path / "lib")
    (variant,) = Manifest.read(folder).variants
    assert [entry.template.split("@")[0] for entry in variant.kernels] == [
        "sketch",
        "cuda.rows",
        "cuda.rows_long",  # of any other shape: few long rows, others
        "cuda.rows_long",
    ]
    assert not any(entry.parallel for entry in variant.kernels)
    code = (folder / variant.module).read_bytes()
    assert all(f"{entry.function}_kernel".encode() in code for entry in variant.kernels)


@needs_nvcc
@pytest.mark.parametrize(
    "work, kinds, aligned",
    [
        (
            workload("matmul", m=1024, n=1024, k=1024, trans_b=True, precision="tf32", residual=True),
            ["cuda.gemm_tf32", "cuda.gemm_tf32_padded", "cuda.gemm_tf32_mma"],
            {"n": 4, "k": 4},
        ),
        (
            workload("matmul_int8", m=512, n=512, k=512, trans_b=True, b_zero_points="channel"),
            ["cuda.gemm_int8_wgmma", "cuda.gemm_int8"],
            {"n": 8, "k": 16},
        ),
    ],
    ids=["tf32", "int8"],
)
def test_wgmma_answers_what_tma_takes_and_mma_the_rest(
    work: Workload, kinds: list[str], aligned: dict[str, int], tmp_path: Path
) -> None:
    record = default_record(work, H200)
    (variant,) = Manifest.read(
        export(work, H200, [write_log(tmp_path / "log.jsonl", record)], tmp_path / "lib")
    ).variants
    generic = [entry for entry in variant.kernels if entry.seconds is None]
    names = [entry.template.split("@")[0] for entry in generic]
    assert list(dict.fromkeys(names)) == kinds
    assert all(entry.multiples == aligned for entry, name in zip(generic, names) if name == kinds[0])
    assert not generic[-1].multiples and not generic[-1].ranges  # answers every shape
