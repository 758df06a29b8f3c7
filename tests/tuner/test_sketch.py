"""Sketch search: MetaSchedule proposes, a config is its trace, and a trace is all it takes."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import te
from tvm.s_tir import meta_schedule

import tvmops
from tvmops.errors import KnobError, NoTemplateError
from tvmops.library.export import export
from tvmops.machine import this_machine
from tvmops.measure.build import compile_object
from tvmops.measure.candidate import Candidate, Outcome, Plan
from tvmops.measure.link import link
from tvmops.measure.local import LocalMeasurer
from tvmops.measure.peak import Peak
from tvmops.ops import _OPS, op_of
from tvmops.ops.base import Array, Exact, Op
from tvmops.records import read_log
from tvmops.runtime.backend import load_backend, load_kernels
from tvmops.schedules import templates_for
from tvmops.schedules.sketch import Sketch, config_of, replay, tensor_program, tune_context
from tvmops.signatures import SIGNATURES, Dim, Field, Signature, TensorSpec
from tvmops.space import Config
from tvmops.tuner.session import tune
from tvmops.tuner.strategy import SearchSpace, Trial, make_strategy, templates_of
from tvmops.tuner.strategy.sketch import SketchStrategy
from tvmops.workloads import Workload, workload

TARGET = tvmops.target("native")
SKETCH = Sketch()
W = workload("matmul", m=48, n=64, k=32)
PEAK = Peak(flops=1e15, bandwidth=1e15)  # out of reach, so that no search ends there


class GatedSignature(Signature):
    fields = (Field("rows", Dim()), Field("cols", Dim()))

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        return (TensorSpec("x", workload.dims("rows", "cols"), "float32"),)

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        return (TensorSpec("out", workload.dims("rows", "cols"), "float32"),)


class Gated(Op):
    """out[i, j] = x[i, j] * (sum over j of x[i, j]): two stages, and no template."""

    name = "gated"

    def expression(self, workload: Workload) -> list[Any]:
        rows, cols = workload.dims("rows", "cols")
        x = te.placeholder((rows, cols), "float32", name="x")
        r = te.reduce_axis((0, cols), name="r")
        total = te.compute((rows,), lambda i: te.sum(x[i, r], axis=r), name="total")
        return [x, te.compute((rows, cols), lambda i, j: x[i, j] * total[i], name="out")]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        x = inputs[0].astype(np.float64)
        return (x * x.sum(axis=1, keepdims=True),)

    def flops(self, workload: Workload) -> int:
        rows, cols = workload.dims("rows", "cols")
        return 2 * rows * cols

    def tolerance(self, workload: Workload) -> float:
        return 1e-4


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Workload:
    """A workload of an op that tvmops does not have."""
    monkeypatch.setitem(_OPS, "gated", Gated())
    monkeypatch.setitem(SIGNATURES, "gated", GatedSignature())
    return workload("gated", rows=33, cols=70)


def search(w: Workload = W, seed: int = 0) -> SketchStrategy:
    space, default = SKETCH.space(w, TARGET), SKETCH.default(w, TARGET)
    strategy = make_strategy("sketch", SearchSpace(space, default, lambda c: 0.0, lambda c: {}), seed)
    assert isinstance(strategy, SketchStrategy)
    return strategy


def faked(config: Config) -> float:
    """A time that depends on the config alone; infinite for one in eight."""
    digest = hashlib.sha256(config.key.encode()).digest()
    return math.inf if digest[0] < 32 else 1e-6 * (1 + digest[1])


def proposals(strategy: SketchStrategy, count: int, batch: int) -> list[Config]:
    asked: list[Config] = []
    while len(asked) < count:
        configs = strategy.ask(min(batch, count - len(asked)))
        strategy.tell([Trial(config, faked(config)) for config in configs])
        asked += configs
    return asked


def kernel(w: Workload, config: Config, folder: Path) -> Any:
    compile_object(SKETCH.build(w, TARGET, config), TARGET, folder / "k.o")
    link([folder / "k.o"], folder / "k.so")
    load_backend()
    return load_kernels(folder / "k.so")["main"]


# --- traces ---------------------------------------------------------------------------


def test_a_trace_rebuilds_the_program_that_was_proposed() -> None:
    module = tensor_program(W)
    evolution = meta_schedule.search_strategy.EvolutionarySearch(population_size=64)
    context = tune_context(module, TARGET, 3, evolution)
    context.pre_tuning(64, 16)
    for candidate in context.generate_measure_candidates():
        config = SKETCH.space(W, TARGET).config(config_of(candidate.sch.trace).as_dict())
        rebuilt = replay(tensor_program(W), config)
        tvm.ir.assert_structural_equal(rebuilt.mod, candidate.sch.mod)
        assert config_of(rebuilt.trace) == config
        assert "[0,16,64,256]" in str(config["trace"])  # steps to unroll: not TVM's own 512


def test_a_trace_compiles_to_the_same_bytes(tmp_path: Path) -> None:
    config = search().ask(4)[-1]
    for name in ("one.o", "two.o"):
        compile_object(SKETCH.build(W, TARGET, config), TARGET, tmp_path / name)
    assert (tmp_path / "one.o").read_bytes() == (tmp_path / "two.o").read_bytes()


def test_the_default_is_parallel_and_vectorised() -> None:
    default = SKETCH.default(W, TARGET)
    assert default in SKETCH.space(W, TARGET)
    text = SKETCH.build(W, TARGET, default)["main"].script()
    assert "T.parallel" in text
    assert "T.vectorized" in text


class Total(Gated):
    """out[] = sum over i of x[i]: no axis to run in parallel or in vectors."""

    name = "total"

    def expression(self, workload: Workload) -> list[Any]:
        (length,) = workload.dims("rows")
        x = te.placeholder((length,), "float32", name="x")
        r = te.reduce_axis((0, length), name="r")
        return [x, te.compute((), lambda: te.sum(x[r], axis=r), name="out")]


def test_a_block_that_the_default_does_not_fit_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_OPS, "total", Total())
    w = Workload("total", (("rows", 7),))
    assert replay(tensor_program(w), SKETCH.default(w, TARGET)).mod["main"].script().count("T.parallel") == 0


@pytest.mark.parametrize("knobs", [{}, {"trace": 3}, {"mr": 6}, {"trace": "[]", "mr": 6}])
def test_a_config_that_is_no_trace_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(KnobError, match="sketch"):
        SKETCH.space(W, TARGET).config(knobs)


# --- proposals ------------------------------------------------------------------------


def test_a_seed_fixes_the_proposals_whatever_the_batches() -> None:
    first = proposals(search(seed=7), 40, batch=8)  # beyond the warm-up of the cost model
    assert proposals(search(seed=7), 40, batch=5) == first
    assert len(set(first)) == len(first)
    assert first[0] == SKETCH.default(W, TARGET)


def test_another_seed_proposes_other_configs() -> None:
    assert set(proposals(search(seed=1), 16, 8)[1:]).isdisjoint(proposals(search(seed=2), 16, 8)[1:])


def test_results_change_what_is_proposed() -> None:
    told, untold = search(), search()
    for strategy in (told, untold):
        first = strategy.ask(17)  # the default and the first generation
    told.tell([Trial(config, faked(config)) for config in first])
    untold.tell([Trial(config, 1e-3) for config in first])
    assert told.ask(16) != untold.ask(16)


def test_it_survives_when_nothing_ran() -> None:
    strategy = search()
    for _ in range(2):
        configs = strategy.ask(17)
        assert len(configs) >= 16
        strategy.tell([Trial(config, math.inf) for config in configs])


def test_a_tiny_space_ends() -> None:
    strategy = search(workload("matmul", m=1, n=1, k=1))
    asked: list[Config] = []
    while configs := strategy.ask(64):
        asked += configs
        strategy.tell([Trial(config, 1e-6) for config in configs])
    assert len(set(asked)) == len(asked) < 500


def test_it_neither_imports_intrinsics_nor_litters(tmp_path: Path) -> None:
    script = """
import sys, tvmops
from tvmops.schedules.sketch import Sketch
from tvmops.tuner.strategy import SearchSpace, Trial, make_strategy
w, t, s = tvmops.workload("matmul", m=16, n=32, k=16), tvmops.target("native"), Sketch()
search = make_strategy("sketch", SearchSpace(s.space(w, t), s.default(w, t), None, None), 0)
search.tell([Trial(c, 1e-6) for c in search.ask(17)])
assert search.ask(1)  # by the cost model
assert not any(name.startswith("tvm.s_tir.tensor_intrin") for name in sys.modules)
"""
    root = Path(tvmops.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# --- kernels --------------------------------------------------------------------------


def test_kernels_take_arrays_at_any_element(tmp_path: Path) -> None:
    m, n, k = W.dims("m", "n", "k")
    run = kernel(W, SKETCH.default(W, TARGET), tmp_path)
    rng = np.random.default_rng(0)
    memory = np.zeros(m * k + k * n + m * n + 64, np.float32)
    start = next(i for i in range(16) if memory[i:].ctypes.data % 64 == 4)
    a, b, c = np.split(memory[start : start + m * k + k * n + m * n], [m * k, m * k + k * n])
    a, b, c = a.reshape(m, k), b.reshape(k, n), c.reshape(m, n)
    a[...], b[...], c[...] = rng.random((m, k)), rng.random((k, n)), np.nan
    run(a, b, c)
    np.testing.assert_allclose(c, a.astype(np.float64) @ b, rtol=1e-5)


def test_kernels_refuse_an_output_that_overlaps_an_input(tmp_path: Path) -> None:
    m, n, k = W.dims("m", "n", "k")
    run = kernel(W, SKETCH.default(W, TARGET), tmp_path)
    memory = np.ones(m * n + m * k, np.float32)
    b = np.ones((k, n), np.float32)
    a, c = memory[: m * k].reshape(m, k), memory[m * k - 1 : m * k - 1 + m * n].reshape(m, n)
    with pytest.raises(ValueError, match="argument 'out' shares memory with 'a'"):
        run(a, b, c)
    assert (memory == 1).all()


def test_an_op_without_a_template_is_searched(gated: Workload, tmp_path: Path) -> None:
    assert [template.label for template in templates_for(gated, TARGET)] == [SKETCH.label]
    op = Gated()
    (x,) = op.random_inputs(gated, seed=1)
    for index, config in enumerate(search(gated).ask(6)):
        folder = tmp_path / str(index)
        folder.mkdir()
        out = np.full(x.shape, np.nan, np.float32)
        kernel(gated, config, folder)(x, out)
        np.testing.assert_allclose(out, op.reference(gated, x)[0], atol=op.tolerance(gated))


# --- runs -----------------------------------------------------------------------------


def test_each_strategy_searches_its_own_kind_of_schedule(gated: Workload) -> None:
    def labels(strategy: str, w: Workload) -> list[str]:
        return [template.label for template in templates_of(strategy, w, TARGET)]

    template = templates_for(W, TARGET)[0].label
    assert labels("auto", W) == [template, SKETCH.label]
    assert labels("random", W) == labels("template", W) == [template]
    assert labels("sketch", W) == labels("sketch", gated) == labels("auto", gated) == [SKETCH.label]
    with pytest.raises(NoTemplateError):
        labels("xgboost", gated)


class Faked:
    """Measures nothing: a config of `fast` takes a microsecond, another a millisecond and more."""

    def __init__(self, fast: str) -> None:
        self.fast = fast
        self.measured = 0
        self.machine = this_machine().fingerprint

    def seconds(self, candidate: Candidate) -> float:
        return 1e-6 if candidate.template.endswith(self.fast) else 1e-3 * (1 + len(candidate.config.key) % 7)

    def measure(self, candidates: Sequence[Candidate], plan: Plan) -> Iterator[Outcome]:
        self.measured += len(candidates)
        return iter([Outcome("ok", (self.seconds(candidate),) * 3) for candidate in candidates])

    def compare(self, candidates: Sequence[Candidate], plan: Plan) -> list[Outcome]:
        return [Outcome("ok", (self.seconds(candidate),) * 3) for candidate in candidates]

    def describe(self, candidates: Sequence[Candidate]) -> list[dict[str, float] | None]:
        return [None for _ in candidates]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("fast", "winner"), [("Sketch", "sketch"), ("CpuGemm", "cpu.gemm")])
def test_auto_asks_the_sketch_for_a_second_opinion(fast: str, winner: str, tmp_path: Path) -> None:
    log, measurer = tmp_path / "log.jsonl", Faked(fast)
    for _ in range(2):  # the second time, all is in the log
        won = tune(W, TARGET, log, trials=24, strategy="auto", measurer=measurer, peak=PEAK)[W]
        assert won.template.partition("@")[0] == winner
        assert measurer.measured == 24
    searched = [record.template for record in read_log(log) if record.stage == "search"]
    assert searched == [templates_for(W, TARGET)[0].label] * 16 + [SKETCH.label] * 8


def test_auto_leaves_a_good_template_alone(tmp_path: Path) -> None:
    log, measurer = tmp_path / "log.jsonl", Faked("CpuGemm")
    near = Peak(flops=op_of(W).flops(W) / 0.8e-6, bandwidth=1e15)
    tune(W, TARGET, log, trials=24, strategy="auto", measurer=measurer, peak=near)
    assert not any(record.template == SKETCH.label for record in read_log(log))


class Counting(LocalMeasurer):
    """Counts what is measured."""

    measured = 0

    def measure(self, candidates: Any, plan: Any) -> Any:
        self.measured += len(candidates)
        return super().measure(candidates, plan)


def test_a_run_is_resumed_and_its_winner_exported(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    measurer = Counting(TARGET)
    try:

        def run(trials: int) -> int:
            before = measurer.measured
            tune(W, TARGET, log, trials=trials, strategy="sketch", seed=3, measurer=measurer, peak=PEAK)
            return measurer.measured - before

        assert run(6) == 6
        assert run(6) == 0
        assert run(10) == 4
    finally:
        measurer.close()
    records = [record for record in read_log(log) if record.stage == "search"]
    assert len({record.config_key for record in records}) == len(records) == 10
    assert all(record.ran and record.template == SKETCH.label for record in records)

    lib = tvmops.load(export(W, TARGET, [log], tmp_path / "lib"))
    a, b = (
        np.random.default_rng(i).random(shape, np.float32) for i, shape in enumerate([(48, 32), (32, 64)])
    )
    np.testing.assert_allclose(lib.matmul(a, b), a.astype(np.float64) @ b, rtol=1e-5)
    explanation = lib.explain("matmul", a, b)
    assert (explanation.tier, explanation.kernel.template) == ("exact", SKETCH.label)
    with pytest.warns(UserWarning, match="generic kernel"):  # a template's
        assert lib.matmul(a[:7], b).shape == (7, 64)


def test_an_expression_that_the_rules_do_not_fit_has_its_default_alone() -> None:
    """Attention: a stage that divides by the sums of another can't be moved under its tiles."""
    attention = workload("attention", batch=1, heads=2, kv_heads=2, q_len=8, kv_len=8, head_dim=8)
    strategy = search(attention)
    with pytest.warns(
        UserWarning, match="sketch rules do not fit this expression: Error message: .*producer"
    ):
        assert strategy.ask(8) == [SKETCH.default(attention, TARGET)]
    assert strategy.ask(8) == []
