"""NumPy as a peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmops.report.peers.base import Call, MakeCall
from tvmops.workloads import Workload


def matmul(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call:
    (a, b), (c,) = inputs, outputs
    return lambda: np.matmul(a, b, out=c)


CALLS: dict[str, MakeCall] = {"matmul": matmul}
