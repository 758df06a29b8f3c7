"""NumPy as a peer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tvmops.report.peers.base import Call, MakeCall, matmul_operands
from tvmops.workloads import Workload


def matmul(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    if workload["dtype"] != "float32" or workload["activation"] not in ("none", "relu"):
        return None
    given, (c,) = matmul_operands(workload, inputs), outputs
    a, b = given.pop("a"), given.pop("b")

    def call() -> None:
        np.matmul(a, b, out=c)
        for addend in given.values():
            np.add(c, addend, out=c)
        if workload["activation"] == "relu":
            np.maximum(c, 0, out=c)

    plain = not given and workload["activation"] == "none"
    return (lambda: np.matmul(a, b, out=c)) if plain else call


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
