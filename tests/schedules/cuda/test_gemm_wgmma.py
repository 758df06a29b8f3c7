from __future__ import annotations

import random
import re

import pytest

from tests.schedules.cuda.compiled import compiled, needs_nvcc
from tvmops.errors import NoTemplateError
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.gemm_chained import ChainedGemm
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm, is_legal
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

TEMPLATE = WgmmaGemm()
H200 = target("nvidia-h200")


def matmul(m: int, n: int, k: int, dtype: str = "bfloat16", **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, dtype=dtype, **fields)


SHARED = Config.of(bm=128, bn=256, bk=64, consumers=2, cluster=2, split_k=1, group=8, beside=1)
SPLIT = Config.of(bm=64, bn=64, bk=64, consumers=1, cluster=1, split_k=4, group=1, beside=2)
LARGE = matmul(4096, 4096, 4096)
SMALL = matmul(16, 1024, 4096, "float16")


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (LARGE, "nvidia-h200", True),
        (LARGE, "nvidia-h100", True),
        (LARGE, "nvidia-a100", False),  # no wgmma
        (LARGE, "znver4", False),
        (matmul(64, 64, 64, "float32"), "nvidia-h200", False),
        (matmul(1, 8, 8), "nvidia-h200", True),  # rows of 16 bytes, the least that TMA takes
        (matmul(7, 12, 64), "nvidia-h200", False),
        (matmul(7, 64, 12), "nvidia-h200", False),
        (LARGE.generic(), "nvidia-h200", True),
        (matmul(100, 64, 64, batch=3, shared="b", bias=True, activation="gelu"), "nvidia-h200", True),
        (matmul(100, 64, 64, out_dtype="float32", residual=True), "nvidia-h200", True),
    ],
)
def test_it_covers_what_the_copy_engine_takes(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


def test_nothing_else_covers_sixteen_bits_on_a_cpu_template() -> None:
    names = [template.name for template in templates_for(LARGE, H200)]
    assert names[0] == TEMPLATE.name and "cpu.gemm" not in names
    with pytest.raises(NoTemplateError):
        templates_for(workload("matmul_int8", m=8, n=8, k=8, packed="words"), H200)


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (1, 4096, 4096), (64, 1024, 8192), (8192, 8192, 8192), (5, 8, 64)]
)
def test_the_default_is_legal_at_any_size(shape: tuple[int, int, int]) -> None:
    work = matmul(*shape)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def test_generic_kernels_answer_every_aligned_shape() -> None:
    kernels = TEMPLATE.generic(LARGE.generic(), H200)
    assert kernels[-1].ranges == {}
    assert all(kernel.multiples == {"n": 8, "k": 8} for kernel in kernels)


def test_what_is_legal_fits_the_machine() -> None:
    assert H200.gpu is not None
    rng = random.Random(0)
    space = TEMPLATE.space(LARGE, H200)
    for _ in range(50):
        config = space.sample(rng)
        assert config is not None
        tiles = Tiles.of(config, H200)
        assert tiles.stages >= 3
        threads = tiles.consumer_registers * tiles.consumers + tiles.producer_registers
        assert threads * 128 <= H200.gpu.block_registers


def test_a_cluster_shares_b_or_splits_k() -> None:
    both = TEMPLATE.default(LARGE, H200).replace(cluster=2, split_k=2)
    assert not is_legal(both, LARGE, H200)


def test_partial_sums_fit_where_the_ring_was() -> None:
    space = TEMPLATE.space(matmul(256, 1024, 8192), H200)
    for split in (config for config in space if config["split_k"] != 1):
        tiles = Tiles.of(split, H200)
        assert tiles.partial_bytes <= tiles.stages * tiles.stage_bytes


def test_a_batch_counts_as_work() -> None:
    one, many = matmul(128, 128, 128), matmul(128, 128, 128, batch=640)
    config = TEMPLATE.default(many, H200)
    assert config["split_k"] == 1
    assert TEMPLATE.estimate(many, H200, config) > 2 * TEMPLATE.estimate(one, H200, config)
    assert TEMPLATE.kernel_workload(many)["batch"] == TEMPLATE.kernel_workload(one)["m"]  # any


@needs_nvcc
@pytest.mark.parametrize(
    "fields, config, words",
    [
        ({"batch": 3, "trans_a": True}, SHARED, ["bulk_tensor_3d"]),
        ({"bias": True, "residual": True, "activation": "gelu"}, SHARED, ["element_bfloat16", "erff"]),
        ({"bias": True, "activation": "silu", "out_dtype": "float32"}, SHARED, ["store_two"]),
        ({"bias": True, "bias_dtype": "float32", "residual": True}, SHARED, ["element_float32"]),
        ({"batch": 3, "residual": True, "out_dtype": "float32"}, SPLIT, ["st.global.v4.f32"]),
        ({"bias": True, "activation": "gelu", "trans_b": True}, SPLIT, ["st.global.v4.b32", "erff"]),
    ],
    ids=["a batch", "epilogue", "float32 results", "bias of float32", "split float32", "split epilogue"],
)
def test_other_forms_compile_as_meant(fields: dict[str, object], config: Config, words: list[str]) -> None:
    cubin = compiled(TEMPLATE, matmul(1024, 1024, 1024, **fields), H200, config)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert all(word in cubin.source for word in words)


@needs_nvcc
@pytest.mark.parametrize(
    "work, config",
    [
        (LARGE, SHARED),
        (SMALL, SPLIT),
    ],
    ids=["shared tiles", "split sums"],
)
def test_the_code_is_what_was_meant(work: Workload, config: Config) -> None:
    assert config in TEMPLATE.space(work, H200)
    cubin = compiled(TEMPLATE, work, H200, config)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    assert "wgmma.mma_async" in cubin.source and "cp.async.bulk.tensor" in cubin.source
    assert ("multicast" in cubin.source) is (config == SHARED)
    assert ("ld.shared::cluster" in cubin.source) is (config == SPLIT)
    copies = re.findall(r"^\s*tvm_builtin_ptx_cp_async_bulk_tensor_g2s.*", cubin.source, re.MULTILINE)
    assert any("cluster_ctaid" in copy for copy in copies) is (config == SHARED)  # b's, for each other alone


def test_small_products_are_launched_while_the_kernel_before_ends() -> None:
    chained, small, large = ChainedGemm(), matmul(128, 128, 128, batch=64), matmul(4096, 4096, 4096)
    assert chained.covers(small, H200) and not chained.covers(large, H200)
    assert not chained.covers(small.generic(), H200) and not chained.covers(small, target("nvidia-a100"))
    assert chained.default(small, H200) in chained.space(small, H200)


@needs_nvcc
def test_such_a_launch_waits_for_what_was_before() -> None:
    work = matmul(128, 128, 128, batch=64)
    source = compiled(ChainedGemm(), work, H200, ChainedGemm().default(work, H200)).source
    assert "griddepcontrol.launch_dependents" in source and "griddepcontrol.wait" in source
    assert "griddepcontrol" not in compiled(TEMPLATE, work, H200, TEMPLATE.default(work, H200)).source


@pytest.mark.parametrize("m", [96, 128, 256])
def test_few_rows_of_tiles_share_what_they_load_of_b(m: int) -> None:
    config = TEMPLATE.default(matmul(m, 4096, 4096), H200)
    rows = -(-m // config.number("bm"))
    assert rows <= config.number("cluster") * config.number("group")


def test_pairs_lie_side_by_side_where_a_launch_would_part_them() -> None:
    pairs = Config.of(bm=64, bn=64, bk=64, consumers=1, cluster=1, split_k=1, group=2, beside=1, chained=1)
    assert Tiles.of(pairs, H200).neighbours == 2
    for other in ({"chained": 0}, {"group": 1}, {"cluster": 2}, {"split_k": 2}):
        assert Tiles.of(pairs.replace(**other), H200).neighbours == 1
