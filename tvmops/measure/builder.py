"""The builder worker: a candidate in, a shared library out."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from tvmops.measure.build import compile_object
from tvmops.measure.candidate import Candidate, Outcome
from tvmops.measure.link import link
from tvmops.schedules.template import Template


@dataclass(frozen=True)
class BuildRequest:
    candidate: Candidate
    path: Path  # of the shared library to write


def setup() -> None:
    """Nothing: importing this module imported the compiler."""


def handle(request: BuildRequest) -> Outcome:
    """Build one candidate; "built", or "compile" and why not."""
    candidate = request.candidate
    try:
        template = load_template(candidate.template)
        module = template.build(candidate.workload, candidate.target, candidate.config)
        object_path = request.path.with_suffix(".o")
        compile_object(module, candidate.target, object_path)
        link([object_path], request.path, bare=True)
        object_path.unlink()
    except MemoryError:
        return Outcome("memory", detail="the compiler ran out of memory")
    except Exception as error:
        return Outcome("compile", detail=f"{type(error).__name__}: {error}"[:500])
    return Outcome("built")


def load_template(path: str) -> Template:
    """Return the template at "module:class"."""
    module, _, name = path.partition(":")
    template = getattr(importlib.import_module(module), name)()
    if not isinstance(template, Template):
        raise TypeError(f"{path} is no Template")
    return template
