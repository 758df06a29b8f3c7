"""`tvmops export`: the best logged schedules become a library folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from tvmops.cli.parser import Commands
from tvmops.manifest import Manifest, Variant
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
    parser.add_targets()
    parser.add_argument(
        "--log", action="append", required=True, metavar="FILE", help="a tuning log; may be given again"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the library to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    work = list(read_specs(arguments.specs))  # before the slow import
    machines = [target(name) for name in arguments.target or ["native"]]
    from tvmops.library.export import export

    folder = export(work, machines, arguments.log, arguments.output)
    manifest = Manifest.read(folder)
    size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
    print(f"{folder}: {'; '.join(map(_held, manifest.variants))}, {size:.1f} MB")
    return 0


def _held(variant: Variant) -> str:
    tuned = sum(kernel.seconds is not None for kernel in variant.kernels)
    return f"{tuned} tuned and {len(variant.kernels) - tuned} generic kernels for {variant.target}"
