"""Every command shows an example that parses; a bad argument is one line and exit code 2."""

from __future__ import annotations

import argparse
import errno
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tvmops.cli import targets
from tvmops.cli.main import parser
from tvmops.cli.parser import Parser
from tvmops.version import VERSION

SPEC = "matmul m=8 n=8 k=8"


def parsers(top: Parser) -> Iterator[Parser]:
    yield top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


@pytest.mark.parametrize("each", list(parsers(parser())), ids=lambda each: each.prog)
def test_help_ends_with_an_example_that_parses(each: Parser) -> None:
    _, _, example = each.format_help().rpartition("example:\n")
    program, *arguments = shlex.split(example)
    assert program == "tvmops"
    assert callable(parser().parse_args(arguments).run)
    assert example.strip().startswith(each.prog)


README = (Path(__file__).parents[2] / "README.md").read_text()
COMMANDS = [line for line in README.splitlines() if line.startswith("    tvmops ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_readme_parse(line: str) -> None:
    _, *arguments = shlex.split(line, comments=True)
    assert callable(parser().parse_args(arguments).run)


def test_all_commands_are_there() -> None:
    assert {each.prog.removeprefix("tvmops").strip() for each in parsers(parser())} == {
        "", "tune", "export", "explain", "bench", "targets", "bundle", "bundle make", "bundle import",
        "bundle show", "fleet", "fleet tracker", "fleet device", "fleet list",
        "logs", "logs best", "logs merge", "logs diff", "logs prune", "logs verify",
    }  # fmt: skip


BAD = {
    "": "required: COMMAND",
    "compile": "invalid choice: 'compile'",
    "tune": "argument 'SPEC' is []",
    f"tune '{SPEC}' --trials few": "--trials: invalid int value: 'few'",
    f"tune '{SPEC}' --trials 0": "'trials' is 0; expected an integer of at least 1",
    f"tune '{SPEC}' --seconds -3": "'seconds' is -3.0; expected a number above 0",
    f"tune '{SPEC}' --strategy luck": "strategy is 'luck'; expected one of auto",
    f"tune '{SPEC}' --target z80": "target is 'z80'; expected 'native' or one of ",
    f"tune '{SPEC}' --colour": "unrecognized arguments: --colour",
    "tune 'matmul m=8 n=8'": "field 'k' is 'missing'; expected an integer of at least 1",
    "tune 'matmul m=8 n=8 k=*'": "expected sizes that are all known",
    "tune 'matmul m=8 n'": "'n' is no name=value pair",
    "tune 'sort n=8'": "op is 'sort'; expected one of matmul",
    "tune missing.toml": "suite file missing.toml: No such file or directory",
    f"export '{SPEC}' -o lib": "required: --log",
    f"export '{SPEC}' --log empty.jsonl -o lib --zip --wheel": "--wheel: not allowed with argument --zip",
    f"export '{SPEC}' --log empty.jsonl -o dist --wheel": "argument '--name' is 'missing'",
    f"export '{SPEC}' --log empty.jsonl -o lib --target pdp11": "target is 'pdp11'",
    "targets z80": "target is 'z80'",
    f"bench '{SPEC}' --library lib --rounds 3": "'rounds' is 3; expected an integer of at least 9",
    "logs": "required: COMMAND",
    f"tune '{SPEC}' --measure fleet --token-file no-file": "fleet token no-file: can't be read",
    f"tune '{SPEC}' --measure guess": "expected one of local, model, fleet",
    "fleet": "required: ACTION",
    "fleet tracker --token-file log.jsonl": "fleet token log.jsonl: ",
    "fleet device": "required: --tracker",
    "fleet device --tracker board": "'tracker' is 'board'; expected HOST:PORT",
    "logs prune log.jsonl -o new.jsonl --keep -1": "'keep' is -1; expected an integer of at least 0",
    "logs merge log.jsonl -o log.jsonl": "'output' is 'log.jsonl'; expected a file that does not exist yet",
    "logs verify log.jsonl --tolerance -1": "'tolerance' is -1.0; expected a number of at least 0",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_argument_is_one_line_and_exit_code_2(
    line: str, tvmops: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log.jsonl").touch()
    done = tvmops(*shlex.split(line))
    assert (done.code, len(done.error_lines)) == (2, 1)
    assert BAD[line] in done.err
    assert done.err.startswith("tvmops")


FAILING = {
    f"explain missing '{SPEC}'": "library missing: is no folder",
    f"export '{SPEC}' --log missing.jsonl -o lib": "tuning log missing.jsonl: No such file or directory",
    f"export '{SPEC}' --log empty.jsonl -o lib": f"no usable record for '{SPEC} dtype=float32'",
    "logs best missing.jsonl": "tuning log missing.jsonl: No such file or directory",
    "logs merge empty.jsonl -o no/such/folder": "cannot write (No such file or directory)",
    f"tune '{SPEC}' --log empty.jsonl/log": "cannot write (File exists)",
}


@pytest.mark.parametrize("line", FAILING)
def test_what_fails_is_one_line_and_exit_code_1(
    line: str, tvmops: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    done = tvmops(*shlex.split(line))
    assert (done.code, len(done.error_lines)) == (1, 1)
    assert FAILING[line] in done.err


def test_a_disk_that_fails_is_one_line_and_exit_code_1(
    tvmops: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "lib/kernels.so")

    monkeypatch.setattr(targets, "run", run)
    done = tvmops("targets")
    assert (done.code, done.err) == (1, "tvmops: lib/kernels.so: No space left on device\n")


def test_version(tvmops: Command) -> None:
    done = tvmops("--version")
    assert (done.code, done.out) == (0, f"tvmops {VERSION}\n")
