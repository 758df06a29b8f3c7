"""What templates for few rows of a by a 16-bit b have in common."""

from __future__ import annotations

from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.matmul import SAME
from tvmops.workloads import Workload


def has_few_rows(workload: Workload, most: int) -> bool:
    """True for at most `most` rows of a by a 16-bit b as it lies, with results of the same type, no batch."""
    if workload.op != "matmul":
        return False
    m = workload["m"]
    return (
        workload["dtype"] in ("float16", "bfloat16")
        and workload["packed"] == PLAIN
        and workload["out_dtype"] == workload["bias_dtype"] == SAME
        and workload["batch"] == 1
        and not workload["trans_a"]
        and (m == ANY or (isinstance(m, int) and m <= most))
    )
