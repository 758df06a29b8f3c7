"""`tvmops bundle`: tune a machine that has neither a compiler nor a network."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from tvmops.cli.parser import Commands
from tvmops.cli.text import columns, duration
from tvmops.suites import read_specs
from tvmops.targets import target


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "bundle",
        help="measure on a machine without a compiler",
        description="`make` compiles candidates into a folder. Copied to the machine that it is for, "
        "`python FOLDER/run.py` verifies and times them there; it needs numpy and apache-tvm-ffi, and "
        "torch for a GPU. `import` adds what it found to a log, which the next `make` learns from.",
        example='tvmops bundle make "matmul m=4096 n=4096 k=4096 dtype=bfloat16" --target nvidia-h200 -o b',
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    make = actions.add_parser(
        "make",
        help="compile candidates into a folder",
        example='tvmops bundle make "matmul m=64 n=64 k=64 dtype=float16" --target nvidia-h200 -o b',
    )
    make.add_specs()
    make.add_target()
    make.add_argument("--log", metavar="FILE", help="what earlier rounds found")
    make.add_argument(
        "--trials",
        type=int,
        default=64,
        metavar="N",
        help="new configs a workload (%(default)s); 0: only the best known, against peers",
    )
    make.add_argument("--strategy", default="auto", metavar="NAME", help="how to search (%(default)s)")
    make.add_argument("--seed", type=int, default=0, metavar="N", help="fixes the proposals (%(default)s)")
    make.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the bundle to write")
    make.set_defaults(run=_make)
    taken = actions.add_parser(
        "import", help="add results to a log", example="tvmops bundle import b --log h200.jsonl"
    )
    taken.add_argument("folder", metavar="FOLDER", help="a bundle that was run")
    taken.add_argument("--log", required=True, metavar="FILE", help="appended to")
    taken.set_defaults(run=_import)
    show = actions.add_parser(
        "show", help="show the results against those of peers", example="tvmops bundle show b"
    )
    show.add_argument("folder", metavar="FOLDER", help="a bundle that was run")
    show.add_specs(least=0)  # of all, where none is named
    show.set_defaults(run=_show)


def _make(arguments: argparse.Namespace) -> int:
    work, machine = list(read_specs(arguments.specs)), target(arguments.target)  # before the slow import
    from tvmops.tuner.bundles import make_bundle

    bundle = make_bundle(
        work,
        machine,
        arguments.output,
        arguments.log,
        trials=arguments.trials,
        strategy=arguments.strategy,
        seed=arguments.seed,
    )
    libraries = len({entry.library for entry in bundle.entries})
    print(
        f"{arguments.output}: {len(bundle.entries)} candidates in {libraries} libraries for {bundle.target}"
    )
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from tvmops.tuner.bundles import import_bundle

    count = import_bundle(arguments.folder, arguments.log)
    print(f"{arguments.log}: {count} new records")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from tvmops.report.finals import finals, geometric_mean

    work = {str(workload) for workload in read_specs(arguments.specs)}
    found = [f for f in finals(Path(arguments.folder)) if not work or f.workload in work]
    head = ["workload", "time", "times as fast", "as the best peer", "of a copy's rate"]
    rows = [
        [f.workload, duration(f.seconds), _ratio(f.speedup), f.peer or "-", _ratio(f.of_copy)] for f in found
    ]
    if any(math.isfinite(f.sustained_seconds) for f in found):
        head += ["sustained", "times as fast", "MHz", "of the peer"]
        for row, f in zip(rows, found):
            row += [duration(f.sustained_seconds) if math.isfinite(f.sustained_seconds) else "-"]
            row += [_ratio(f.sustained_speedup), _whole(f.megahertz), _whole(f.peer_megahertz)]
    print(columns(head, rows))
    for name, ratios in (
        ("times as fast as the best peer", [f.speedup for f in found]),
        ("the same, sustained", [f.sustained_speedup for f in found]),
        ("of a copy's rate", [f.of_copy for f in found]),
    ):
        known = [ratio for ratio in ratios if math.isfinite(ratio)]
        if known:
            print(
                f"{name}: geometric mean {geometric_mean(known):.3f}, worst {min(known):.3f} of {len(known)}"
            )
    return 0


def _whole(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else "-"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
