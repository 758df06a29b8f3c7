"""The argument parser that commands share: short errors, an example in each help text."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn, TypeAlias

SPEC_HELP = (
    "a workload such as 'matmul m=8 n=8 k=8', with ranges such as 'matmul m=1..512 n=8 k=8', "
    "or a TOML file of [[workload]] tables"
)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose help ends with an example and whose errors are one line."""

    def __init__(self, *, example: str, **options: Any) -> None:
        super().__init__(
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'\n")

    def add_specs(self, least: int = 1) -> None:
        self.add_argument("specs", nargs="+" if least else "*", metavar="SPEC", help=SPEC_HELP)

    def add_target(self) -> None:
        self.add_argument(
            "--target",
            default="native",
            metavar="NAME",
            help="one that `tvmops targets` lists (%(default)s)",
        )

    def add_targets(self) -> None:
        self.add_argument(
            "--target",
            action="append",
            metavar="NAME",
            help="one that `tvmops targets` lists; may be given again (native)",
        )

    def add_tracker(self, required: bool = True) -> None:
        self.add_argument(
            "--tracker",
            required=required,
            default="",
            metavar="HOST:PORT",
            help="of a fleet, as `tvmops fleet tracker` prints it",
        )
        self.add_token()

    def add_token(self) -> None:
        self.add_argument(
            "--token-file",
            metavar="FILE",
            help="holds the fleet's token, for its owner's eyes alone ($TVMOPS_FLEET_TOKEN)",
        )

    def add_json(self, what: str = "JSON lines") -> None:
        self.add_argument("--json", action="store_true", help=f"print {what}, for scripts")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
