"""`tvmops`: parses the command line and says in one line what went wrong."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from tvmops.cli import bench, bundle, explain, export, fleet, logs, targets, tune
from tvmops.cli.parser import Parser
from tvmops.errors import TvmopsError
from tvmops.version import VERSION

COMMANDS = (tune, export, explain, bench, bundle, fleet, logs, targets)

BAD_ARGUMENT = 2
FAILED = 1
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done; 1: it failed; 2: a bad argument; 130: stopped by Ctrl-C. Each of the last
    three comes with one line on the standard error.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code: int = arguments.run(arguments)
            sys.stdout.flush()
            return code
        except TvmopsError as error:
            _complain(str(error))
            return BAD_ARGUMENT if isinstance(error, ValueError) else FAILED
        except KeyboardInterrupt as stop:
            kept = f"{stop}; " if str(stop) else ""
            _complain(f"stopped; {kept}to go on: {shlex.join(['tvmops', *argv])}")
            return INTERRUPTED
        except BrokenPipeError:  # `tvmops ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except OSError as error:  # no space, no permission, a folder in place of a file
            place = f"{error.filename}: " if error.filename is not None else ""
            _complain(f"{place}{error.strerror or error}")
            return FAILED


def parser() -> Parser:
    """Return the parser of the whole command line."""
    top = Parser(
        prog="tvmops",
        description="Tune tensor kernels for a machine, export them as a library, call it from Python.",
        example='tvmops tune "matmul m=1024 n=1024 k=1024" --log my.jsonl',
    )
    top.add_argument("--version", action="version", version=f"tvmops {VERSION}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    return top


def _complain(message: str) -> None:
    print(f"tvmops: {' '.join(message.split())}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _complain(f"warning: {message}")


if __name__ == "__main__":
    sys.exit(main())
