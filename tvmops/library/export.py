"""`export`: from the best records to a library folder that needs no compiler."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import IRModule

from tvmops.errors import ArgumentError, NoRecordError
from tvmops.manifest import FILE, KernelEntry, Manifest
from tvmops.measure.build import compile_object
from tvmops.measure.link import link
from tvmops.ops import op_of
from tvmops.records import Record, best_records, read_log
from tvmops.runtime.backend import RUNTIME_FILE
from tvmops.schedules import Template, templates_for
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.targets import target as target_named
from tvmops.tuner.session import toolchain
from tvmops.workloads import Workload

_MODULE_FILE = "kernels.so"


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
        Whose records to take; those of its fallbacks serve where it has none.
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
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _kernels(
    work: Sequence[Workload], target: Target, logs: Sequence[str | os.PathLike[str]]
) -> list[_Kernel]:
    records = [record for log in logs for record in read_log(log)]
    best = best_records(_current(records, work, target), (target.name, *target.fallbacks))
    kernels = []
    for workload in work:
        if str(workload) not in best:
            raise NoRecordError(workload=workload, target=target.name, logs=", ".join(map(str, logs)))
        kernels.append(_tuned(workload, target, best[str(workload)]))
    for pattern in dict.fromkeys(workload.generic() for workload in work):
        kernels.extend(_generic(pattern, target))
    return kernels


def _current(records: Sequence[Record], work: Sequence[Workload], target: Target) -> list[Record]:
    """Drop records of `work` that a template made which has changed since, and say so once."""
    labels = {str(w): {t.label for t in templates_for(w, target)} for w in work}
    current = [r for r in records if r.template in labels.get(r.workload, ())]
    stale = {r.template for r in records if r.workload in labels} - {r.template for r in current}
    for template in sorted(stale):
        warnings.warn(f"records of template {template} are stale and not used; tune again", stacklevel=4)
    return current


def _tuned(workload: Workload, target: Target, record: Record) -> _Kernel:
    template = next(t for t in templates_for(workload, target) if t.label == record.template)
    config = template.space(workload, target).config(record.config)
    entry = KernelEntry(
        function=_name(str(workload)),
        workload=str(workload),
        ranges={},
        template=template.label,
        config=config.as_dict(),
        seconds=record.time,
        error=record.error,
        tolerance=op_of(workload).tolerance(workload),
        measured=f"{record.when} on {record.machine}",
    )
    return _Kernel(entry, _build(template, workload, target, config, entry.function))


def _generic(pattern: Workload, target: Target) -> list[_Kernel]:
    template = templates_for(pattern, target)[0]
    kernels = []
    for index, generic in enumerate(template.generic(pattern, target)):
        entry = KernelEntry(
            function=_name(f"{pattern.op} {pattern['dtype']} generic {index}"),
            workload=str(pattern),
            ranges=dict(generic.ranges),
            template=template.label,
            config=generic.config.as_dict(),
            seconds=None,
            error=None,
            tolerance=None,
            measured="",
        )
        kernels.append(_Kernel(entry, _build(template, pattern, target, generic.config, entry.function)))
    return kernels


def _build(template: Template, workload: Workload, target: Target, config: Config, name: str) -> IRModule:
    function = template.build(workload, target, config)["main"]
    return IRModule({name: function.with_attr("global_symbol", name)})


def _name(text: str) -> str:
    """Return a C identifier that says what the kernel is for."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text.replace("dtype=", "").replace("=", ""))


def _write(folder: Path, target: Target, kernels: Sequence[_Kernel]) -> None:
    merged = IRModule({name: function for k in kernels for name, function in k.module.functions.items()})
    object_path = folder / "kernels.o"
    compile_object(merged, target, object_path)
    link([object_path], folder / _MODULE_FILE)
    object_path.unlink()
    shutil.copy(Path(tvm.__file__).parent / "lib" / RUNTIME_FILE, folder / RUNTIME_FILE)
    manifest = Manifest(
        target=target.name,
        arch=target.arch,
        needs=target.needs,
        module=_MODULE_FILE,
        runtime=RUNTIME_FILE,
        kernels=tuple(kernel.entry for kernel in kernels),
        files={name: _digest(folder / name) for name in (_MODULE_FILE, RUNTIME_FILE)},
        toolchain=toolchain(),
    )
    manifest.write(folder)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
