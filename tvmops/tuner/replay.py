"""The replay lab: complete recorded spaces, in which strategies run with no hardware and no noise.

A recording holds the time of every config of a (restricted) space of one workload. It is made
once, on a quiet machine, by `scripts/record_space`. A strategy that runs in it is judged by
the trials it needs to come close to the space's best.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmops.errors import LogReadError
from tvmops.schedules import templates_for
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target, target
from tvmops.tuner.cost_model import Experience
from tvmops.tuner.strategy import SearchSpace, Trial, make_strategy
from tvmops.workloads import Workload

LAB = Path(__file__).parent.parent / "tuning_logs" / "lab"
_MACHINE_FIELDS = ("cores", "l1_bytes", "l2_bytes", "l3_bytes")


@dataclass(frozen=True)
class Recording:
    """Every config of a space, and its seconds (infinite where it failed)."""

    workload: Workload
    target: Target
    machine: str
    knobs: tuple[Knob, ...]
    seconds: dict[Config, float]

    @property
    def best(self) -> float:
        return min(self.seconds.values())

    def search_space(self, prior: Sequence[Experience] = ()) -> SearchSpace:
        """Return the recorded space as strategies see spaces; features are computed once."""
        template = templates_for(self.workload, self.target)[0]
        space = Space(template.name, self.knobs, self.seconds.__contains__)
        wanted = template.default(self.workload, self.target)
        default = wanted if wanted in self.seconds else min(self.seconds, key=lambda c: _distance(c, wanted))
        estimate = functools.cache(lambda c: template.estimate(self.workload, self.target, c))
        return SearchSpace(space, default, estimate, self._features, prior, self._code)

    @functools.cached_property
    def _features(self) -> Callable[[Config], dict[str, float]]:
        template = templates_for(self.workload, self.target)[0]
        return functools.cache(lambda config: template.features(self.workload, self.target, config))

    @functools.cached_property
    def _code(self) -> Callable[[list[Config]], list[dict[str, float] | None]]:
        template = templates_for(self.workload, self.target)[0]
        of = functools.cache(lambda config: template.code_features(self.workload, self.target, config))
        return lambda configs: [of(config) for config in configs]

    def write(self, path: Path) -> None:
        """Write compactly: a config is the positions of its values among the knobs' values."""
        rows = [
            [*(knob.values.index(value) for knob, (_, value) in zip(self.knobs, config.items)), f"{t:.4g}"]
            for config, t in self.seconds.items()
        ]
        table = {
            "workload": str(self.workload),
            "target": {"name": self.target.name, **{f: getattr(self.target, f) for f in _MACHINE_FIELDS}},
            "machine": self.machine,
            "knobs": {knob.name: knob.values for knob in self.knobs},
        }
        head = json.dumps(table, indent=1)[:-2]
        body = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{head},\n "configs": [\n{body}\n ]\n}}\n')

    @classmethod
    def read(cls, path: Path) -> Recording:
        try:
            table: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise LogReadError(path=path, detail=str(error)) from None
        machine = dict(table["target"])
        knobs = tuple(Knob(name, tuple(values)) for name, values in table["knobs"].items())
        seconds = {
            Config(tuple((knob.name, knob.values[at]) for knob, at in zip(knobs, row))): float(row[-1])
            for row in table["configs"]
        }
        described = dataclasses.replace(target(machine.pop("name")), **machine)
        return cls(Workload.parse(table["workload"]), described, table["machine"], knobs, seconds)


def recordings() -> list[Recording]:
    """Return all recordings that ship with the package."""
    return [Recording.read(path) for path in sorted(LAB.glob("*.json"))]


def experience_of(recording: Recording, trials: int = 64, seed: int = 0) -> Experience:
    """Return what a random search of so many trials learned of a recorded workload."""
    search = recording.search_space()
    configs = random.Random(seed).sample(list(recording.seconds), trials)
    return Experience([search.features(c) for c in configs], [recording.seconds[c] for c in configs])


def trials_to_reach(
    recording: Recording, search: SearchSpace, strategy: str, seed: int, within: float = 0.05, batch: int = 8
) -> int:
    """Count the trials that `strategy` needs to come within a share of the recorded best."""
    run = make_strategy(strategy, search, seed)
    goal = recording.best * (1 + within)
    trials = 0
    while configs := run.ask(batch):
        for config in configs:
            trials += 1
            if recording.seconds[config] <= goal:
                return trials
        run.tell([Trial(config, recording.seconds[config]) for config in configs])
    return trials


def _distance(config: Config, wanted: Config) -> int:
    return sum(a != b for a, b in zip(config.items, wanted.items))
