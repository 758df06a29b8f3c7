"""The last step of scripts/quickstart: use the library in a process that has no compiler."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tvmops.report.peers import limit_threads

limit_threads()  # before NumPy is imported

import tvmops
from tvmops.cli.text import columns
from tvmops.report.compare import OURS, Comparison, compare
from tvmops.suites import read_specs

_ROUNDS = 15
_HEADER = ["workload", "kernel", "GFLOP/s", "of FMA peak", "times NumPy", "error", "allowed"]


def main(suite: str, library: str, machine: str) -> int:
    """Compare `library` with NumPy on the workloads of `suite`; return the exit code."""
    peak = json.loads(Path(machine).read_text())["peak_gflops"]
    compared = list(compare(tvmops.load(library), read_specs([suite]), ["numpy"], _ROUNDS))
    assert "tvm" not in sys.modules, "using a library imported the compiler"
    print(columns(_HEADER, [_row(each, peak) for each in compared]))
    print(f"This machine's measured FMA peak is {peak:.0f} GFLOP/s; no compiler was loaded to get these.")
    wrong = [str(each.workload) for each in compared if OURS in each.wrong]
    if wrong:
        print(f"Wrong results: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _row(each: Comparison, peak: float) -> list[str]:
    m, n, k = (each.workload[name] for name in ("m", "n", "k"))
    gflops = each.gflops(OURS)
    return [
        f"{m} x {n} x {k}",
        each.kernel,
        f"{gflops:.1f}",
        f"{gflops / peak:.0%}",
        f"{each.ratio:.2f}",
        f"{each.errors[OURS]:.1e}",
        f"{each.tolerance:.1e}",
    ]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
