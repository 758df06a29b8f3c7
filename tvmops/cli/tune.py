"""`tvmops tune`: search schedules on this machine, watched."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tvmops.cli.parser import Commands
from tvmops.cli.watch import JsonLines, LiveTable, PlainLines, Watcher
from tvmops.errors import ArgumentError
from tvmops.suites import read_specs, read_suite
from tvmops.targets import target
from tvmops.workloads import Workload


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "tune",
        help="search fast schedules on this machine",
        description="Search fast schedules for workloads on this machine. Every trial is in the log "
        "before the next starts; the same command goes on where an earlier one stopped.",
        example='tvmops tune "matmul m=1024 n=1024 k=1024 dtype=float32" --log my.jsonl --seconds 60',
    )
    parser.add_specs(least=0)
    parser.add_argument(
        "--from-misses",
        action="append",
        default=[],
        metavar="FILE",
        help="tune what a library's generic kernels had to answer: a file that `save_misses` wrote",
    )
    parser.add_target()
    parser.add_argument(
        "--measure",
        default="local",
        metavar="HOW",
        help="local: on this machine; model: modelled cycles of one core of an ARM target; "
        "fleet: on all devices that a tracker has for the target (%(default)s)",
    )
    parser.add_tracker(required=False)
    parser.add_argument("--log", default="tuning.jsonl", metavar="FILE", help="appended to (%(default)s)")
    parser.add_argument(
        "--trials",
        type=int,
        default=64,
        metavar="N",
        help="most configs to measure a workload, or a shape of a range (%(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="budget for the whole run; no limit if not given"
    )
    parser.add_argument(
        "--strategy",
        default="auto",
        metavar="NAME",
        help="how to search; an unknown name lists those there are (%(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="fixes the sequence of proposals (%(default)s)"
    )
    parser.add_json()
    parser.set_defaults(run=run)


def _work(arguments: argparse.Namespace) -> dict[Workload, float]:
    """Return what to tune, and how much each counts."""
    weights = Counter(read_specs(arguments.specs))
    for path in arguments.from_misses:
        weights.update(read_suite(path))
    if not weights:
        raise ArgumentError(argument="SPEC", value=arguments.specs, expected="a workload, or misses of some")
    return dict(weights)


def run(arguments: argparse.Namespace) -> int:
    weights, machine = _work(arguments), target(arguments.target)  # before the slow import
    watcher: Watcher = JsonLines() if arguments.json else LiveTable() if sys.stdout.isatty() else PlainLines()
    try:
        with watcher:
            from tvmops.tuner.session import tune

            winners = tune(
                list(weights),
                machine,
                arguments.log,
                trials=arguments.trials,
                seconds=arguments.seconds,
                strategy=arguments.strategy,
                seed=arguments.seed,
                observer=watcher,
                weights=weights,
                measure=arguments.measure,
                tracker=arguments.tracker,
                token_file=arguments.token_file,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{arguments.log} holds every finished trial") from None
    watcher.conclude()
    return 0 if len(winners) == len(weights) else 1
