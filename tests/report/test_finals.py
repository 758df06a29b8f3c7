from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from tvmops.cli.main import main
from tvmops.errors import BundleError
from tvmops.measure.bundle.content import RESULTS, Bundle, Entry, Result
from tvmops.report.finals import finals, geometric_mean

ENTRY = Entry("matmul m=8 n=8 k=8 dtype=float32", "t@1", {"x": 1}, "kernels/k.so", "auto", True)
OTHER = dataclasses.replace(ENTRY, config={"x": 2}, default=False)
ALONE = dataclasses.replace(ENTRY, workload="matmul m=9 n=9 k=9 dtype=float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Bundle("native", "cpu", (), 1, 0, {}, (ENTRY, OTHER, ALONE)).write(tmp_path)
    return tmp_path


def write(folder: Path, *results: Result) -> None:
    lines = [json.dumps(dataclasses.asdict(result)) for result in results]
    (folder / RESULTS).write_text("".join(line + "\n" for line in lines))


def final(entry: Entry | str, *seconds: float, status: str = "ok") -> Result:
    key = entry if isinstance(entry, str) else entry.key
    workload = ENTRY.workload if isinstance(entry, str) else entry.workload
    return Result(workload, key, "final", status, seconds)


def test_the_best_kernel_meets_the_best_peer_by_medians(folder: Path) -> None:
    write(
        folder,
        final(ENTRY, 1.0, 4.0, 4.0),
        final(OTHER, 3.0, 2.0, 1.0),
        final("slow", 9.0),
        final("quick", 1.0, 3.0, 5.0),
        final("broken", status="crash"),
        final("copy", 1.0),
        final(ALONE, 5.0),
    )
    first, second = finals(folder)
    assert (first.kernel, first.peer, first.speedup, first.of_copy) == (OTHER.key, "quick", 1.5, 0.5)
    assert second.workload == ALONE.workload and math.isinf(second.speedup)


def test_only_some_of_them_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, final(ENTRY, 1.0), final("peer", 2.0), final(ALONE, 5.0))
    assert main(["bundle", "show", str(folder), ALONE.workload]) == 0
    shown = capsys.readouterr().out
    assert ALONE.workload in shown and ENTRY.workload not in shown


def sustained(entry: Entry | str, seconds: float, *megahertz: float) -> Result:
    return dataclasses.replace(final(entry, seconds, seconds), stage="sustained", megahertz=megahertz)


def test_sustained_rates_are_told_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        folder,
        *(final(ENTRY, 1.0), final("peer", 2.0), final(ALONE, 5.0)),
        *(sustained(ENTRY, 2.0, 1500, 1700, 1900), sustained("peer", 3.0, 1980)),
    )
    first, second = finals(folder)
    assert (first.speedup, first.sustained_speedup) == (2.0, 1.5)
    assert (first.megahertz, first.peer_megahertz) == (1700, 1980)
    assert math.isnan(second.sustained_speedup) and math.isnan(second.megahertz)
    assert main(["bundle", "show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "the same, sustained: geometric mean 1.500" in shown
    assert shown.splitlines()[-3].split()[-4:] == ["-", "-", "-", "-"]


def test_results_of_earlier_bundles_are_read(folder: Path) -> None:
    line = {**dataclasses.asdict(final(ENTRY, 1.0)), "sustained": [1.1]}
    (folder / RESULTS).write_text(json.dumps(line) + "\n")
    assert finals(folder)[0].seconds == 1.0


def test_a_bundle_that_was_not_run_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match="no comparisons"):
        finals(folder)


def test_the_command_prints_the_mean_and_the_worst(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, final(ENTRY, 1.0), final("peer", 2.0), final(ALONE, 5.0))
    assert main(["bundle", "show", str(folder)]) == 0
    assert "geometric mean 2.000, worst 2.000 of 1" in capsys.readouterr().out


def test_the_geometric_mean_is_that_of_ratios() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
