"""`scripts/bench`: what it refuses before it tunes, and the table of what it holds so far."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rounds", "7"), "--rounds is 7; expected at least 9"),
        (("--trials", "0"), "--trials is 0; expected at least 1"),
        (("--against", "numpy,abacus"), "names abacus; expected some of numpy"),
        (("--part", "3/2"), "invalid part value: '3/2'"),
        (("cols",), "no suite cols; expected some of matmul"),
    ],
)
def test_refuses_before_it_tunes(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = bench(*arguments, "--folder", str(tmp_path / "made"))
    assert (done.returncode, said in done.stderr) == (2, True)
    assert not (tmp_path / "made").exists()


def test_report_takes_the_last_comparison_of_each_workload(tmp_path: Path) -> None:
    found = [("softmax rows=1", 0.5), ("softmax rows=2", 4.0), ("softmax rows=1", 1.0), ("no peer", None)]
    lines = [json.dumps({"workload": text, "ratio": ratio}) for text, ratio in found]
    (tmp_path / "rows.results.jsonl").write_text("\n".join(lines))
    done = bench("--report", "--folder", str(tmp_path))
    (row,) = [line.split() for line in done.stdout.splitlines() if line.startswith("rows")]
    assert row == ["rows", "2", "of", "24", "2.00", "1.30", "1.00", "1.00", "softmax", "rows=1"]
