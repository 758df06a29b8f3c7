"""One search: what it takes from a log, when it gives up, whom it sends to the final."""

from __future__ import annotations

import dataclasses
import math

import pytest

from tests.libraries import default_record, matmul
from tvmops.measure.peak import Peak
from tvmops.records import Record
from tvmops.schedules import Template
from tvmops.schedules.cpu.gemm import CpuGemm
from tvmops.schedules.sketch import Sketch
from tvmops.space import Config
from tvmops.targets import Target, target
from tvmops.tuner.job import FINALISTS, Job, Proposal
from tvmops.tuner.search import BATCH, Search
from tvmops.workloads import Workload

WORK = matmul(64, 64, 64)
PEAK = Peak(flops=1e11, bandwidth=1e10)
ROOFLINE = 2 * 64**3 / 1e11
TEMPLATE = CpuGemm()
TRIALS = 64


@pytest.fixture
def here() -> Target:
    return target("native")


def started(here: Target, *templates: Template, peak: Peak = PEAK) -> Job:
    searches = [Search.start(t, WORK, here, "random", seed=0) for t in templates or (TEMPLATE,)]
    return Job.start(WORK, here, searches, seed=0, peak=peak)


@pytest.fixture
def job(here: Target) -> Job:
    return started(here)


def ran(job: Job, proposal: Proposal, *seconds: float, **changes: object) -> Record:
    label, config = proposal.template.label, proposal.config.as_dict()
    record = default_record(WORK, job.target, template=label, config=config, seconds=seconds)
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def search(job: Job, times: list[float]) -> list[Proposal]:
    """Ask for as many configs as there are times, and take these as their results."""
    configs = job.ask(len(times), TRIALS)
    assert len(configs) == len(times)
    job.take({config: ran(job, config, time) for config, time in zip(configs, times)})
    return configs


def test_the_roofline_is_the_larger_of_arithmetic_and_memory(here: Target) -> None:
    for peak, expected, bound in [
        (PEAK, ROOFLINE, False),
        (Peak(flops=1e15, bandwidth=1e10), 3 * 4 * 64**2 / 1e10, True),
    ]:
        job = started(here, peak=peak)
        assert job.roofline == pytest.approx(expected)
        assert job.memory_bound is bound


def test_before_anything_ran(job: Job) -> None:
    assert job.best is None
    assert job.best_time == math.inf
    plan = job.plan()
    assert plan.give_up_above == math.inf
    assert math.isfinite(plan.timeout)
    status = job.status()
    assert (status.trials, status.failures, status.best, status.state) == (0, 0, math.inf, "waiting")


def test_the_best_is_the_fastest_that_ran(job: Job) -> None:
    configs = search(job, [3e-5, 1e-5, 2e-5])
    assert job.best is not None
    assert job.best.config == configs[1].config.as_dict()
    failed = job.ask(1, TRIALS)[0]
    job.take({failed: ran(job, failed, 1e-9, status="wrong")})
    assert job.best_time == 1e-5
    assert (job.status().trials, job.status().failures) == (4, 1)
    assert job.status().default == 3e-5


def test_what_was_given_up_is_no_best_where_anything_was_timed(job: Job) -> None:
    slow, timed = job.ask(2, TRIALS)
    job.take({slow: ran(job, slow, 1e-6, status="slow")})
    assert job.best_time == 1e-6
    job.take({timed: ran(job, timed, 2e-6)})
    assert job.best_time == 2e-6


def test_trials_without_a_better_config_are_counted(job: Job) -> None:
    search(job, [2e-5])
    assert job.stale_trials == 0
    search(job, [3e-5, 4e-5])
    assert job.stale_trials == 2
    search(job, [1.999e-5])  # within noise
    assert job.stale_trials == 3
    search(job, [5e-5, 1e-5])
    assert job.stale_trials == 0


def test_limits_follow_from_the_best_so_far(job: Job) -> None:
    search(job, [1e-3])
    loose = job.plan()
    search(job, [1e-5])
    tight = job.plan()
    assert 1e-3 < loose.give_up_above < 1e-2
    assert 1e-5 < tight.give_up_above < loose.give_up_above
    assert tight.timeout < loose.timeout


def test_the_roofline_ends_a_search(job: Job) -> None:
    search(job, [2 * ROOFLINE])
    assert not job.at_roofline()
    search(job, [1.01 * ROOFLINE])
    assert job.at_roofline()
    assert job.status().roofline_share == pytest.approx(1 / 1.01)


@pytest.mark.parametrize(
    ("spec", "name", "times"),
    [
        ("matmul m=64 n=64 k=64", "znver5", 1),
        ("matmul m=64 n=64 k=64 dtype=bfloat16", "znver5", 2),  # vdpbf16ps
        ("matmul m=64 n=64 k=64 dtype=bfloat16", "x86-64-v3", 1),
        ("matmul_int8 m=64 n=64 k=64", "znver5", 4),  # vpdpbusd
        ("matmul_int8 m=64 n=64 k=64", "x86-64-v3", 2),  # vpmaddwd
        ("attention batch=1 heads=1 kv_heads=1 q_len=64 kv_len=64 head_dim=64 dtype=bfloat16", "znver5", 2),
        ("conv2d n=1 h=14 w=14 ci=64 co=64 kh=3 kw=3 padding=1", "znver5", 4),  # F(4x4, 3x3)
        ("conv2d n=1 h=14 w=14 ci=64 co=64 kh=3 kw=3 padding=1 stride=2", "znver5", 1),
        ("conv2d n=1 h=14 w=14 ci=64 co=64 kh=3 kw=3 padding=1 groups=2", "znver5", 1),
    ],
)
def test_a_search_goes_on_below_the_roofline_of_plain_float32(spec: str, name: str, times: int) -> None:
    """It ends at the least time of the instructions and algorithms that the target has."""
    work = Workload.parse(spec)
    job = Job.start(work, target(name), [], seed=0, peak=Peak(flops=1e9, bandwidth=1e12))
    assert job.roofline / job.least == pytest.approx(times)


def test_the_final_holds_the_fastest_few_and_the_default(job: Job) -> None:
    times = [9e-5, *(index * 1e-5 for index in (5, 3, 1, 4, 2, 6))]
    configs = search(job, times)
    by_time = [config for _, config in sorted(zip(times, configs), key=lambda item: item[0])]
    assert job.finalists() == [*by_time[:FINALISTS], job.default]


def test_a_default_among_the_leaders_is_there_once(job: Job) -> None:
    configs = search(job, [1e-5, 2e-5])
    assert job.finalists() == configs
    assert configs[0] == job.default


def test_a_default_that_failed_is_not_compared(job: Job) -> None:
    default, other = job.ask(2, TRIALS)
    job.take({default: ran(job, default, status="crash"), other: ran(job, other, 1e-5)})
    assert job.finalists() == [other]


def test_equal_times_are_told_apart_by_a_fixed_order(job: Job, here: Target) -> None:
    configs = search(job, [1e-5] * 8)
    turned = started(here)
    turned.take({config: ran(job, config, 1e-5) for config in reversed(configs)})
    assert job.finalists() == turned.finalists()


def test_only_results_of_this_very_search_are_remembered(job: Job, here: Target) -> None:
    config = job.default
    mine = ran(job, config, 1e-5)
    others = [
        default_record(matmul(32, 64, 64), here),
        dataclasses.replace(mine, target="another"),
        dataclasses.replace(mine, machine="another"),
        dataclasses.replace(mine, template="cpu.gemm@0"),
    ]
    job.remember(others)
    assert not job.known
    job.remember([*others, mine])
    assert job.known == {config.key: mine}


def test_a_result_is_found_whatever_the_order_of_knobs_in_the_log(job: Job) -> None:
    config = job.default
    job.remember([ran(job, Proposal(TEMPLATE, Config(config.config.items[::-1])), 1e-5)])
    assert config.key in job.known


def test_finals_are_kept_apart(job: Job) -> None:
    final = ran(job, job.default, 1e-5, stage="final")
    job.remember([final])
    assert not job.known
    assert job.finals == {job.default.key: final}


def test_a_candidate_names_its_template(job: Job) -> None:
    candidate = job.candidate(job.default)
    assert candidate.template == "tvmops.schedules.cpu.gemm:CpuGemm"
    assert (candidate.workload, candidate.config) == (WORK, job.default.config)


class Twin(CpuGemm):
    """Another template, whose configs look the same."""

    name = "cpu.twin"


class Pair(CpuGemm):
    name = "cpu.pair"


def test_templates_take_turns_until_one_falls_behind(here: Target) -> None:
    """After b batches a template may be 1 + 1/b times as slow as the leader."""
    twin, pair = Twin(), Pair()
    job = started(here, TEMPLATE, twin, pair)
    speeds = {TEMPLATE.name: 1e-5, twin.name: 1.4e-5, pair.name: 3e-5}
    turns = []
    for _ in range(8):
        batch = job.ask(BATCH, 1000)
        turns.append(batch[0].template.name)
        job.take({proposal: ran(job, proposal, speeds[turns[-1]]) for proposal in batch})
    gemm = TEMPLATE.name
    assert turns == [gemm, twin.name, pair.name, gemm, twin.name, gemm, twin.name, gemm]


def test_equal_configs_of_two_templates_are_two_proposals(here: Target) -> None:
    job = started(here, TEMPLATE, Twin())
    (first,) = job.ask(1, TRIALS)
    job.take({first: ran(job, first, 2e-5)})
    (second,) = job.ask(1, TRIALS)
    job.take({second: ran(job, second, 1e-5)})
    assert first.config == second.config
    assert job.best is not None
    assert job.best.template == "cpu.twin@1"
    assert job.finalists() == [second, first]
    job.remember(ran(job, p, 1e-5, stage="final", rank=rank) for rank, p in enumerate([second, first]))
    assert set(job.finals) == {first.key, second.key}


def test_a_template_of_which_nothing_runs_is_left(here: Target) -> None:
    job = started(here, TEMPLATE, Twin())
    for status in ("ok", "crash", "ok", "ok"):
        batch = job.ask(BATCH, 1000)
        assert batch[0].template.name == ("cpu.twin" if status == "crash" else "cpu.gemm")
        job.take({p: ran(job, p, 1e-5, status=status) for p in batch})


def test_sketches_have_what_is_left_where_the_best_is_far_from_the_roofline(here: Target) -> None:
    for time, expected in [(10 * ROOFLINE, "sketch"), (1.2 * ROOFLINE, "cpu.gemm")]:
        job = started(here, TEMPLATE, Sketch())
        for _ in range(TRIALS // 2 // BATCH):
            batch = job.ask(BATCH, TRIALS)
            assert {p.template.name for p in batch} == {"cpu.gemm"}
            job.take({p: ran(job, p, time) for p in batch})
        assert job.ask(1, TRIALS)[0].template.name == expected


def test_the_only_trial_is_the_default(here: Target) -> None:
    job = started(here, TEMPLATE, Sketch())
    assert job.ask(BATCH, 1)[0] == job.default
