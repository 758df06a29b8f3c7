"""The pinned versions work together. A later pin is tried here, not hoped for."""

from __future__ import annotations

import subprocess
import sys

MAKE_A_SEARCH = """
import tvmops
from tvmops.schedules.sketch import tensor_program, tune_context
work = tvmops.workload("matmul", m=8, n=8, k=8)
tune_context(tensor_program(work), tvmops.target("x86-64-v3"), seed=0)
print("alive")
"""


def test_metaschedule_survives_the_pinned_tvm_ffi() -> None:
    """Under apache-tvm-ffi 0.1.15 this ends in a segmentation fault."""
    child = subprocess.run([sys.executable, "-c", MAKE_A_SEARCH], capture_output=True, text=True)
    assert (child.returncode, child.stdout) == (0, "alive\n"), child.stderr[-2000:]
