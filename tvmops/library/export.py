"""`export`: from the best records to a library folder that needs no compiler."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmops.buckets import Bucket
from tvmops.errors import ArgumentError, KnobError, NoRecordError, NoTemplateError
from tvmops.library.kernel import Kernel, build_kernel, function_name
from tvmops.library.ranges import REGRET, serve_range
from tvmops.library.write import Part, check_place, write_library
from tvmops.machine import this_machine
from tvmops.manifest import KernelEntry
from tvmops.ops import op_of
from tvmops.records import Record, best_records, read_lines
from tvmops.schedules import GenericKernel, Template, templates_for
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Space
from tvmops.targets import Target
from tvmops.targets import target as target_named
from tvmops.warn import warn
from tvmops.workloads import Workload


def export(
    work: Sequence[Workload] | Workload,
    target: Target | str | Sequence[Target | str] = "native",
    logs: Sequence[str | os.PathLike[str]] = ("tuning.jsonl",),
    path: str | os.PathLike[str] = "library",
    regret: float = REGRET,
) -> Path:
    """Compile the best logged schedule of each workload into a library.

    A workload with ranges gets the fewest kernels that lose little anywhere in them. The library
    also gets shape-generic kernels for each op, so that a call of any shape is answered. It
    appears whole or not at all.

    Parameters
    ----------
    target
        A machine to build for, or several; a machine that loads the library takes the best of
        those that it can run. Records of each are taken: those made on this machine before
        those of others, and those of its fallbacks where it has none.
    logs
        Tuning logs to read.
    path
        The folder to write; one file, if its name ends in ".zip". An earlier library there is
        replaced; anything else is not.
    regret
        What kernels of a range may lose at any measured shape against the fastest config
        measured there: 0.05 is 5%.

    Raises
    ------
    NoRecordError
        A workload was never tuned for a target. Of several targets one is enough: for the
        others its generic kernels answer, which a warning says.
    """
    given = [target] if isinstance(target, str | Target) else target
    targets = {each.name: each for each in (target_named(t) if isinstance(t, str) else t for t in given)}
    work = [work] if isinstance(work, Workload) else list(dict.fromkeys(work))
    for name, value in (("work", work), ("target", targets)):
        if not value:
            raise ArgumentError(argument=name, value=[], expected=f"at least one {name}")
    if not regret >= 0:
        raise ArgumentError(argument="regret", value=regret, expected="a number of at least 0")
    folder = check_place(path)
    lines = [line for log in logs for line in read_lines(log)]
    records = {hashlib.sha256(text.encode()).hexdigest(): record for text, record in lines}
    found = {name: _Found.of(work, each, records, regret) for name, each in targets.items()}
    _check_all_tuned(work, targets, found, ", ".join(map(str, logs)))
    write_library(folder, [_part(work, targets[name], each) for name, each in found.items()])
    return folder


@dataclass(frozen=True)
class _Found:
    """What the logs hold of some workloads for one target."""

    best: Mapping[Workload, tuple[Record, str]]  # of a shape: its record and that record's digest
    ranges: Mapping[Workload, tuple[list[Kernel], Bucket]]

    @classmethod
    def of(
        cls, work: Sequence[Workload], target: Target, records: Mapping[str, Record], regret: float
    ) -> _Found:
        shapes = [workload for workload in work if not workload.ranges]
        usable = _usable(list(records.values()), shapes, target)
        best = best_records(usable, (target.name, *target.fallbacks), this_machine().fingerprint)
        digests = {id(record): digest for digest, record in records.items()}
        ranges = {w: serve_range(w, target, records, regret) for w in work if w.ranges}
        return cls(
            {w: (best[str(w)], digests[id(best[str(w)])]) for w in shapes if str(w) in best},
            {workload: served for workload, served in ranges.items() if served is not None},
        )

    @property
    def workloads(self) -> set[Workload]:
        return {*self.best, *self.ranges}


def _part(work: Sequence[Workload], target: Target, found: _Found) -> Part:
    tuned = [_tuned(w, target, *found.best[w]) for w in work if w in found.best]
    ranged = [kernel for kernels, _ in found.ranges.values() for kernel in kernels]
    patterns = dict.fromkeys(p for workload in work for p in _answerable(workload.generic(), target))
    generic = [kernel for pattern in patterns for kernel in _generic(pattern, target)]
    return Part(target, [*tuned, *ranged, *generic], [bucket for _, bucket in found.ranges.values()])


def _check_all_tuned(
    work: Sequence[Workload], targets: Mapping[str, Target], found: Mapping[str, _Found], logs: str
) -> None:
    tuned = {name: each.workloads for name, each in found.items()}
    for name, target in targets.items():
        missing = [workload for workload in work if workload not in tuned[name]]
        for workload in missing:
            if len(missing) == len(work) or not any(workload in other for other in tuned.values()):
                templates_for(workload, target)  # says so, if no template covers it
                raise NoRecordError(workload=workload, target=name, logs=logs)
            answers = (
                "a generic kernel answers" if _answers(workload.generic(), target) else "no kernel answers"
            )
            warn(f"'{workload}' was not tuned for target {name}; {answers} there")


def _usable(records: Sequence[Record], work: Sequence[Workload], target: Target) -> list[Record]:
    """Drop records of `work` that a template has outgrown or that `target` can't follow, and say so."""
    spaces = {
        (str(workload), template.label): template.space(workload, target)
        for workload in work
        for template in _templates(workload, target)
    }
    wanted, names = {str(workload) for workload in work}, (target.name, *target.fallbacks)
    usable, stale, alien = [], set(), 0
    for record in records:
        space = spaces.get((record.workload, record.template))
        if space is not None and _fits(record, space):
            usable.append(record)
        elif space is None and record.workload in wanted and record.target in names:
            stale.add(record.template)
        elif space is not None and record.target == target.name:
            alien += 1
    for template in sorted(stale):
        warn(f"records of template {template} are stale and not used; tune again")
    if alien:
        warn(f"{alien} records of target {target.name} are not used: made with other cores or caches")
    return usable


def _fits(record: Record, space: Space) -> bool:
    try:
        space.config(record.config)
    except KnobError:
        return False
    return True


def _tuned(workload: Workload, target: Target, record: Record, digest: str) -> Kernel:
    template = next(t for t in templates_for(workload, target) if t.label == record.template)
    config = template.space(workload, target).config(record.config)
    own = template.tolerance(workload, config)
    entry = KernelEntry(
        function=function_name(str(workload)),
        workload=str(workload),
        ranges={},
        template=template.label,
        config=config.as_dict(),
        seconds=None if record.is_modelled else record.time,
        error=record.error,
        tolerance=op_of(workload).tolerance(workload) if own is None else own,
        measured=f"{record.when} on {record.machine}",
        modelled={"cycles": record.cycles, **record.counts} if record.cycles is not None else {},
        record=digest,
    )
    return build_kernel(entry, template, workload, target, config)


def _answerable(pattern: Workload, target: Target) -> list[Workload]:
    """Return `pattern`, and that with plain weights where kernels do not take packed ones at all sizes.

    A call falls back on that with its weights unpacked.
    """
    fields = {name for name, _ in pattern.items}
    if "packed" not in fields or pattern["packed"] == PLAIN:
        return [pattern]
    offers = [generic for _, generic in _offers(pattern, target)]
    if any(not offer.ranges and not offer.multiples for offer in offers):
        return [pattern]
    plain = pattern.replace(packed=PLAIN)
    return [pattern, plain] if offers else [plain]


def _answers(pattern: Workload, target: Target) -> bool:
    """True if some generic kernel answers `pattern`, at some sizes at least."""
    return any(template.generic(pattern, target) for template in _templates(pattern, target))


def _templates(workload: Workload, target: Target) -> list[Template]:
    """Return the templates that cover `workload`; there may be none for one of several targets."""
    try:
        return templates_for(workload, target)
    except NoTemplateError:
        return []


def _generic(pattern: Workload, target: Target) -> list[Kernel]:
    kernels = []
    for index, (template, generic) in enumerate(_offers(pattern, target)):
        entry = KernelEntry(
            function=function_name(f"{pattern} generic {index}"),
            workload=str(pattern),
            ranges=dict(generic.ranges),
            template=template.label,
            config=generic.config.as_dict(),
            seconds=None,
            error=None,
            tolerance=None,
            measured="",
            multiples=dict(generic.multiples),
        )
        kernels.append(build_kernel(entry, template, pattern, target, generic.config))
    return kernels


def _offers(pattern: Workload, target: Target) -> Iterator[tuple[Template, GenericKernel]]:
    """Yield generic kernels of the templates in turn, until one answers every shape."""
    for template in _templates(pattern, target):
        for generic in template.generic(pattern, target):
            yield template, generic
            if not generic.ranges and not generic.multiples:
                return
