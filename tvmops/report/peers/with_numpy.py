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


def softmax(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    if workload["log"] or workload["mask_rows"] or workload["scaled"]:
        return None
    (x,), (out,) = inputs, outputs

    def call() -> None:
        np.subtract(x, x.max(axis=1, keepdims=True), out=out)
        np.exp(out, out=out)
        np.divide(out, out.sum(axis=1, keepdims=True), out=out)

    return call


CALLS: dict[str, MakeCall] = {"matmul": matmul, "softmax": softmax}
