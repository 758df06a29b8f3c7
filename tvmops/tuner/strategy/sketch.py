"""Sketch search: MetaSchedule's rules, evolution and cost model propose; we measure.

A generation is drawn at once and handed out in batches. The next is drawn when all of it was,
knowing what became of it; so proposals do not depend on the size of batches.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray
from tvm import s_tir
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule
from tvm.s_tir.meta_schedule.cost_model import PyCostModel, XGBModel
from tvm.s_tir.meta_schedule.cost_model.xgb_model import XGBConfig

from tvmops.machine import physical_cores
from tvmops.schedules.sketch import TraceSpace, config_of, needs_workspace, replay, tune_context
from tvmops.space import Config
from tvmops.tuner.strategy.base import SearchSpace, Strategy, Trial

_GENERATION = 16  # configs that are drawn at once
_POPULATION = 64  # traces that evolve into them
_WARM_UP = 16  # results before the cost model says anything
_ROUNDS = 2  # of evolution; twice as many cost as much again and find nothing better
_CHANCE = 0.1  # share of a generation that is left to it
_EMPTY_DRAWS = 5  # generations without a new config, after which a space counts as exhausted
_UNLIMITED = 1 << 30


class SketchStrategy(Strategy):
    name = "sketch"

    def __init__(self, search: SearchSpace, seed: int) -> None:
        super().__init__(search, seed)
        assert isinstance(search.space, TraceSpace)
        self._space = search.space
        self._state: _Evolution | None = None  # made when first asked for more than the default
        self._is_barren = False  # the rules do not fit this expression
        self._drawn: list[Config] = []  # and not proposed yet
        self._news: list[Trial] = []  # that the cost model does not know yet

    def tell(self, trials: list[Trial]) -> None:  # type: ignore[override]
        super().tell(trials)
        # The default was not drawn: it has no decisions that evolution could vary.
        self._news.extend(trial for trial in trials if trial.config != self.search.default)

    def _propose(self, count: int) -> list[Config]:
        for _ in range(_EMPTY_DRAWS):
            if self._drawn or self._is_barren:
                break
            self._drawn = self._generation()
        batch, self._drawn = self._drawn[:count], self._drawn[count:]
        return batch

    def _generation(self) -> list[Config]:
        if self._state is None:
            try:
                self._state = _Evolution(self._space, self.seed)
            except s_tir.ScheduleError as error:
                self._is_barren = True
                warnings.warn(f"sketch rules do not fit this expression: {_reason(error)}", stacklevel=2)
                return []
        news, self._news = self._news, []
        self._state.learn(news)
        return [config for config in self._state.next_generation() if config not in self._proposed]


class _Evolution:
    """MetaSchedule's search: its population, its model, and what it was told."""

    def __init__(self, space: TraceSpace, seed: int) -> None:
        self._module, self._target = space.module, space.target
        evolution = meta_schedule.search_strategy.EvolutionarySearch(
            population_size=_POPULATION,
            init_min_unmeasured=_POPULATION // 2,
            genetic_num_iters=_ROUNDS,
            eps_greedy=_CHANCE,
        )
        self._context = tune_context(self._module, self._target, seed, evolution)
        self._model = SeededModel(
            seed, tune_context(self._module, self._target, seed, threads=physical_cores())
        )
        self._database = meta_schedule.database.MemoryDatabase()
        self._context.pre_tuning(
            _UNLIMITED, _GENERATION, None, database=self._database, cost_model=self._model
        )
        self._workload = self._database.commit_workload(self._module)

    def next_generation(self) -> list[Config]:
        candidates = self._context.generate_measure_candidates() or []
        return [
            config_of(candidate.sch.trace)
            for candidate in candidates
            if not needs_workspace(candidate.sch, self._target)
        ]

    def learn(self, trials: Sequence[Trial]) -> None:
        """Take results, all of traces that it drew."""
        if not trials:
            return
        candidates = [self._candidate(trial.config) for trial in trials]
        results = [_result(trial) for trial in trials]
        self._model.update(self._context, candidates, results)
        for candidate, result in zip(candidates, results):
            if result.run_secs:
                self._database.commit_tuning_record(
                    meta_schedule.database.TuningRecord(
                        candidate.sch.trace,
                        self._workload,
                        result.run_secs,
                        self._context.target,
                        candidate.args_info,
                    )
                )
        self._context.notify_runner_results(candidates, results)

    def _candidate(self, config: Config) -> meta_schedule.MeasureCandidate:
        schedule: s_tir.Schedule = replay(self._module, config)
        arguments = meta_schedule.arg_info.ArgInfo.from_entry_func(schedule.mod, remove_preproc=True)
        return meta_schedule.MeasureCandidate(schedule, arguments)


def _reason(error: Exception) -> str:
    """Return what TVM says is wrong, without the program that it prints before."""
    text = str(error)
    start = max(text.rfind("Error message:"), 0)
    return " ".join(text[start:].split())[:200]


@derived_object
class SeededModel(PyCostModel):  # type: ignore[misc]
    """MetaSchedule's XGBoost model over features of the lowered code, with its chance seeded.

    `context` is one of several threads: extracting features takes longer than all else here,
    and their order has no part in it.
    """

    def __init__(self, seed: int, context: meta_schedule.TuneContext) -> None:
        super().__init__()
        self._context = context
        self._model = XGBModel(num_warmup_samples=_WARM_UP, config=XGBConfig(seed=seed, nthread=1))
        self._rng = np.random.default_rng(seed)

    def update(self, context: Any, candidates: list[Any], results: list[Any]) -> None:
        with _one_thread():
            self._model.update(self._context, candidates, results)

    def predict(self, context: Any, candidates: list[Any]) -> NDArray[np.float64]:
        if self._model.data_size < _WARM_UP:  # its own guesses come from a generator we can't seed
            return self._rng.random(len(candidates))
        with _one_thread():
            scores: NDArray[np.float64] = self._model.predict(self._context, candidates)
        return scores


def _one_thread() -> AbstractContextManager[None]:
    """Let xgboost make matrices on one thread: more wait for each other longer than they work."""
    context: AbstractContextManager[None] = xgboost.config_context(nthread=1)
    return context


def _result(trial: Trial) -> meta_schedule.runner.RunnerResult:
    if math.isfinite(trial.seconds):
        return meta_schedule.runner.RunnerResult([trial.seconds], None)
    return meta_schedule.runner.RunnerResult(None, "did not run")
