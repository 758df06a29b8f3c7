"""Tuning on a machine without a compiler: make a bundle here, run it there, import what it found.

A round proposes what a session would, given the log; the next one knows what this one found.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import tvm

from tvmops.errors import ArgumentError, BundleError
from tvmops.measure.builders import Builders
from tvmops.measure.bundle.content import Bundle, Entry, Result, read_results
from tvmops.measure.candidate import Candidate
from tvmops.measure.scratch import Scratch
from tvmops.measure.toolchain import toolchain
from tvmops.records import LogWriter, Record, best_records, read_log
from tvmops.runtime.backend import CUDA_RUNTIME_FILE, RUNTIME_FILE
from tvmops.schedules import Template
from tvmops.schedules.sketch import Sketch
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.tuner.search import BATCH, Search
from tvmops.tuner.strategy import Trial, templates_of
from tvmops.tuner.transfer import experiences
from tvmops.tuner.winner import pick_winner
from tvmops.workloads import Workload

Proposal: TypeAlias = tuple[Workload, Template, Config]

_BEST_KNOWN = 2  # measured again beside the new ones
_SHARED = 8  # times the trials: configs that other workloads had built
_RUN = '''"""Verify and time these candidates. Needs numpy and apache-tvm-ffi, and torch for a GPU."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

try:
    from tvmops.measure.bundle.run import main
except ModuleNotFoundError as error:
    sys.exit(f"run.py: needs numpy and apache-tvm-ffi, and torch for a GPU; no module {error.name!r} is here")

sys.exit(main(FOLDER))
'''
_LEFT_OUT = ("schedules", "tuning_logs", "tuner", "library", "report", "cli", "__pycache__")


def make_bundle(
    work: Sequence[Workload],
    target: Target,
    path: str | os.PathLike[str],
    log: str | os.PathLike[str] | None = None,
    trials: int = 64,
    strategy: str = "auto",
    seed: int = 0,
) -> Bundle:
    """Compile the next `trials` candidates of each workload into a bundle.

    The default config is among them each time, to be compared with; so is the best that
    `log` knows. With no `trials`, that best is the only one, for a comparison with peers.

    Raises
    ------
    ArgumentError
        `path` is there already, or `trials` is negative.
    """
    folder = Path(path)
    if folder.exists():
        raise ArgumentError(argument="path", value=str(path), expected="a folder that does not exist yet")
    if trials < 0:
        raise ArgumentError(argument="trials", value=trials, expected="an integer of at least 0")
    past = read_log(log) if log and Path(log).is_file() else []
    proposals = [
        proposal
        for workload in dict.fromkeys(work)
        for proposal in _proposals(workload, target, past, trials, strategy, seed)
    ]
    proposals += _shared(proposals, target, past, _SHARED * trials)
    folder.mkdir(parents=True)
    (folder / "kernels").mkdir()
    libraries = _build(proposals, target, folder)
    entries = tuple(
        Entry(
            workload=str(workload),
            template=template.label,
            config=config.as_dict(),
            library=libraries[key],
            strategy=strategy,
            default=config == template.default(workload, target),
        )
        for workload, template, config in proposals
        if (key := _code(workload, target, template, config)) in libraries
    )
    bundle = Bundle(
        target=target.name,
        kind=target.kind,
        needs=target.needs,
        cache_bytes=target.l3_bytes,
        seed=seed,
        toolchain=toolchain(),
        entries=entries,
    )
    _carry(folder, target)
    bundle.write(folder)
    return bundle


def _proposals(
    workload: Workload,
    target: Target,
    past: Sequence[Record],
    trials: int,
    strategy: str,
    seed: int,
) -> list[Proposal]:
    """Return defaults, the best known, and up to `trials` configs that are not known."""
    templates = templates_of(strategy, workload, target)
    templates = [
        t for t in templates if not isinstance(t, Sketch)
    ] or templates  # traces are drawn in the dark
    if trials == 0:
        return [_best_known(workload, target, past, templates)]
    known = {
        (record.template, record.config_key): record
        for record in past
        if (record.workload, record.target, record.stage) == (str(workload), target.name, "search")
    }
    proposals: dict[Proposal, None] = {}
    for index, template in enumerate(templates):
        prior = experiences(past, template, target, excluded=[workload])
        search = Search.start(template, workload, target, strategy, seed, prior)
        own = {config: record for (label, config), record in known.items() if label == template.label}
        share = trials // len(templates) + (index < trials % len(templates))
        best = sorted((r for r in own.values() if r.ran), key=lambda record: record.fastest)[:_BEST_KNOWN]
        kept = [search.space.space.config(record.config) for record in best]
        fresh = _fresh(search, own, share)
        proposals |= {(workload, template, c): None for c in (search.space.default, *kept, *fresh)}
    return list(proposals)


def _best_known(
    workload: Workload, target: Target, past: Sequence[Record], templates: Sequence[Template]
) -> Proposal:
    """Return what a library would hold: the best of `past`, or the usual template's default."""
    by_label = {template.label: template for template in templates}
    fitting = [r for r in past if r.workload == str(workload) and r.template in by_label]
    best = best_records(fitting, [target.name]).get(str(workload))
    if best is None:
        return workload, templates[0], templates[0].default(workload, target)
    template = by_label[best.template]
    return workload, template, template.space(workload, target).config(best.config)


def _fresh(search: Search, known: Mapping[str, Record], count: int) -> list[Config]:
    """Ask the strategy for configs that are not known; it is told of those that are."""
    fresh: list[Config] = []
    while len(fresh) < count and (asked := search.strategy.ask(BATCH)):
        search.strategy.tell([Trial(c, known[c.key].fastest) for c in asked if c.key in known])
        fresh += [config for config in asked if config.key not in known]
    return fresh[:count]


def _shared(
    proposals: Sequence[Proposal], target: Target, past: Sequence[Record], most: int
) -> list[Proposal]:
    """Return what one workload can take of another's proposals, because their code is the same.

    That costs no compiling. The most promising by the template's estimate are taken, up to
    `most` a workload.
    """
    measured = {(r.workload, r.template, r.config_key) for r in past if r.target == target.name}
    pools: dict[tuple[Template, Workload], dict[Config, None]] = {}
    for workload, template, config in proposals:
        if template.kernel_workload(workload) != workload:
            pools.setdefault((template, template.kernel_workload(workload)), {})[config] = None
    own = set(proposals)
    taken: list[Proposal] = []
    for workload, template in dict.fromkeys((workload, template) for workload, template, _ in proposals):
        space = template.space(workload, target)
        fitting = [
            config
            for config in pools.get((template, template.kernel_workload(workload)), {})
            if (workload, template, config) not in own
            and (str(workload), template.label, config.key) not in measured
            and config in space
        ]
        fitting.sort(key=lambda config: template.estimate(workload, target, config))
        taken += [(workload, template, config) for config in fitting[:most]]
    return taken


def _code(workload: Workload, target: Target, template: Template, config: Config) -> Candidate:
    """Return what decides on a proposal's code; it is built once for all that share it."""
    return Candidate(template.kernel_workload(workload), target, template.path, config)


def _build(proposals: Sequence[Proposal], target: Target, folder: Path) -> dict[Candidate, str]:
    """Return the library of each candidate that could be built, relative to `folder`."""
    wanted = [_code(workload, target, template, config) for workload, template, config in proposals]
    libraries: dict[Candidate, str] = {}
    scratch = Scratch()
    with closing(scratch), closing(Builders(scratch.path)) as builders:
        for candidate, outcome in builders.build(wanted).items():
            if outcome.status == "built":
                name = f"kernels/k{len(libraries):04}.so"
                shutil.move(builders.library(candidate), folder / name)
                libraries[candidate] = name
    return libraries


def _carry(folder: Path, target: Target) -> None:
    """Copy what `run.py` needs into the bundle."""
    package = Path(__file__).parent.parent
    shutil.copytree(package, folder / "tvmops", ignore=shutil.ignore_patterns(*_LEFT_OUT))
    (folder / "run.py").write_text(_RUN)
    lib = Path(tvm.__file__).parent / "lib"
    for name in (RUNTIME_FILE, *([CUDA_RUNTIME_FILE] if target.kind == "cuda" else [])):
        shutil.copy(lib / name, folder / name)


def import_bundle(path: str | os.PathLike[str], log: str | os.PathLike[str]) -> int:
    """Append the results of the bundle at `path` to `log`, each once; return how many were new.

    Raises
    ------
    BundleError
        There is no bundle, or it was not run.
    """
    folder = Path(path)
    bundle, results = Bundle.read(folder), read_results(folder)
    if not results:
        raise BundleError(path=folder, detail="holds no results; run its run.py first")
    records = _records(bundle, results)
    present = {record.to_json() for record in read_log(log)} if Path(log).is_file() else set()
    new = [record for record in records if record.to_json() not in present]
    with LogWriter(log) as writer:
        writer.append(*new)
    return len(new)


def _records(bundle: Bundle, results: Sequence[Result]) -> list[Record]:
    """Return results of candidates as records; of finals the winner first."""
    entries = {(entry.workload, entry.key): entry for entry in bundle.entries}
    sustained = {(r.workload, r.key): r for r in results if (r.stage, r.status) == ("sustained", "ok")}
    records = [
        _record(bundle, entries[r.workload, r.key], r)
        for r in results
        if r.stage == "search" and (r.workload, r.key) in entries
    ]
    for workload in bundle.workloads():
        finals = [
            _sustained(_record(bundle, entries[r.workload, r.key], r), sustained.get((r.workload, r.key)))
            for r in results
            if r.stage == "final" and r.workload == workload and (r.workload, r.key) in entries
        ]
        defaults = [e for e in bundle.entries if e.workload == workload and e.default]
        default = (defaults[0].template, defaults[0].config_key) if defaults else ("", "")
        winner = pick_winner(finals, default)
        finals.sort(key=lambda record: (record is not winner, record.time, record.config_key))
        records += [replace(record, rank=rank) for rank, record in enumerate(finals)]
    return records


def _sustained(record: Record, result: Result | None) -> Record:
    if result is None:
        return record
    return replace(
        record, sustained_seconds=tuple(result.seconds), sustained_megahertz=tuple(result.megahertz)
    )


def _record(bundle: Bundle, entry: Entry, result: Result) -> Record:
    return Record(
        workload=entry.workload,
        target=bundle.target,
        machine=result.machine,
        template=entry.template,
        config=entry.config,
        status=result.status,
        stage=result.stage,
        seconds=tuple(result.seconds),
        error=result.error,
        detail=result.detail,
        strategy=entry.strategy,
        seed=bundle.seed,
        toolchain=bundle.toolchain,
        clock="cuda events" if bundle.kind == "cuda" else "perf_counter",
        when=result.when,
    )


__all__ = ["import_bundle", "make_bundle"]
