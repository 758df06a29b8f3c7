"""Workloads with ranges of sizes, as text, as tables of a suite, and what they hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmops.errors import WorkloadError
from tvmops.signatures import Range
from tvmops.suites import read_specs, read_suite, write_suite
from tvmops.workloads import Workload, workload

RANGED = Workload.parse("matmul m=1..4096 n=64 k=32")


@given(low=st.integers(1, 5000), more=st.integers(0, 5000))
def test_the_text_goes_both_ways(low: int, more: int) -> None:
    made = workload("matmul", m=f"{low}..{low + more}", n=2, k=3)
    assert Workload.parse(str(made)) == made
    assert made == workload("matmul", m=Range(low, low + more), n=2, k=3)
    assert made["m"] == (Range(low, low + more) if more else low), "a range of one size is that size"


def test_what_a_range_is() -> None:
    assert str(RANGED) == "matmul m=1..4096 n=64 k=32 dtype=float32"
    assert RANGED.ranges == {"m": Range(1, 4096)}
    assert not RANGED.is_generic
    assert str(RANGED.symbolic()) == "matmul m=* n=64 k=32 dtype=float32", "sizes that are known stay so"
    assert RANGED.generic() == Workload.parse("matmul m=* n=* k=*")
    with pytest.raises(WorkloadError, match="a known size"):
        RANGED.dims("m")


@pytest.mark.parametrize(
    ("shape", "inside"),
    [
        ("matmul m=1 n=64 k=32", True),
        ("matmul m=4096 n=64 k=32", True),
        ("matmul m=4097 n=64 k=32", False),
        ("matmul m=7 n=65 k=32", False),
        ("matmul m=7 n=64 k=32 bias=true", False),
        ("softmax rows=7 cols=64", False),
    ],
)
def test_which_shapes_it_holds(shape: str, inside: bool) -> None:
    assert RANGED.holds(Workload.parse(shape)) is inside


@pytest.mark.parametrize("size", ["0..8", "8..4", "1..", "..8", "1..2..3", "1..x", "1...8", "-1..8"])
def test_a_range_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(WorkloadError, match=r"a range such as 1\.\.64"):
        workload("matmul", m=size, n=1, k=1)


def test_a_size_that_decides_on_the_code_has_no_range() -> None:
    """Without a batch arrays have two dimensions; the size of a kernel is unrolled."""
    with pytest.raises(WorkloadError, match="field 'batch'"):
        workload("matmul", m=1, n=1, k=1, batch="1..4")
    with pytest.raises(WorkloadError, match="field 'kh'"):
        workload("conv2d", n=1, h=8, w=8, ci=1, co=1, kh="1..3", kw=1)


def test_both_ends_are_checked() -> None:
    with pytest.raises(WorkloadError, match="field 'h' is 2; expected at least 3"):
        workload("conv2d", n=1, h="2..8", w=8, ci=1, co=1, kh=3, kw=3)
    made = workload("conv2d", n="1..8", h="3..8", w="3..9", ci=1, co=1, kh=3, kw=3, padding="same")
    assert made["padding"] == (1, 1, 1, 1)


def test_suites_have_ranges(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[workload]]\nop = "matmul"\nm = "1..4096"\nn = 64\nk = 32\nweight = 2\n')
    assert read_specs([str(path)]) == {RANGED: 2.0}


def test_a_suite_that_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "misses"
    weights = {str(RANGED): 3, "softmax rows=2 cols=3 dtype=float32": 1}
    write_suite(path, weights, source='calls on "lib\\mine"')
    assert read_suite(path) == {Workload.parse(text): float(weight) for text, weight in weights.items()}
    write_suite(path, {}, source="nothing")
    assert read_suite(path) == {}
