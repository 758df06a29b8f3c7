from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc, ptx_of
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.streamed import H100, error_of
from tvmops.schedules import Template
from tvmops.schedules.cuda.gemm_stream import StreamGemm
from tvmops.schedules.cuda.streaming import StreamTemplate
from tvmops.schedules.cuda.weight_only_stream import WeightOnlyStream
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

INTEGERS, FLOATS = WeightOnlyStream(), StreamGemm()


def integers(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul_weight_only", m=m, n=n, k=k, **{"dtype": "float16", **fields})


def floats(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", **fields})


def config(
    rows: int, spans: int, warps_n: int, warps_k: int, splits: int, depth: int, ahead: int | None = None
) -> Config:
    return Config.of(
        rows=rows,
        spans=spans,
        warps_n=warps_n,
        warps_k=warps_k,
        splits=splits,
        depth=depth,
        chained=int(ahead is not None),
        ahead=ahead or 0,
    )


@pytest.mark.parametrize(
    "template, work, machine, covered",
    [
        (INTEGERS, integers(1, 13, 16), "nvidia-a100", True),
        (INTEGERS, integers(32, 13, 16, dtype="bfloat16", bits=8, x_bits=8), "nvidia-h100", True),
        (INTEGERS, integers(33, 13, 16), "nvidia-h100", True),  # in two bands
        (INTEGERS, integers(65, 13, 16), "nvidia-h100", False),  # too many rows
        (INTEGERS, integers(1, 13, 12), "nvidia-h100", False),  # rows of x begin anywhere
        (INTEGERS, integers(1, 13, 16, group=40), "nvidia-h100", False),  # ends within two products
        (INTEGERS, integers(1, 13, 16, dtype="float32"), "nvidia-h100", False),
        (INTEGERS, integers(1, 13, 16), "cuda-sm75", False),  # no cp.async
        (INTEGERS, integers(1, 13, 16), "znver4", False),
        (FLOATS, floats(1, 16, 24), "nvidia-a100", True),
        (FLOATS, floats(1, 13, 24, trans_b=True), "nvidia-h100", True),
        (FLOATS, floats(1, 13, 24), "nvidia-h100", False),  # rows of b begin anywhere
        (FLOATS, floats(1, 16, 21, trans_b=True), "nvidia-h100", False),
        (FLOATS, floats(17, 16, 24), "nvidia-h100", False),
        (FLOATS, floats(8, 16, 24, trans_a=True), "nvidia-h100", False),
        (FLOATS, floats(8, 16, 24, batch=2), "nvidia-h100", False),
        (FLOATS, floats(1, 16, 24, dtype="float32"), "nvidia-h100", False),
        (FLOATS, floats(1, 16, 24).replace(m="*"), "nvidia-h100", True),  # in bands of rows
        (FLOATS, floats(1, 16, 24).generic(), "nvidia-h100", False),
    ],
)
def test_what_it_covers(template: Template, work: Workload, machine: str, covered: bool) -> None:
    assert template.covers(work, target(machine)) is covered


@pytest.mark.parametrize("machine", ["nvidia-h100", "nvidia-a100", "rtx-3090"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 1024, 4096), (16, 28672, 8192), (16, 4096, 4096)])
def test_the_default_is_legal(shape: tuple[int, int, int], machine: str) -> None:
    works = [(FLOATS, floats(*shape, trans_b=trans)) for trans in (False, True)]
    works += [(INTEGERS, integers(*shape, bits=bits, zero_points=True)) for bits in (4, 8)]
    for template, work in works:
        assert template.default(work, target(machine)) in template.space(work, target(machine))


@pytest.mark.parametrize("template, make", [(INTEGERS, integers), (FLOATS, floats)])
def test_few_columns_are_split_over_blocks(template: Template, make: object) -> None:
    assert callable(make)
    assert int(template.default(make(1, 1024, 8192), H100)["splits"]) > 1
    assert template.default(make(1, 1024, 8192), target("nvidia-a100"))["splits"] == 1  # no clusters


CASES = [
    (integers(1, 64, 512), config(1, 1, 1, 2, 1, 2, 0)),  # launched early
    (integers(1, 50, 1000), config(1, 1, 1, 2, 2, 3, 1)),  # a panel too few; k ends within a group; odd n
    (integers(13, 84, 328, group=32, zero_points=True), config(16, 1, 2, 2, 1, 2)),  # or within a unit
    (integers(5, 36, 192, bits=8, bias=True, activation="relu"), config(8, 1, 1, 1, 2, 1)),
    (integers(3, 44, 320, bits=8, dtype="bfloat16", zero_points=True, group=64), config(4, 1, 1, 1, 1, 3)),
    (integers(9, 132, 264, dtype="bfloat16", zero_points=True, bias=True), config(4, 2, 1, 1, 2, 1)),
    (integers(2, 40, 1000, group=256, activation="silu"), config(2, 1, 1, 4, 1, 2)),
    (floats(1, 64, 512), config(1, 1, 1, 4, 1, 4, 2)),
    (floats(3, 72, 104, dtype="float16", bias=True, residual=True), config(4, 1, 1, 2, 2, 1)),
    (floats(1, 24, 24), config(1, 1, 1, 1, 1, 1, 1)),  # k and n end within what is read
    (floats(17, 136, 136), config(8, 1, 1, 1, 4, 1)),  # several bands of rows
    (floats(16, 200, 96), config(16, 2, 1, 1, 1, 1)),
    (floats(1, 37, 512, trans_b=True), config(1, 1, 1, 2, 4, 1, 1)),  # odd n
    (floats(14, 72, 136, dtype="float16", trans_b=True, bias=True), config(16, 1, 2, 2, 1, 1)),
    (integers(30, 72, 136), config(32, 1, 2, 1, 1, 1)),
    (floats(5, 76, 520, trans_b=True, residual=True), config(8, 2, 1, 2, 2, 2)),
]  # fmt: skip


def _template(work: Workload) -> StreamTemplate:
    return FLOATS if work.op == "matmul" else INTEGERS


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert error_of(_template(work), work, knobs, tmp_path) <= 1


@pytest.mark.parametrize("seed", range(6))
class TestRandomConfigs:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, seed: int, tmp_path: Path) -> None:
        rng = random.Random(seed)
        m, n, k = rng.choice((1, 2, 7, 16)), 8 * rng.randint(1, 20), 8 * rng.randint(1, 90)
        work = floats(m, n, k, trans_b=seed % 3 == 0) if seed % 2 else integers(m, n, k)
        knobs = _template(work).space(work, H100).sample(rng)
        assert knobs is not None
        assert error_of(_template(work), work, knobs, tmp_path) <= 1


@needs_nvcc
@pytest.mark.parametrize(
    "work, instructions",
    [
        (integers(1, 4096, 4096), ("fma.rn.f16x2", "lop3.b32", "mma.sync.aligned.m16n8k16.row.col.f32.f16")),
        (floats(1, 4096, 4096), ("prmt.b32", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")),
        (floats(1, 1024, 4096), ("mapa.shared::cluster", "ld.shared::cluster.v4.f32")),
        (integers(32, 4096, 4096, zero_points=True), ()),  # most registers
    ],
)
def test_weights_are_read_wide_and_past_the_cache(
    work: Workload, instructions: tuple[str, ...], tmp_path: Path
) -> None:
    template = _template(work)
    cubin = compiled(template, work, H100, template.default(work, H100))
    assert cubin.report.spilled_bytes == cubin.report.stack_bytes == 0
    ptx = ptx_of(cubin, "sm_90a", tmp_path)
    for instruction in ("ld.global.L1::no_allocate.L2::256B.v4.b32", *instructions):
        assert instruction in ptx
    assert "ld.local" not in ptx
    # Nothing is read before the kernels before have ended: until then weights are only asked for.
    asked, waits, read = (
        ptx.index(text) for text in ("prefetch.global.L2", "griddepcontrol.wait", "ld.global.L1::")
    )
    assert asked < waits < read and ptx.index("cp.async.cg") > waits


@needs_nvcc
def test_unless_launched_early_nothing_is_asked_for(tmp_path: Path) -> None:
    work = integers(1, 4096, 4096)
    cubin = compiled(INTEGERS, work, H100, INTEGERS.default(work, H100).replace(chained=0, ahead=0))
    ptx = ptx_of(cubin, "sm_90a", tmp_path)
    assert "ld.global.nc.L1::no_allocate.L2::256B.v4.b32" in ptx
    assert "griddepcontrol" not in ptx and "prefetch.global.L2" not in ptx
