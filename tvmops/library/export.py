"""`export`: from the best records to a library folder that needs no compiler."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import IRModule

from tvmops.errors import ArgumentError, KnobError, NoRecordError
from tvmops.machine import this_machine
from tvmops.manifest import FILE, KernelEntry, Manifest
from tvmops.measure.build import build_library
from tvmops.measure.toolchain import toolchain
from tvmops.ops import op_of
from tvmops.records import Record, best_records, read_log
from tvmops.runtime.backend import CUDA_RUNTIME_FILE, RUNTIME_FILE
from tvmops.schedules import GenericKernel, Template, templates_for
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Space
from tvmops.targets import Target
from tvmops.targets import target as target_named
from tvmops.workloads import Workload


@dataclass(frozen=True)
class _Kernel:
    """One function of the library, before it is compiled."""

    entry: KernelEntry
    module: IRModule


def export(
    work: Sequence[Workload] | Workload,
    target: Target | str = "native",
    logs: Sequence[str | os.PathLike[str]] = ("tuning.jsonl",),
    path: str | os.PathLike[str] = "library",
) -> Path:
    """Compile the best logged schedule of each workload into a library folder.

    The folder also gets shape-generic kernels for each op, so that a call of any shape is
    answered. It appears whole or not at all.

    Parameters
    ----------
    target
        Whose records to take: those made on this machine before those of others, and those
        of its fallbacks where it has none.
    logs
        Tuning logs to read.
    path
        The folder to write. An earlier library there is replaced; anything else is not.

    Raises
    ------
    NoRecordError
        A workload was never tuned for this target.
    """
    target = target_named(target) if isinstance(target, str) else target
    work = [work] if isinstance(work, Workload) else list(dict.fromkeys(work))
    if not work:
        raise ArgumentError(argument="work", value=[], expected="at least one workload")
    folder = Path(path)
    if folder.exists() and not (folder / FILE).is_file():
        raise ArgumentError(argument="path", value=str(path), expected="a new folder, or an earlier library")
    kernels = _kernels(work, target, logs)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(staging, target, kernels)
        staging.chmod(0o755)
        earlier = staging.with_name(f"{staging.name}-earlier")
        if folder.exists():
            folder.rename(earlier)
        staging.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _kernels(
    work: Sequence[Workload], target: Target, logs: Sequence[str | os.PathLike[str]]
) -> list[_Kernel]:
    records = [record for log in logs for record in read_log(log)]
    usable, names = _usable(records, work, target), (target.name, *target.fallbacks)
    best = best_records(usable, names, this_machine().fingerprint)
    kernels = []
    for workload in work:
        if str(workload) not in best:
            raise NoRecordError(workload=workload, target=target.name, logs=", ".join(map(str, logs)))
        kernels.append(_tuned(workload, target, best[str(workload)]))
    for pattern in dict.fromkeys(_answerable(workload.generic(), target) for workload in work):
        kernels.extend(_generic(pattern, target))
    return kernels


def _usable(records: Sequence[Record], work: Sequence[Workload], target: Target) -> list[Record]:
    """Drop records of `work` that a template has outgrown or that `target` can't follow, and say so."""
    spaces = {
        (str(workload), template.label): template.space(workload, target)
        for workload in work
        for template in templates_for(workload, target)
    }
    wanted = {str(workload) for workload in work}
    usable, stale, alien = [], set(), 0
    for record in records:
        space = spaces.get((record.workload, record.template))
        if space is not None and _fits(record, space):
            usable.append(record)
        elif space is None and record.workload in wanted:
            stale.add(record.template)
        elif space is not None and record.target == target.name:
            alien += 1
    for template in sorted(stale):
        warnings.warn(f"records of template {template} are stale and not used; tune again", stacklevel=4)
    if alien:
        warnings.warn(
            f"{alien} records of target {target.name} are not used: made with other cores or caches",
            stacklevel=4,
        )
    return usable


def _fits(record: Record, space: Space) -> bool:
    try:
        space.config(record.config)
    except KnobError:
        return False
    return True


def _tuned(workload: Workload, target: Target, record: Record) -> _Kernel:
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


def _generic(pattern: Workload, target: Target) -> list[_Kernel]:
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
) -> _Kernel:
    function = template.build(workload, target, config)["main"].with_attr("global_symbol", entry.function)
    parallel = "parallel" in function.script()  # as a loop's kind, or as a sketch's annotation
    return _Kernel(dataclasses.replace(entry, parallel=parallel), IRModule({entry.function: function}))


def _name(text: str) -> str:
    """Return a C identifier that says what the kernel is for."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text.replace("dtype=", "").replace("=", ""))


def _write(folder: Path, target: Target, kernels: Sequence[_Kernel]) -> None:
    merged = IRModule({name: function for k in kernels for name, function in k.module.functions.items()})
    linked = folder / "kernels.so"
    build_library(merged, target, linked)
    # A name of its own: a process that holds an earlier module of this folder would get that again.
    module = linked.rename(folder / f"kernels-{_digest(linked)[:12]}.so").name
    runtimes = [RUNTIME_FILE, *([CUDA_RUNTIME_FILE] if target.kind == "cuda" else [])]
    for name in runtimes:
        shutil.copy(Path(tvm.__file__).parent / "lib" / name, folder / name)
    manifest = Manifest(
        target=target.name,
        arch=target.arch,
        needs=target.needs,
        module=module,
        runtime=RUNTIME_FILE,
        kernels=tuple(kernel.entry for kernel in kernels),
        files={name: _digest(folder / name) for name in (module, *runtimes)},
        toolchain=toolchain(),
    )
    manifest.write(folder)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
