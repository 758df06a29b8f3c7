"""A range is tuned as one job: which shapes stand for it, what its log holds, whom it compares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmops.library.ranges import serve_range
from tvmops.machine import this_machine
from tvmops.measure.candidate import Candidate, Outcome, Plan
from tvmops.measure.peak import Peak
from tvmops.records import Record, read_log
from tvmops.signatures import Range
from tvmops.targets import target
from tvmops.tuner.region import refined, representatives, sizes_along
from tvmops.tuner.session import tune
from tvmops.workloads import Workload

RANGED = Workload.parse("matmul m=1..64 n=32 k=32")
HERE = target("x86-64-v3")
PEAK = Peak(flops=1e15, bandwidth=1e15)


class Modelled:
    """Small tiles win below 10 rows, tall ones above; other knobs cost a little."""

    def __init__(self) -> None:
        self.seen: list[Candidate] = []
        self.machine = this_machine().fingerprint

    def seconds(self, candidate: Candidate) -> float:
        assert candidate.shape is not None
        (m,) = candidate.shape.dims("m")
        wanted = 1 if m < 10 else 4
        config = candidate.config
        others = config.number("kc") + config.number("nc") + config.number("pack_a") + config.number("ku")
        return 1e-3 * m * (1 + abs(config.number("mr") - wanted) / 4) * (1 + others / 1e5)

    def measure(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[Outcome]:
        for candidate in candidates:
            self.seen.append(candidate)
            yield Outcome("ok", (self.seconds(candidate),), error=1e-6)

    def compare(self, candidates: Sequence[Candidate], plan: Plan) -> list[Outcome]:
        assert not plan.cold
        return [Outcome("ok", (self.seconds(c),) * 3, error=2e-6) for c in candidates]

    def describe(self, candidates: Sequence[Candidate]) -> list[dict[str, float] | None]:
        return [None] * len(candidates)

    def close(self) -> None: ...


def tuned(log: Path, trials: int = 12) -> tuple[dict[Workload, Record], Modelled]:
    measurer = Modelled()
    found = tune(
        RANGED, HERE, log, trials=trials, seconds=None, strategy="random", measurer=measurer, peak=PEAK
    )
    return found, measurer


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("range") / "log.jsonl"
    tuned(path)
    return path


@given(low=st.integers(1, 50), more=st.integers(1, 5000), count=st.integers(2, 24))
def test_sizes_span_the_range(low: int, more: int, count: int) -> None:
    sizes = sizes_along(Range(low, low + more), count)
    assert (sizes[0], sizes[-1]) == (low, low + more)
    assert sizes == sorted(set(sizes))
    assert 2 <= len(sizes) <= count


def test_each_small_size_is_there_if_there_may_be_many() -> None:
    sizes = sizes_along(Range(1, 4096), 24)
    assert sizes[:12] == list(range(1, 13))
    assert max(after / size for size, after in pairwise(sizes[11:])) < 1.8
    assert sizes_along(Range(1, 4096), 6)[:3] == [1, 5, 29]


@given(sizes=st.sets(st.integers(1, 5000), min_size=2, max_size=20), more=st.integers(0, 40))
def test_a_finer_grid_holds_the_coarse_one(sizes: set[int], more: int) -> None:
    finer = refined(sorted(sizes), len(sizes) + more)
    assert sizes <= set(finer)
    assert finer == sorted(set(finer))
    assert (finer[0], finer[-1]) == (min(sizes), max(sizes))
    assert len(finer) == min(len(sizes) + more, max(sizes) - min(sizes) + 1)


def test_a_finer_grid_is_finest_where_tiles_leave_rests() -> None:
    finer = refined(sizes_along(Range(1, 4096), 24), 72)
    assert finer[:36] == list(range(1, 37))
    assert max(after / size for size, after in pairwise(finer[35:])) < 1.3


def test_little_time_means_few_shapes() -> None:
    few, many = representatives(RANGED, 10.0), representatives(RANGED, None)
    assert len(few) < len(many) <= 24
    assert all(RANGED.holds(shape) for shape in many)


def test_a_grid_of_several_ranges_has_all_its_corners() -> None:
    boxed = Workload.parse("attention batch=1..8 heads=2 kv_heads=2 q_len=1..512 kv_len=16..512 head_dim=64")
    shapes = representatives(boxed, None)
    assert len(shapes) <= 24
    assert {(1, 1, 16), (8, 512, 512), (1, 512, 16)} <= {s.dims("batch", "q_len", "kv_len") for s in shapes}


def test_records_say_what_was_built_and_where_it_ran(log: Path) -> None:
    records = read_log(log)
    assert {record.workload for record in records} == {str(RANGED.symbolic())}
    searched = {record.shape for record in records if record.stage == "search"}
    assert searched == {str(shape) for shape in representatives(RANGED, None)}


def test_kernels_are_compared_at_sizes_between_those_that_were_searched(log: Path) -> None:
    compared: dict[str, set[str]] = {}
    for record in read_log(log):
        if record.stage == "final":
            compared.setdefault(record.shape, set()).add(record.config_key)
    searched = {str(shape) for shape in representatives(RANGED, None)}
    between = {shape: configs for shape, configs in compared.items() if shape not in searched}
    assert len(between) >= 30
    assert len({frozenset(configs) for configs in between.values()}) == 1, "the same ones everywhere"
    records = {str(index): record for index, record in enumerate(read_log(log))}
    served = serve_range(RANGED, HERE, records, regret=0.05)
    assert served is not None
    assert {f"{size}" for size in served[1].samples["m"]} == {str(Workload.parse(s)["m"]) for s in compared}


def test_one_that_goes_on_measures_nothing_again(log: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    lines = log.read_bytes()
    again.write_bytes(lines)
    found, measurer = tuned(again)
    assert not measurer.seen
    assert again.read_bytes() == lines
    assert list(found) == [RANGED]
    again.write_bytes(b"\n".join(lines.split(b"\n")[:40]) + b"\n")  # killed in the midst of it
    _, measurer = tuned(again)
    keys = [
        (record.shape, record.template, record.config_key)
        for record in read_log(again)
        if record.stage == "search"
    ]
    assert len(keys) == len(set(keys)), "no config was measured twice at a shape"
    assert measurer.seen


def test_a_kernel_of_each_kind_is_chosen_and_serves_its_sizes(log: Path) -> None:
    records = {str(index): record for index, record in enumerate(read_log(log))}
    served = serve_range(RANGED, HERE, records, regret=0.05)
    assert served is not None
    kernels, bucket = served
    assert 2 <= len(kernels) <= 4
    assert max(bucket.losses) <= 0.05
    for kernel in kernels:
        assert kernel.entry.workload == str(RANGED.symbolic())
        assert kernel.entry.ranges == {"m": (1, 64)}
        assert kernel.entry.error == 2e-6
    for shape in representatives(RANGED, None):
        cell = bucket.cell(shape)
        assert cell is not None
        assert bucket.sampled(cell) == {"m": shape["m"]}
        assert kernels[bucket.cells[cell]].entry.config["mr"] in (
            (1, 2) if shape.dims("m")[0] < 10 else (3, 4, 5)
        )


def test_a_range_within_the_one_that_was_tuned_is_served(log: Path) -> None:
    records = {str(index): record for index, record in enumerate(read_log(log))}
    inner = Workload.parse("matmul m=20..40 n=32 k=32")
    served = serve_range(inner, HERE, records, regret=0.05)
    assert served is not None
    assert all(size in Range(20, 40) for size in served[1].samples["m"])
    assert serve_range(Workload.parse("matmul m=1..64 n=33 k=32"), HERE, records, regret=0.05) is None
