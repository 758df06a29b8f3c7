"""`tvmops logs`: what one does with tuning logs besides tuning."""

from __future__ import annotations

import argparse

from tvmops import logs
from tvmops.cli.parser import Commands
from tvmops.cli.text import columns, config_text, json_line, time_of
from tvmops.records import LogWriter, Record, read_log
from tvmops.targets import target


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "logs",
        help="show, merge, compare, prune and verify tuning logs",
        description="Work with tuning logs. None is ever changed, but that `verify --mark` appends.",
        example="tvmops logs best my.jsonl",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_add_best, _add_merge, _add_diff, _add_prune, _add_verify):
        add(commands)


def _add_best(commands: Commands) -> None:
    parser = commands.add_parser(
        "best",
        help="show the best record of each workload",
        description="Show the best record of each workload on each target.",
        example="tvmops logs best my.jsonl",
    )
    parser.add_argument("logs", nargs="+", metavar="LOG")
    parser.add_json()
    parser.set_defaults(run=_best)


def _best(arguments: argparse.Namespace) -> int:
    best = logs.best(record for path in arguments.logs for record in read_log(path))
    if arguments.json:
        for record in best.values():
            print(record.to_json())
        return 0
    rows = [[r.workload, r.target, time_of(r), r.stage, r.template, config_text(r)] for r in best.values()]
    print(columns(["workload", "target", "time", "stage", "template", "config"], rows))
    return 0


def _add_merge(commands: Commands) -> None:
    parser = commands.add_parser(
        "merge",
        help="put several logs into one",
        description="Write the lines of several logs to a new one, in order, equal lines once.",
        example="tvmops logs merge a.jsonl b.jsonl -o all.jsonl",
    )
    parser.add_argument("logs", nargs="+", metavar="LOG")
    _add_output(parser)
    parser.set_defaults(run=_merge)


def _merge(arguments: argparse.Namespace) -> int:
    lines = logs.merge(arguments.logs)
    logs.write_lines(arguments.output, lines)
    print(f"{arguments.output}: {len(lines)} records of {len(arguments.logs)} logs")
    return 0


def _add_diff(commands: Commands) -> None:
    parser = commands.add_parser(
        "diff",
        help="compare two logs workload by workload",
        description="Compare the best records of two logs; above 1, the speedup means that B is faster.",
        example="tvmops logs diff before.jsonl after.jsonl",
    )
    parser.add_argument("first", metavar="A")
    parser.add_argument("second", metavar="B")
    parser.add_json()
    parser.set_defaults(run=_diff)


def _diff(arguments: argparse.Namespace) -> int:
    differences = logs.diff(arguments.first, arguments.second)
    if arguments.json:
        for each in differences:
            first, second = (record and record.time for record in (each.first, each.second))
            place = {"workload": each.workload, "target": each.target}
            print(json_line(**place, first=first, second=second, speedup=each.speedup))
        return 0
    rows = [
        [each.workload, each.target, _time(each.first), _time(each.second), _times(each.speedup)]
        for each in differences
    ]
    print(columns(["workload", "target", arguments.first, arguments.second, "speedup"], rows))
    return 0


def _add_prune(commands: Commands) -> None:
    parser = commands.add_parser(
        "prune",
        help="write a small log that keeps what counts",
        description="Write a log that keeps every final comparison and verification, and the fastest trials "
        "of each search (one workload, target, machine and template version). Slower trials and failures "
        "go: tuning on the pruned log measures those again that it comes to.",
        example="tvmops logs prune my.jsonl -o small.jsonl --keep 5",
    )
    parser.add_argument("log", metavar="LOG")
    _add_output(parser)
    parser.add_argument(
        "--keep", type=int, default=5, metavar="N", help="trials to keep of each search (%(default)s)"
    )
    parser.set_defaults(run=_prune)


def _prune(arguments: argparse.Namespace) -> int:
    records = read_log(arguments.log)
    lines = logs.prune(arguments.log, arguments.keep)
    logs.write_lines(arguments.output, lines)
    failed = sum(not record.ran for record in records)
    print(f"{arguments.output}: kept {len(lines)} of {len(records)} records; {failed} were failures")
    return 0


def _add_verify(commands: Commands) -> None:
    parser = commands.add_parser(
        "verify",
        help="rebuild the best records and time them again here",
        description="Rebuild the best record of each workload and template version on this machine, check "
        "its result and time it again. It holds if it is right and takes at most 1 + TOLERANCE times what "
        "the log says; 'stale' was made by another template version or compiler, 'elsewhere' on another "
        "machine. Exit code 1 if one that should hold does not.",
        example="tvmops logs verify my.jsonl --tolerance 0.25",
    )
    parser.add_argument("log", metavar="LOG")
    parser.add_target()
    parser.add_argument(
        "--tolerance", type=float, default=0.25, metavar="T", help="how much slower still holds (%(default)s)"
    )
    parser.add_argument(
        "--mark", action="store_true", help="append what was measured; `export` passes over what failed"
    )
    parser.add_json()
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    records, machine = read_log(arguments.log), target(arguments.target)
    from tvmops.tuner.recheck import recheck

    verdicts = []
    for verdict in recheck(records, machine, arguments.tolerance):
        verdicts.append(verdict)
        if arguments.mark and verdict.fresh:
            with LogWriter(arguments.log) as writer:
                writer.append(verdict.fresh)
    rows = [
        [v.status, v.record.workload, _time(v.record), _time(v.fresh), _times(v.slowdown), v.detail]
        for v in verdicts
    ]
    if arguments.json:
        for v in verdicts:
            said = {"workload": v.record.workload, "template": v.record.template, "logged": v.record.time}
            print(json_line(status=v.status, **said, slowdown=v.slowdown, detail=v.detail))
    else:
        print(columns(["verdict", "workload", "logged", "now", "slowdown", ""], rows))
    return 0 if all(v.status in ("holds", "stale", "elsewhere") for v in verdicts) else 1


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the log to write; it must not exist yet"
    )


def _time(record: Record | None) -> str:
    return time_of(record) if record and record.ran else "-"


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}" if ratio else "-"
