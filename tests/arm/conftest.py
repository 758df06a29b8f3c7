from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.arm.emulated import Job

PYTHON = Path(__file__).parents[2] / ".arm/python"
Answers = list[dict[str, Any]]


@pytest.fixture
def emulate(tmp_path: Path) -> Callable[[str, Job], Answers]:
    """Do a job on an ARM CPU by qemu's name of it, and return what it says."""
    if not PYTHON.is_file():
        pytest.skip("needs an emulated ARM Python; scripts/arm-environment sets it up")

    def run(cpu: str, job: Job) -> Answers:
        path = tmp_path / "job"
        path.write_bytes(pickle.dumps(job))
        command = [str(PYTHON), "-m", "tests.arm.emulated", str(path)]
        done = subprocess.run(
            command, env={**os.environ, "QEMU_CPU": cpu}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{done.returncode}: {done.stdout[-500:]}{done.stderr[-2000:]}"
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run
