"""`tvmops export`: the best logged schedules become a library."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from tvmops.cli.parser import Commands
from tvmops.errors import ArgumentError
from tvmops.manifest import Manifest, Variant
from tvmops.suites import read_specs
from tvmops.targets import target


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a library of tuned kernels",
        description="Compile the best logged schedule of each workload into a library: a folder, a zip file "
        "or a wheel. An earlier library at OUTPUT is replaced; anything else there is not.",
        example='tvmops export "matmul m=1024 n=1024 k=1024" --log my.jsonl -o libmine',
    )
    parser.add_specs()
    parser.add_targets()
    parser.add_argument(
        "--log", action="append", required=True, metavar="FILE", help="a tuning log; may be given again"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUTPUT", help="the library to write, or a wheel's folder"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--zip", action="store_true", help="write one file, OUTPUT.zip")
    form.add_argument("--wheel", action="store_true", help="write a wheel that pip installs into OUTPUT")
    parser.add_argument("--name", metavar="NAME", help="the wheel's package, as it is imported")
    parser.add_argument("--version", default="0.1.0", help="the wheel's version (%(default)s)")
    parser.add_argument(
        "--regret",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="what kernels of a range may lose against the fastest ones measured (%(default)s)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.wheel and not arguments.name:
        raise ArgumentError(argument="--name", value="missing", expected="the name of the wheel's package")
    work = list(read_specs(arguments.specs))  # before the slow import
    machines = [target(name) for name in arguments.target or ["native"]]
    from tvmops.library.archive import zip_folder
    from tvmops.library.export import export
    from tvmops.library.wheel import write_wheel
    from tvmops.library.write import check_place

    output = Path(arguments.output)
    if not (arguments.zip or arguments.wheel):
        folder = export(work, machines, arguments.log, output, arguments.regret)
        print(f"{folder}: {_content(folder)}")
        return 0
    if arguments.zip:
        output = check_place(output if output.suffix == ".zip" else output.with_name(f"{output.name}.zip"))
    with TemporaryDirectory() as scratch:
        folder = export(work, machines, arguments.log, Path(scratch, "library"), arguments.regret)
        if arguments.wheel:
            output = write_wheel(folder, output, arguments.name, arguments.version)
        else:
            zip_folder(folder, output)
        print(f"{output}: {_content(folder)}")
    return 0


def _content(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    return f"{'; '.join(map(_held, Manifest.read(folder).variants))}, {size:.1f} MB"


def _held(variant: Variant) -> str:
    bucketed = sum(len(bucket.kernels) for bucket in variant.buckets)
    tuned = sum(bool(kernel.record) for kernel in variant.kernels) - bucketed
    generic = len(variant.kernels) - tuned - bucketed
    ranges = f", {bucketed} for {len(variant.buckets)} ranges" if bucketed else ""
    return f"{tuned} tuned{ranges} and {generic} generic kernels for {variant.target}"
