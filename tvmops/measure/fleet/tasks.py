"""Tasks for a device as JSON, their files named as a device keeps them; and what comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvmops.measure.candidate import Outcome, Plan, Problem
from tvmops.measure.fleet.wire import Message
from tvmops.measure.runner import RunRequest, TimeRequest

_FILES = ("libraries", "inputs", "expected")


def task_of(request: RunRequest | TimeRequest, runtime: Path, name: Callable[[Path], str]) -> Message:
    """Return `request` as a message; `runtime` is what its libraries call."""
    if isinstance(request, TimeRequest):
        asked: Message = {
            "libraries": [request.library],
            "time": {"elements": request.elements, "samples": request.samples},
        }
    else:
        problem = request.problem
        asked = {
            "libraries": request.libraries,
            "inputs": problem.inputs,
            "expected": problem.expected,
            "problem": {
                "scalars": problem.scalars,
                "output_dtypes": problem.output_dtypes,
                "tolerance": problem.tolerance,
            },
            "plan": dataclasses.asdict(request.plan),
            "compare": request.compare,
        }
    files = {kind: [name(path) for path in asked[kind]] for kind in _FILES if kind in asked}
    return {**asked, **files, "runtime": name(runtime)}


def files_of(task: Message) -> list[str]:
    """Return the names of all files that a task needs."""
    return [task["runtime"], *(name for kind in _FILES for name in task.get(kind, ()))]


def request_of(task: Message, path: Callable[[str], Path]) -> RunRequest | TimeRequest:
    """Return the request that was sent as `task`."""
    libraries = tuple(map(path, task["libraries"]))
    if "time" in task:
        return TimeRequest(libraries[0], tuple(task["time"]["elements"]), task["time"]["samples"])
    said = task["problem"]
    problem = Problem(
        inputs=tuple(map(path, task["inputs"])),
        scalars=tuple(said["scalars"]),
        expected=tuple(map(path, task["expected"])),
        output_dtypes=tuple(said["output_dtypes"]),
        tolerance=said["tolerance"],
    )
    return RunRequest(libraries, problem, Plan(**task["plan"]), task["compare"])


def outcomes_of(answer: Sequence[dict[str, Any]]) -> list[Outcome]:
    """Return outcomes that were sent as dicts of their fields."""
    return [
        Outcome(**{**each, "seconds": tuple(each["seconds"]), "cold_seconds": tuple(each["cold_seconds"])})
        for each in answer
    ]
