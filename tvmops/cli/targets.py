"""`tvmops targets`: the machines that are described, and what this one is."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from tvmops.cli.parser import Commands
from tvmops.cli.text import columns
from tvmops.errors import UnknownTargetError
from tvmops.machine import this_machine
from tvmops.targets import Target, names, native, target

_HIDDEN = ("models",)  # how a CPU is recognised: of no use to who reads this


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "targets",
        help="list the targets, or show one",
        description="List the machines that can be tuned for, or show what is known of one.",
        example="tvmops targets native --peak",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a target; 'native' is this machine")
    parser.add_argument(
        "--peak", action="store_true", help="also measure its FMA rate and memory bandwidth, once a machine"
    )
    parser.add_json("one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.name or arguments.peak:
        _show(target(arguments.name or "native"), arguments)
    else:
        _list(arguments)
    return 0


def _show(chosen: Target, arguments: argparse.Namespace) -> None:
    table = {name: value for name, value in dataclasses.asdict(chosen).items() if name not in _HIDDEN}
    if arguments.peak:
        table |= _measured_peak(chosen)
    if arguments.json:
        print(json.dumps(table))
        return
    for name, value in table.items():
        text = " ".join(value) if isinstance(value, tuple) else value
        print(f"{name:<18}{text}")


def _measured_peak(chosen: Target) -> dict[str, Any]:
    from tvmops.measure.peak import machine_peak
    from tvmops.tuner.checks import check_runs_here

    check_runs_here(chosen)
    peak = machine_peak(chosen)
    return {"peak_gflops": round(peak.flops / 1e9, 1), "peak_gbytes": round(peak.bandwidth / 1e9, 1)}


def _list(arguments: argparse.Namespace) -> None:
    known = [target(name) for name in names()]
    here = {each.name: _fit(each) for each in known}
    if arguments.json:
        print(json.dumps({"targets": here, "native": _native_name()}))
        return
    rows = [[t.name, t.arch, str(t.vector_bits), here[t.name], ", ".join(t.fallbacks)] for t in known]
    print(columns(["target", "arch", "vector bits", "here", "falls back to"], rows))


def _fit(known: Target) -> str:
    if known.name == _native_name():
        return "native"
    return "no" if known.missing(this_machine()) else "runs"


def _native_name() -> str | None:
    try:
        return native().name
    except UnknownTargetError:
        return None
