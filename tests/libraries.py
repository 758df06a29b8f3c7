"""Logs written by hand and libraries exported from them: no tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tvmops.library import export as library_export
from tvmops.library.export import export
from tvmops.machine import this_machine
from tvmops.records import LogWriter, Record
from tvmops.schedules import Template, templates_for
from tvmops.schedules.cpu.gemm import CpuGemm
from tvmops.targets import Target
from tvmops.workloads import Workload, workload

Shape = tuple[int, int, int]

TUNED: dict[Shape, str] = {
    (8, 8, 8): "tiny",
    (1, 64, 32): "one row",
    (17, 31, 61): "primes",
    (256, 256, 256): "large enough for all threads",
}


def matmul(m: int, n: int, k: int) -> Workload:
    return workload("matmul", m=m, n=n, k=k)


def default_record(work: Workload, target: Target, **changes: object) -> Record:
    """Return a record of the default config of the usual template, as if it had been measured."""
    record = record_by(templates_for(work, target)[0], work, target)
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def record_by(template: Template, work: Workload, target: Target) -> Record:
    """Return a record of the default config of `template`."""
    return Record(
        workload=str(work),
        target=target.name,
        machine=this_machine().fingerprint,
        template=template.label,
        config=template.default(work, target).as_dict(),
        status="ok",
        seconds=(2e-6, 1e-6, 3e-6),
        error=1e-7,
        when="2026-01-02T03:04:05+00:00",
    )


def write_log(path: Path, *records: Record) -> Path:
    with LogWriter(path) as writer:
        for record in records:
            writer.append(record)
    return path


@contextmanager
def one_generic_kernel() -> Iterator[None]:
    """Compile the widest generic kernel alone: libraries are made sooner."""
    every = CpuGemm.generic
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuGemm, "generic", lambda *given: every(*given)[-1:])
        yield


@contextmanager
def no_generic_kernels() -> Iterator[None]:
    """Compile none: libraries that answer what they were tuned for alone are made soonest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library_export, "_answerable", lambda pattern, target: [])
        yield


@contextmanager
def generic_kernels_for(work: Sequence[Workload]) -> Iterator[None]:
    """Compile those alone that answer some of `work`."""
    patterns, every = {each.generic() for each in work}, library_export._answerable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            library_export, "_answerable", lambda *given: [p for p in every(*given) if p in patterns]
        )
        yield


def exported(folder: Path, shapes: Sequence[Shape], target: Target) -> Path:
    """Export a library of `shapes` to `folder`."""
    work = [matmul(*shape) for shape in shapes]
    log = write_log(folder.with_suffix(".jsonl"), *(default_record(w, target) for w in work))
    return export(work, target, [log], folder)
