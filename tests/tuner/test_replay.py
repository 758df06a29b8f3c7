"""The replay lab: strategies judged on recorded spaces, with no hardware and no noise."""

from __future__ import annotations

import math
import statistics
from functools import cache
from pathlib import Path

import pytest

from tvmops.errors import LogReadError
from tvmops.tuner.replay import Recording, experience_of, recordings, trials_to_reach

SEEDS = range(20)
LAB = recordings()


@cache
def median_trials(strategy: str, warm: bool = False) -> float:
    counts = []
    for recording in LAB:
        prior = [experience_of(other) for other in LAB if other is not recording] if warm else []
        search = recording.search_space(prior)
        counts += [trials_to_reach(recording, search, strategy, seed) for seed in SEEDS]
    return statistics.median(counts)


def test_the_lab_holds_several_complete_spaces() -> None:
    assert len(LAB) >= 3
    for recording in LAB:
        space = recording.search_space().space
        assert set(space) == set(recording.seconds)
        assert sum(map(math.isfinite, recording.seconds.values())) > 0.9 * len(recording.seconds)


def test_xgboost_needs_a_third_of_the_trials_of_random() -> None:
    assert median_trials("xgboost") <= median_trials("random") / 3


def test_earlier_searches_of_other_shapes_help() -> None:
    assert median_trials("xgboost", warm=True) <= median_trials("xgboost")


@pytest.mark.parametrize("strategy", ["random", "xgboost", "grid"])
def test_a_seed_fixes_the_sequence_of_proposals(strategy: str) -> None:
    recording = LAB[0]
    counts = [trials_to_reach(recording, recording.search_space(), strategy, seed=5) for _ in range(2)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("strategy", ["random", "xgboost", "grid"])
def test_every_strategy_ends_with_the_best_of_a_small_space(strategy: str) -> None:
    recording = small(LAB[0])
    trials = trials_to_reach(recording, recording.search_space(), strategy, seed=1, within=0.0)
    assert trials <= len(recording.seconds)


def small(recording: Recording) -> Recording:
    """Keep the configs of one register tile, so that a space can be exhausted."""
    kept = {c: t for c, t in recording.seconds.items() if (c["mr"], c["nv"]) == (6, 4)}
    return Recording(recording.workload, recording.target, recording.machine, recording.knobs, kept)


def test_a_recording_survives_being_written(tmp_path: Path) -> None:
    LAB[0].write(tmp_path / "again.json")
    again = Recording.read(tmp_path / "again.json")
    assert again.seconds == LAB[0].seconds
    assert again.knobs == LAB[0].knobs


def test_a_recording_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text('{"workload": "matmul')
    with pytest.raises(LogReadError, match=r"cut\.json"):
        Recording.read(path)
