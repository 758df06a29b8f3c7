"""The builder worker: a candidate in, a shared library or a description of its code out."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from tvmops.machine import physical_cores
from tvmops.measure.build import build_library
from tvmops.measure.candidate import Candidate, Outcome
from tvmops.measure.failure import describe, tells_of_memory
from tvmops.measure.limits import limit_memory
from tvmops.schedules.template import Template

_MEMORY_SHARE = 0.8  # for all builders together


@dataclass(frozen=True)
class BuildRequest:
    candidate: Candidate
    path: Path  # of the shared library to write


@dataclass(frozen=True)
class DescribeRequest:
    candidate: Candidate


def setup() -> None:
    """Limit the memory; importing this module imported the compiler."""
    limit_memory(_MEMORY_SHARE / physical_cores())


def handle(request: BuildRequest | DescribeRequest) -> Outcome | dict[str, float] | None:
    """Answer either request."""
    return _build(request) if isinstance(request, BuildRequest) else _describe(request.candidate)


def _describe(candidate: Candidate) -> dict[str, float] | None:
    """Return the features of a candidate's code, or None where it has none."""
    try:
        template = load_template(candidate.template)
        return template.code_features(candidate.workload, candidate.target, candidate.config)
    except Exception:  # why, its trial will say, if there is one
        return None


def _build(request: BuildRequest) -> Outcome:
    """Build one candidate; "built", or "compile" or "memory" and why not."""
    candidate = request.candidate
    try:
        template = load_template(candidate.template)
        module = template.build(candidate.workload, candidate.target, candidate.config)
        build_library(module, candidate.target, request.path, checked=False, bare=True)
    except Exception as error:
        detail = describe(error)
        return Outcome("memory" if tells_of_memory(detail) else "compile", detail=detail)
    return Outcome("built")


def load_template(path: str) -> Template:
    """Return the template at "module:class"."""
    module, _, name = path.partition(":")
    template = getattr(importlib.import_module(module), name)()
    if not isinstance(template, Template):
        raise TypeError(f"{path} is no Template")
    return template
