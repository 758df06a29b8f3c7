"""`tvmops explain`: which kernel of a library answers a workload, and why."""

from __future__ import annotations

import argparse

from tvmops.cli.parser import Commands
from tvmops.suites import read_specs


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "explain",
        help="say which kernel of a library answers a workload",
        description="Say which kernel of a library answers a workload, why, its time and its error bound.",
        example='tvmops explain libmine "matmul m=1024 n=1024 k=1000"',
    )
    parser.add_argument("library", metavar="LIBRARY", help="a folder that `tvmops export` wrote")
    parser.add_specs()
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    work = read_specs(arguments.specs)
    from tvmops.runtime.load import load

    library = load(arguments.library)
    print(library.variants)
    for workload in work:
        print(library.explain(str(workload)))
    return 0
