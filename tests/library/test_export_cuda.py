"""A library for a GPU is built where there is none, and refused there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.libraries import default_record, write_log
from tests.schedules.cuda.compiled import needs_nvcc
from tvmops import gpu
from tvmops.errors import LibraryTargetError
from tvmops.library.export import export
from tvmops.manifest import Manifest
from tvmops.runtime.load import load
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
    assert tuned.template.startswith("cuda.conv_wgmma")
    templates = [entry.template.split("@")[0] for entry in generic]
    assert templates == ["cuda.conv_wgmma", "cuda.conv_mma", "cuda.conv_mma"]
    assert [entry.multiples for entry in generic] == [{"ci": 8, "co": 8}, {"ci": 8}, {}]


@needs_nvcc
@pytest.mark.parametrize(
    "work, first, last, aligned",
    [
        (
            workload("matmul", m=1024, n=1024, k=1024, trans_b=True, precision="tf32", residual=True),
            "cuda.gemm_tf32",
            "cuda.gemm_tf32_mma",
            {"n": 4, "k": 4},
        ),
        (
            workload("matmul_int8", m=512, n=512, k=512, trans_b=True, b_zero_points="channel"),
            "cuda.gemm_int8_wgmma",
            "cuda.gemm_int8",
            {"n": 8, "k": 16},
        ),
    ],
    ids=["tf32", "int8"],
)
def test_wgmma_answers_what_tma_takes_and_mma_the_rest(
    work: Workload, first: str, last: str, aligned: dict[str, int], tmp_path: Path
) -> None:
    record = default_record(work, H200)
    (variant,) = Manifest.read(
        export(work, H200, [write_log(tmp_path / "log.jsonl", record)], tmp_path / "lib")
    ).variants
    generic = [entry for entry in variant.kernels if entry.seconds is None]
    names = [entry.template.split("@")[0] for entry in generic]
    assert set(names) == {first, last} and names[0] == first and names[-1] == last
    assert all(entry.multiples == aligned for entry, name in zip(generic, names) if name == first)
    assert not generic[-1].multiples and not generic[-1].ranges  # answers every shape
