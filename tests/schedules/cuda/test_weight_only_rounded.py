from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import each_compiled, needs_nvcc
from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.test_weight_only_wgmma import config, error_of, product
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.weight_only_rounded import WeightOnlyRounded
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = WeightOnlyRounded()
H200 = target("nvidia-h200")


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (product(512, 4096, 256), "nvidia-h200", True),
        (product(4096, 520, 264, zero_points=True, group=256, x_bits=8), "nvidia-h100", True),
        (product(512, 4096, 256).generic(), "nvidia-h100", True),
        (product(512, 4096, 248), "nvidia-h200", False),  # the bound leaves no room for rounded weights
        (product(512, 4096, 260), "nvidia-h200", False),  # rows of x begin where TMA can't
        (product(512, 4096, 256, bits=8), "nvidia-h200", False),
        (product(512, 4096, 256, group=64), "nvidia-h200", False),
        (product(512, 4096, 256), "nvidia-a100", False),  # no wgmma
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize("shape", [(512, 4096, 256), (1024, 4096, 4096), (5000, 999, 776)])
def test_the_default_is_legal(shape: tuple[int, int, int]) -> None:
    for bits in (4, 8):
        work = product(*shape, bits=bits, zero_points=True, group=32)
        assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def test_tiles_are_as_high_as_fills_a_wave() -> None:
    rows = {m: TEMPLATE.default(product(m, 4096, 4096), H200)["rows"] for m in (768, 1024, 1536)}
    assert rows == {768: 192, 1024: 256, 1536: 192}


def test_it_is_the_usual_one_for_many_rows() -> None:
    exact = "cuda.weight_only_wgmma"
    shapes = {(64, 4096): exact, (511, 8192): exact, (512, 4000): exact, (512, 4096): TEMPLATE.name}
    for (m, n), name in shapes.items():  # fewer rows or tiles take exact integers no longer
        assert templates_for(product(m, n, 4096), H200)[0].name == name


def test_the_generic_kernel_takes_products_of_many_waves() -> None:
    (kernel,) = TEMPLATE.generic(product(512, 1, 512).generic(), H200)
    assert [kernel.ranges[dim][0] for dim in "mnk"] == [4096, 8192, 256]
    assert kernel.multiples == {"k": 8}


CASES = [
    (product(130, 270, 392), config(256, 2, 2)),  # odd m; columns and k end within a tile
    (product(300, 136, 520, bits=8, zero_points=True, group=32), config(160, 2, 2)),
    (product(131, 135, 264, dtype="bfloat16", zero_points=True, bias=True, group=64), config(136, 2, 2, 2)),
    (product(129, 84, 320, bits=8, dtype="bfloat16", group=256), config(72, 2, 3, chained=2)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        assert error_of(work, knobs, tmp_path, TEMPLATE) <= 1


class TestRandomConfigs:
    pytestmark = needs_emulator

    def test_it_computes_the_product(self, tmp_path: Path) -> None:
        rng = random.Random(3)
        m, n, k = rng.choice((130, 256)), rng.randint(1, 200), 8 * rng.randint(32, 90)
        work = product(m, n, k, zero_points=True)
        knobs = TEMPLATE.space(work, H200).sample(rng)
        assert knobs is not None
        assert error_of(work, knobs, tmp_path, TEMPLATE) <= 1


@needs_nvcc
def test_the_highest_tiles_spill_nothing() -> None:
    forms = [
        {
            "dtype": dtype,
            "bits": bits,
            "group": group,
            "zero_points": True,
            "bias": True,
            "activation": "gelu",
        }
        for dtype, bits, group in (("float16", 4, 128), ("bfloat16", 4, 32), ("bfloat16", 8, 128))
    ]
    work = [product(1024, 4096, 4096, **fields) for fields in forms]
    for cubin in each_compiled([(TEMPLATE, each, TEMPLATE.default(each, H200)) for each in work], H200):
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        assert "m64n256k16" in cubin.source and "scaled_pair_" in cubin.source
