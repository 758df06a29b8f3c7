"""`tvmops export`: the best logged schedules become a library folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from tvmops.cli.parser import Commands
from tvmops.manifest import Manifest
from tvmops.suites import read_specs
from tvmops.targets import target


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a library of tuned kernels",
        description="Compile the best logged schedule of each workload into a library folder. "
        "An earlier library at OUTPUT is replaced; anything else there is not.",
        example='tvmops export "matmul m=1024 n=1024 k=1024" --log my.jsonl -o libmine',
    )
    parser.add_specs()
    parser.add_target()
    parser.add_argument(
        "--log", action="append", required=True, metavar="FILE", help="a tuning log; may be given again"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the library to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    work, machine = list(read_specs(arguments.specs)), target(arguments.target)  # before the slow import
    from tvmops.library.export import export

    folder = export(work, machine, arguments.log, arguments.output)
    manifest = Manifest.read(folder)
    tuned = sum(kernel.seconds is not None for kernel in manifest.kernels)
    size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
    generic = len(manifest.kernels) - tuned
    print(f"{folder}: {tuned} tuned and {generic} generic kernels for {manifest.target}, {size:.1f} MB")
    return 0
