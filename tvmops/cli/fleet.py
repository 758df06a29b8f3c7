"""`tvmops fleet`: many boards of one kind serve tuning runs of other machines."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing

from tvmops.cli.parser import Commands
from tvmops.cli.text import columns
from tvmops.errors import FleetError
from tvmops.targets import target

_PORT = 9190


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "fleet",
        help="tune on other machines over the network",
        description="`device` makes a board one that `tracker` lends to runs of `tvmops tune --measure "
        "fleet`. Candidates are built where such a run is; a board needs Python, numpy and "
        "apache-tvm-ffi. All prove by a shared token who they are; nothing is encrypted.",
        example="tvmops fleet device --tracker 127.0.0.1:9190 --target neoverse-n1 --token-file token",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    tracker = actions.add_parser(
        "tracker",
        help="lend devices to runs",
        description="Lend devices to runs until stopped. All dial this, and it dials nobody. A token: "
        "`(umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > token)`.",
        example="tvmops fleet tracker --token-file token",
    )
    tracker.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen; only this machine reaches the default (%(default)s)",
    )
    tracker.add_argument("--port", type=int, default=_PORT, metavar="N", help="0: any (%(default)s)")
    tracker.add_token()
    tracker.set_defaults(run=_track)
    device = actions.add_parser(
        "device",
        help="let runs use this machine",
        description="Serve a tracker until stopped; dial again where the connection is lost.",
        example="tvmops fleet device --tracker 127.0.0.1:9190 --target neoverse-n1 --token-file token",
    )
    device.add_tracker()
    device.add_target()
    device.add_argument(
        "--python", default=sys.executable, metavar="PROGRAM", help="what runs candidates (%(default)s)"
    )
    device.set_defaults(run=_serve)
    listing = actions.add_parser(
        "list", help="list a tracker's devices", example="tvmops fleet list --tracker 127.0.0.1:9190"
    )
    listing.add_tracker()
    listing.set_defaults(run=_list)


def _say(text: str) -> None:
    print(text, flush=True)


def _track(arguments: argparse.Namespace) -> int:
    from tvmops.measure.fleet.tracker import Tracker
    from tvmops.measure.fleet.wire import read_token

    token = read_token(arguments.token_file)
    try:
        tracker = Tracker(token, arguments.host, arguments.port, _say)
    except OSError as error:
        place = f"{arguments.host}:{arguments.port}"
        raise FleetError(tracker=place, detail=f"can't listen ({error})") from None
    _say(f"tracker {tracker.address}")
    tracker.serve()
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from tvmops.measure.fleet.device import Device
    from tvmops.measure.fleet.wire import parse_address, read_token

    parse_address(arguments.tracker)
    token = read_token(arguments.token_file)
    device = Device(arguments.tracker, token, target(arguments.target), _say, arguments.python)
    try:
        device.serve()
    finally:
        device.close()
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from tvmops.measure.fleet.line import Line
    from tvmops.measure.fleet.wire import read_token

    with closing(Line(arguments.tracker, read_token(arguments.token_file))) as line:
        devices = sorted(line.devices(), key=lambda device: (device.target, device.name))
    rows = [[each.target, each.name, str(each.cores), each.machine] for each in devices]
    print(columns(["target", "device", "cores", "machine"], rows))
    return 0
