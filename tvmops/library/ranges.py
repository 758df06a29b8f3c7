"""Kernels for a range of shapes: the fewest that its records allow, and which of them answers where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from tvmops.buckets import Bucket
from tvmops.library.kernel import Kernel, build_kernel, function_name
from tvmops.machine import this_machine
from tvmops.manifest import KernelEntry
from tvmops.ops import op_of
from tvmops.records import Record
from tvmops.schedules import Template, templates_for
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.tuner.regret import Matrix, at_most, losses
from tvmops.workloads import Workload

REGRET = 0.05
MOST_KERNELS = 8  # of a range: each is code to load, and one more place to look for a fault


def serve_range(
    ranged: Workload, target: Target, records: Mapping[str, Record], regret: float
) -> tuple[list[Kernel], Bucket] | None:
    """Return kernels that lose at most `regret` at each measured shape, and which answers where.

    They lose more where else there would be more than `MOST_KERNELS`; the bucket says how much.

    Parameters
    ----------
    records
        All there are, by the digests of their lines.

    Returns
    -------
    None where no usable record is of this range.
    """
    measured = _measured(ranged, target, records)
    if not measured:
        return None
    table = _Table(ranged, target, measured)
    rows = at_most(table.times, regret, MOST_KERNELS)
    digests = {id(record): digest for digest, record in records.items()}
    kernels = [table.kernel(row, index, digests) for index, row in enumerate(rows)]
    return kernels, table.bucket(rows, tuple(kernel.entry.function for kernel in kernels))


_Choice = tuple[str, str]  # a template's label and the text of a config


def _measured(
    ranged: Workload, target: Target, records: Mapping[str, Record]
) -> dict[Workload, dict[_Choice, Record]]:
    """Return what is known at each shape of the range, all on one machine.

    Where leaders were compared turn by turn, their last comparison alone counts.
    """
    names, kernel = (target.name, *target.fallbacks), str(ranged.symbolic())
    own = [r for r in records.values() if r.workload == kernel and r.shape and r.ran and r.target in names]
    inside = [(shape, r) for r in own if ranged.holds(shape := Workload.parse(r.shape))]
    if not inside:
        return {}
    here = this_machine().fingerprint
    places = {(r.target, r.machine): names.index(r.target) for _, r in inside}
    place = min(places, key=lambda each: (places[each], each[1] != here, each))
    fits = _Fits(ranged, target, {shape for shape, _ in inside})
    found: dict[Workload, dict[_Choice, Record]] = {}
    finals: dict[Workload, dict[_Choice, Record]] = {}
    for shape, record in inside:
        if (record.target, record.machine) != place or record.stage == "verify" or not fits(record):
            continue
        if record.rank == 0:
            finals[shape] = {}
        kind = finals if record.stage == "final" else found
        kind.setdefault(shape, {})[record.template, record.config_key] = record
    return {**found, **finals}


class _Fits:
    """Says whether a template of today can build what a record holds."""

    def __init__(self, ranged: Workload, target: Target, shapes: set[Workload]) -> None:
        pattern = ranged.symbolic()
        self._spaces: dict[str, list[object]] = {}
        for shape in shapes:
            for template in templates_for(shape, target):
                if template.covers(pattern, target):
                    space = template.symbolic_space(template.space(shape, target), pattern)
                    self._spaces.setdefault(template.label, []).append(space)

    def __call__(self, record: Record) -> bool:
        config = Config(tuple(record.config.items()))
        return any(config in space for space in self._spaces.get(record.template, ()))  # type: ignore[operator]


@dataclass(frozen=True)
class _Table:
    """Choices by shapes."""

    ranged: Workload
    target: Target
    measured: Mapping[Workload, Mapping[_Choice, Record]]

    @cached_property
    def shapes(self) -> list[Workload]:
        names = list(self.ranged.ranges)
        return sorted(self.measured, key=lambda shape: shape.dims(*names))

    @cached_property
    def choices(self) -> list[_Choice]:
        return sorted({choice for known in self.measured.values() for choice in known})

    @cached_property
    def times(self) -> Matrix:
        columns = [self.measured[shape] for shape in self.shapes]
        return np.array(
            [[_seconds(c[choice]) if choice in c else np.inf for c in columns] for choice in self.choices]
        )

    def kernel(self, row: int, index: int, digests: Mapping[int, str]) -> Kernel:
        """Return the kernel of a row, the `index`-th of this range."""
        label, _ = self.choices[row]
        records = {
            s: known[self.choices[row]] for s, known in self.measured.items() if self.choices[row] in known
        }
        last = max(records.values(), key=lambda record: record.when)
        pattern = self.ranged.symbolic()
        template = next(t for t in templates_for(pattern, self.target) if t.label == label)
        config = Config(tuple(last.config.items()))
        entry = KernelEntry(
            function=function_name(f"{self.ranged} {index}"),
            workload=str(pattern),
            ranges={name: (each.low, each.high) for name, each in self.ranged.ranges.items()},
            template=label,
            config=config.as_dict(),
            seconds=None,
            error=max((record.error or 0.0 for record in records.values()), default=None),
            tolerance=max(_tolerance(template, shape, config) for shape in records),
            measured=f"{last.when} on {last.machine}",
            record=digests[id(last)],
        )
        return build_kernel(entry, template, pattern, self.target, config)

    def bucket(self, rows: Sequence[int], functions: tuple[str, ...]) -> Bucket:
        """Return the table of cells around each point of the grid of measured sizes."""
        chosen, lost = self.times[list(rows)], losses(self.times)[list(rows)]
        best = chosen.argmin(axis=0)
        names = list(self.ranged.ranges)
        samples = {name: tuple(sorted({shape.dims(name)[0] for shape in self.shapes})) for name in names}
        near = [self._nearest(sizes) for sizes in product(*samples.values())]
        return Bucket(
            workload=str(self.ranged),
            samples=samples,
            kernels=functions,
            cells=tuple(int(best[at]) for at in near),
            seconds=tuple(float(chosen[best[at], at]) for at in near),
            losses=tuple(float(lost[best[at], at]) for at in near),
        )

    def _nearest(self, sizes: tuple[int, ...]) -> int:
        """Return the column of the shape that is nearest to `sizes`, as ratios."""
        names = list(self.ranged.ranges)

        def distance(column: int) -> float:
            return sum(abs(math.log(a / b)) for a, b in zip(self.shapes[column].dims(*names), sizes))

        return min(range(len(self.shapes)), key=distance)


def _seconds(record: Record) -> float:
    return record.time if record.stage == "final" else record.fastest


def _tolerance(template: Template, shape: Workload, config: Config) -> float:
    own = template.tolerance(shape, config)
    return op_of(shape).tolerance(shape) if own is None else own
