"""Runs under emulation, without the compiler: load libraries and run kernels on arrays from files.

    .arm/python -m tests.arm.emulated JOB

JOB is a pickled `Job`. Each answer is printed at once, so that a crash shows what it was in.
"""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tvmops
from tvmops.errors import LibraryTargetError
from tvmops.machine import this_machine
from tvmops.measure.arguments import Arguments
from tvmops.measure.candidate import Problem
from tvmops.runtime.backend import load_kernels
from tvmops.runtime.load import Library


@dataclass(frozen=True)
class Job:
    """What to do in one process, whose start takes seconds."""

    run: tuple[Path, ...] = ()  # libraries to load and to check
    refuse: tuple[Path, ...] = ()  # libraries that this CPU can't run
    choose: tuple[Path, ...] = ()  # libraries of which to say what is taken
    problems: tuple[tuple[str, Problem], ...] = ()  # by workload; for each of the libraries to run


def main(job: Job) -> None:
    """Do `job`."""
    say(machine=sorted(this_machine().features))
    for path in job.refuse:
        try:
            tvmops.load(path)
        except LibraryTargetError as error:
            say(refused=path.name, message=str(error), mapped=is_mapped(path))
    for path in job.choose:
        say(library=path.name, chosen=[each.target for each in tvmops.load(path).variants.taken.values()])
    for path in job.run:
        library = tvmops.load(path)
        for text, problem in job.problems:
            check(library, text, problem)
        call(library)


def check(library: Library, text: str, problem: Problem) -> None:
    """Run the kernel that answers `text` between guards, as a candidate is before it is timed."""
    explanation = library.explain(text)
    (variant,) = library.variants.taken.values()
    say(library=library.path.name, starts=text)
    kernel = load_kernels((library.path / variant.module).resolve())[explanation.kernel.function]
    arguments = Arguments(problem)
    arguments.poison()
    kernel(*arguments.all)
    error, complaint = arguments.judge()
    say(library=library.path.name, workload=text, tier=explanation.tier, error=error, complaint=complaint)


def call(library: Library) -> None:
    """Call the library as a user does."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((19, 23), "float32"), rng.standard_normal((23, 29), "float32")
    error = np.abs(library.matmul(a, b) - a.astype("float64") @ b).max()
    say(library=library.path.name, called="matmul", error=float(error), mapped=is_mapped(library.path))


def is_mapped(folder: Path) -> bool:
    """True if this process has loaded code from a folder."""
    return str(folder.resolve()) in Path("/proc/self/maps").read_text()


def say(**answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # shapes that were not tuned
    main(pickle.loads(Path(sys.argv[1]).read_bytes()))
