"""The table over a range of shapes: every shape has one cell, that of the nearest sample."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmops.buckets import Bucket, breaks
from tvmops.workloads import Workload, workload


def bucket(text: str, **samples: tuple[int, ...]) -> Bucket:
    count = math.prod(map(len, samples.values()))
    return Bucket(text, samples, ("f",), (0,) * count, (1e-6,) * count, (0.0,) * count)


@given(samples=st.sets(st.integers(1, 5000), min_size=1, max_size=12), size=st.integers(1, 5000))
def test_the_nearest_sample_answers(samples: set[int], size: int) -> None:
    """As ratios: 10 is nearer to 16 than to 5."""
    ordered = tuple(sorted(samples))
    line = bucket("matmul m=1..5000 n=8 k=8", m=ordered)
    cell = line.cell(workload("matmul", m=size, n=8, k=8))
    assert cell is not None
    found = line.sampled(cell)["m"]
    ratio = max(found / size, size / found)
    assert all(ratio <= max(other / size, size / other) * (1 + 1e-9) for other in ordered)


def test_a_grid_has_a_cell_for_each_point() -> None:
    samples = {"batch": (1, 8), "q_len": (1, 32, 1024), "kv_len": (16, 512)}
    grid = bucket(
        "attention batch=1..8 heads=2 kv_heads=2 q_len=1..1024 kv_len=1..512 head_dim=64", **samples
    )
    seen = set()
    for batch in samples["batch"]:
        for q_len in samples["q_len"]:
            for kv_len in samples["kv_len"]:
                sizes = {"batch": batch, "q_len": q_len, "kv_len": kv_len}
                shape = workload("attention", heads=2, kv_heads=2, head_dim=64, **sizes)
                cell = grid.cell(shape)
                assert cell is not None
                assert grid.sampled(cell) == sizes
                seen.add(cell)
    assert seen == set(range(12))


@pytest.mark.parametrize("m", [3, 101])
def test_a_shape_outside_has_no_cell(m: int) -> None:
    assert bucket("matmul m=4..100 n=8 k=8", m=(4, 100)).cell(workload("matmul", m=m, n=8, k=8)) is None


def test_what_its_kernels_are_built_for() -> None:
    line = bucket("matmul m=4..100 n=8 k=8", m=(4, 100))
    assert line.pattern == Workload.parse("matmul m=* n=8 k=8")


def test_where_cells_end() -> None:
    assert breaks((4, 16)) == (9,), "8 is as near to 4 as to 16, and goes to the smaller"
    assert breaks((7,)) == ()
