from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tvmops.cli.main import main
from tvmops.records import Record


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return self.err.splitlines()


Command = Callable[..., Done]


@pytest.fixture
def tvmops(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process."""

    def run(*argv: object) -> Done:
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as stop:  # argparse
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


def record(workload: str = "matmul m=8 n=8 k=8 dtype=float32", **fields: object) -> Record:
    """Return a record of a trial that took a millisecond, but for `fields`."""
    usual = {
        "target": "x86-64-v3",
        "machine": "some machine",
        "template": "cpu.gemm@1",
        "config": {"mr": 4},
        "status": "ok",
        "seconds": (1e-3,),
    }
    return Record(**{"workload": workload, **usual, **fields})  # type: ignore[arg-type]
