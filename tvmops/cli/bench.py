"""`tvmops bench`: a library against other libraries on the same machine."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tvmops.cli.parser import Commands
from tvmops.cli.text import columns, json_line
from tvmops.errors import ArgumentError
from tvmops.suites import read_specs

if TYPE_CHECKING:
    from tvmops.report.compare import Comparison

FEWEST_ROUNDS = 9


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="compare a library with NumPy, ONNX Runtime, OpenVINO and PyTorch",
        description="Time a library and its peers turn by turn in one process on random data, each in its "
        "best form on all physical cores, with results checked against float64. Prints medians with "
        "their spread (half the range of the middle half of the samples). Exit code 1 if a result of "
        "the library is wrong.",
        example='tvmops bench "matmul m=1024 n=1024 k=1024" --library libmine --against numpy,onnxruntime',
    )
    parser.add_specs()
    parser.add_argument(
        "--library", required=True, metavar="FOLDER", help="a folder that `tvmops export` wrote"
    )
    parser.add_argument(
        "--against",
        default="numpy,onnxruntime,openvino,torch",
        metavar="PEERS",
        help="names with commas between them (%(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=15,
        metavar="N",
        help=f"turns that each takes, at least {FEWEST_ROUNDS} (%(default)s)",
    )
    parser.add_json()
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    work, peers = read_specs(arguments.specs), arguments.against.split(",")
    if arguments.rounds < FEWEST_ROUNDS:
        expected = f"an integer of at least {FEWEST_ROUNDS}"
        raise ArgumentError(argument="rounds", value=arguments.rounds, expected=expected)
    from tvmops.report.peers import limit_threads

    limit_threads()  # before NumPy is imported
    from tvmops.report.compare import OURS, compare
    from tvmops.runtime.load import load

    compared = []
    for each in compare(load(arguments.library), work, peers, arguments.rounds):
        compared.append(each)
        if arguments.json:
            print(_as_json(each, peers), flush=True)
    if not arguments.json:
        _print_table(compared, peers)
    wrong = [f"{name} on {each.workload}" for each in compared for name in each.wrong]
    if wrong:
        print(f"tvmops: outside the op's tolerance: {', '.join(wrong)}", file=sys.stderr)
    return 1 if any(OURS in each.wrong for each in compared) else 0


def _print_table(compared: list[Comparison], peers: list[str]) -> None:
    from tvmops.report.compare import OURS, geometric_mean

    names = [name for name in (OURS, *peers) if any(name in each.timings for each in compared)]
    rows = [
        [
            str(each.workload),
            each.tier,
            *(_cell(each, name) for name in names),
            each.best_peer or "-",
            _ratio(each),
        ]
        for each in compared
    ]
    print(columns(["workload", "kernel", *(f"{name} GFLOP/s" for name in names), "best peer", "ratio"], rows))
    ratios = [each.ratio for each in compared if each.ratio is not None]
    if ratios:
        mean, worst = geometric_mean(ratios), min(ratios)
        print(f"ratio to the best peer: geometric mean {mean:.2f}, worst {worst:.2f}")
    missing = [name for name in peers if name not in names]
    if missing:
        print(f"not installed or without these ops, so not compared: {', '.join(missing)}")


def _cell(each: Comparison, name: str) -> str:
    if name not in each.timings:
        return "-"
    return f"{each.gflops(name):.1f} ±{each.timings[name].spread:.0%}"


def _ratio(each: Comparison) -> str:
    return "-" if each.ratio is None else f"{each.ratio:.2f}"


def _as_json(each: Comparison, peers: list[str]) -> str:
    return json_line(
        workload=str(each.workload),
        tier=each.tier,
        kernel=each.kernel,
        gflops={name: each.gflops(name) for name in each.timings},
        seconds={name: timing.samples for name, timing in each.timings.items()},
        errors=dict(each.errors),
        tolerance=each.tolerance,
        best_peer=each.best_peer,
        ratio=each.ratio,
        missing=[name for name in peers if name not in each.timings],
    )
