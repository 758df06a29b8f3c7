"""Other libraries on the same workload, each called in its best form.

All run on as many threads as this machine has physical cores and write to the arrays that
they are given. What the workload says is constant (packed weights), a peer may prepare
beforehand; everything else it gets anew with each call.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from tvmops.errors import ArgumentError
from tvmops.machine import physical_cores
from tvmops.report.peers.base import Call
from tvmops.workloads import Workload

# Each peer: the modules here that call it, and the packages that this takes.
PEERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "numpy": (("with_numpy",), ("numpy",)),
    "onnxruntime": (("with_onnxruntime", "integers_onnxruntime"), ("onnx", "onnxruntime")),
    "openvino": (("with_openvino", "integers_openvino"), ("openvino",)),
    "torch": (("with_torch", "integers_torch"), ("torch",)),
}

_FLOAT32 = ("softmax", "layer_norm", "rms_norm", "attention", "activation")  # of which only torch has others


def limit_threads() -> None:
    """Give OpenBLAS one thread a physical core; it reads this when NumPy is first imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(physical_cores()))


def peer_call(peer: str, workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """Return a call by which `peer` computes `workload` into `outputs`.

    None if it is not installed, or has no form of this workload. The arrays must outlive the
    call: some peers hold their addresses alone.

    Raises
    ------
    ArgumentError
        `peer` is none that is known here.
    """
    if peer not in PEERS:
        raise ArgumentError(argument="against", value=peer, expected="names among " + ", ".join(PEERS))
    modules, packages = PEERS[peer]
    if not all(find_spec(package) for package in packages):
        return None
    if peer != "torch" and workload.op in _FLOAT32 and workload["dtype"] != "float32":
        return None
    for module in modules:
        make = importlib.import_module(f"{__name__}.{module}").CALLS.get(workload.op)
        if make:
            call: Call | None = make(workload, inputs, outputs)
            return call
    return None


__all__ = ["PEERS", "Call", "limit_threads", "peer_call"]
