"""What is counted in a config's code."""

from __future__ import annotations

import pytest

from tests.libraries import matmul
from tvmops.schedules.cpu.gemm import CpuGemm
from tvmops.schedules.lowered import code_features
from tvmops.targets import target

WORK = matmul(64, 64, 64)
AVX512 = target("x86-64-v4")


def features(**changes: int | bool) -> dict[str, float]:
    template = CpuGemm()
    plain = template.default(WORK, AVX512).replace(mr=4, nv=2, kc=0, nc=0, mc=0, ku=2)
    unpacked = plain.replace(pack_a=False, pack_b=False, split_m=1, split_n=1, split_k=1)
    return code_features(template.build(WORK, AVX512, unpacked.replace(**changes)))


def test_products_are_counted_as_often_as_they_run() -> None:
    """A multiply-add on 16 lanes for each 16 elements of c and each k, whatever the tile."""
    changes: list[dict[str, int]] = [{}, {"mr": 8}, {"kc": 16}, {"nc": 1}]
    for change in changes:
        assert 2 ** features(**change)["code_products"] == pytest.approx(64 * 64 * 64 / 16 + 1)


@pytest.mark.parametrize(
    "change, name",
    [
        ({"pack_b": True}, "code_stores"),
        ({"mr": 8}, "code_load_sites"),
        ({"ku": 4}, "code_product_sites"),
        ({"split_m": 2}, "code_tasks"),
        ({"kc": 16}, "code_iterations"),
    ],
)
def test_each_knob_shows_in_the_code(change: dict[str, int], name: str) -> None:
    assert features(**change)[name] > features()[name]


def test_a_symbolic_extent_has_features_too() -> None:
    template = CpuGemm()
    config = template.generic(WORK.generic(), AVX512)[-1].config
    counted = code_features(template.build(WORK.generic(), AVX512, config))
    assert set(counted) == set(features())
