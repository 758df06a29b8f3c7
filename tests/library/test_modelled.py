"""Modelled records through export: what a user is told of them; anything measured goes before them."""

from __future__ import annotations

from pathlib import Path

import pytest

import tvmops
from tests.libraries import default_record, matmul, one_generic_kernel, write_log
from tvmops.cli.main import main
from tvmops.library.export import export
from tvmops.manifest import Manifest
from tvmops.records import Record
from tvmops.targets import Target, target

WORK = matmul(4, 5, 6)
COUNTS = {"instructions": 910, "accesses": 400, "l1_misses": 31, "l2_misses": 30}


@pytest.fixture(scope="module")
def here() -> Target:
    return target("native")


def modelled(machine: Target) -> Record:
    """A record of fewer cycles than any clock could show."""
    return default_record(
        WORK, machine, seconds=(), kind="modelled", cycles=1, counts=COUNTS, machine="model of one core"
    )


def exported(folder: Path, machine: Target, *records: Record) -> Path:
    with one_generic_kernel():
        return export([WORK], machine, [write_log(folder / "log.jsonl", *records)], folder / "library")


@pytest.mark.parametrize("order", [1, -1])
def test_a_measured_record_is_exported_however_few_cycles_were_modelled(
    order: int, tmp_path: Path, here: Target
) -> None:
    slow_config = {**modelled(here).config, "ku": 1}
    assert slow_config != modelled(here).config
    slow = default_record(WORK, here, seconds=(1e3,), config=slow_config)
    library = exported(tmp_path, here, *(modelled(here), slow)[::order])
    (kernel,) = (kernel for kernel in Manifest.read(library).variants[0].kernels if kernel.record)
    assert (kernel.config, kernel.seconds, kernel.modelled) == (slow_config, 1e3, {})


def test_what_was_modelled_is_called_so_and_has_no_seconds(
    tmp_path: Path, here: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    library = exported(tmp_path, here, modelled(here))
    (kernel,) = (kernel for kernel in Manifest.read(library).variants[0].kernels if kernel.record)
    assert kernel.seconds is None
    assert kernel.modelled == {"cycles": 1, **COUNTS}
    text = str(tvmops.load(library).explain(str(WORK)))
    assert "modelled: 1 cycles, 910 instructions, 400 accesses, 31 l1 misses, 30 l2 misses" in text
    assert "on model of one core" in text
    assert "measured" not in text and " us" not in text

    assert main(["logs", "best", str(tmp_path / "log.jsonl")]) == 0
    assert "1 modelled cycles" in capsys.readouterr().out
