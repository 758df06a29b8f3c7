"""`export`: from the best records to a library folder that needs no compiler."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tvm import IRModule

from tvmops.errors import ArgumentError, KnobError, NoRecordError
from tvmops.library.write import Kernel, Part, check_place, write_library
from tvmops.machine import this_machine
from tvmops.manifest import KernelEntry
from tvmops.ops import op_of
from tvmops.records import Record, best_records, read_lines
from tvmops.schedules import GenericKernel, Template, templates_for
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Space
from tvmops.targets import Target
from tvmops.targets import target as target_named
from tvmops.warn import warn
from tvmops.workloads import Workload


def export(
    work: Sequence[Workload] | Workload,
    target: Target | str | Sequence[Target | str] = "native",
    logs: Sequence[str | os.PathLike[str]] = ("tuning.jsonl",),
    path: str | os.PathLike[str] = "library",
) -> Path:
    """Compile the best logged schedule of each workload into a library.

    The library also gets shape-generic kernels for each op, so that a call of any shape is
    answered. It appears whole or not at all.

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
    folder = check_place(path)
    lines = [line for log in logs for line in read_lines(log)]
    found = {name: _best(work, each, lines) for name, each in targets.items()}
    _check_all_tuned(work, found, ", ".join(map(str, logs)))
    digests = {id(record): hashlib.sha256(text.encode()).hexdigest() for text, record in lines}
    parts = []
    for name, best in found.items():
        tuned = [
            _tuned(workload, targets[name], best[workload], digests[id(best[workload])])
            for workload in work
            if workload in best
        ]
        patterns = dict.fromkeys(_answerable(workload.generic(), targets[name]) for workload in work)
        generic = [kernel for pattern in patterns for kernel in _generic(pattern, targets[name])]
        parts.append(Part(targets[name], [*tuned, *generic]))
    write_library(folder, parts)
    return folder


def _best(
    work: Sequence[Workload], target: Target, lines: Sequence[tuple[str, Record]]
) -> dict[Workload, Record]:
    """Return the best record of each workload that was tuned for `target`."""
    usable, names = _usable([record for _, record in lines], work, target), (target.name, *target.fallbacks)
    best = best_records(usable, names, this_machine().fingerprint)
    return {workload: best[str(workload)] for workload in work if str(workload) in best}


def _check_all_tuned(
    work: Sequence[Workload], found: Mapping[str, Mapping[Workload, Record]], logs: str
) -> None:
    for target, best in found.items():
        missing = [workload for workload in work if workload not in best]
        for workload in missing:
            if len(missing) == len(work) or not any(workload in other for other in found.values()):
                raise NoRecordError(workload=workload, target=target, logs=logs)
            warn(f"'{workload}' was not tuned for target {target}; a generic kernel answers there")


def _usable(records: Sequence[Record], work: Sequence[Workload], target: Target) -> list[Record]:
    """Drop records of `work` that a template has outgrown or that `target` can't follow, and say so."""
    spaces = {
        (str(workload), template.label): template.space(workload, target)
        for workload in work
        for template in templates_for(workload, target)
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
        function=_name(str(workload)),
        workload=str(workload),
        ranges={},
        template=template.label,
        config=config.as_dict(),
        seconds=record.time,
        error=record.error,
        tolerance=op_of(workload).tolerance(workload) if own is None else own,
        measured=f"{record.when} on {record.machine}",
        record=digest,
    )
    return _build(entry, template, workload, target, config)


def _answerable(pattern: Workload, target: Target) -> Workload:
    """Return `pattern`; where no kernel takes weights packed so at any size, that with plain ones.

    A call falls back on it with its weights unpacked.
    """
    fields = {name for name, _ in pattern.items}
    if "packed" not in fields or pattern["packed"] == PLAIN:
        return pattern
    offers = (template.generic(pattern, target) for template in templates_for(pattern, target))
    return pattern if any(offers) else pattern.replace(packed=PLAIN)


def _generic(pattern: Workload, target: Target) -> list[Kernel]:
    kernels = []
    for index, (template, generic) in enumerate(_offers(pattern, target)):
        entry = KernelEntry(
            function=_name(f"{pattern} generic {index}"),
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
        kernels.append(_build(entry, template, pattern, target, generic.config))
    return kernels


def _offers(pattern: Workload, target: Target) -> Iterator[tuple[Template, GenericKernel]]:
    """Yield generic kernels of the templates in turn, until one answers every shape."""
    for template in templates_for(pattern, target):
        for generic in template.generic(pattern, target):
            yield template, generic
            if not generic.ranges and not generic.multiples:
                return


def _build(
    entry: KernelEntry, template: Template, workload: Workload, target: Target, config: Config
) -> Kernel:
    function = template.build(workload, target, config)["main"].with_attr("global_symbol", entry.function)
    parallel = "parallel" in function.script()  # as a loop's kind, or as a sketch's annotation
    return Kernel(dataclasses.replace(entry, parallel=parallel), IRModule({entry.function: function}))


def _name(text: str) -> str:
    """Return a C identifier that says what the kernel is for."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text.replace("dtype=", "").replace("=", ""))
