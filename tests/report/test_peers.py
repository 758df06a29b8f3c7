"""What peers are timed for is the same that our kernels compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvmops.measure.verify import largest_error, poisoned
from tvmops.ops import op_of
from tvmops.report import turns
from tvmops.report.peers import PEERS, peer_call
from tvmops.signatures.dtypes import decode
from tvmops.workloads import workload

SIZES = {"m": 4, "n": 32, "k": 64}
# Forms that peers may lack, and the peers that have them: convolutions, then low precision.
CONV = {"op": "conv2d", "n": 1, "h": 9, "w": 9, "ci": 8, "co": 8, "kh": 3, "kw": 3, "padding": 1}
EVERY = {"torch", "onnxruntime", "openvino"}
FORMS: list[tuple[dict[str, Any], set[str]]] = [
    ({**CONV, "bias": True, "activation": "relu6"}, EVERY),
    ({**CONV, "bias": True, "activation": "relu6", "packed": "panels-nchw"}, EVERY),
    ({**CONV, "groups": 8, "bias": True, "activation": "relu6"}, EVERY),
    ({**CONV, "groups": 2, "packed": "panels-nchw"}, EVERY),
    ({**CONV, "groups": 8, "layout": "NHWC", "activation": "relu"}, EVERY),
    ({**CONV, "activation": "hardswish"}, {"torch", "openvino"}),
    ({"op": "matmul", "dtype": "bfloat16"}, {"torch", "openvino"}),
    ({"op": "matmul", "dtype": "bfloat16", "packed": "words"}, {"torch", "openvino"}),
    ({"op": "matmul_int8"}, {"torch", "onnxruntime"}),
    ({"op": "matmul_int8", "dtype": "int8", "packed": "words"}, {"torch", "onnxruntime"}),
    (
        {"op": "matmul_int8", "out_dtype": "float32", "scales": "channel", "bias": True, "packed": "words"},
        {"torch", "onnxruntime", "openvino"},
    ),
    ({"op": "matmul_int8", "out_dtype": "float32"}, {"onnxruntime"}),
    ({"op": "matmul_int8", "out_dtype": "uint8", "packed": "words"}, {"torch", "onnxruntime", "openvino"}),
    (
        {"op": "matmul_int8", "dtype": "int8", "out_dtype": "int8", "scales": "channel", "packed": "words"},
        {"torch", "onnxruntime", "openvino"},
    ),
    ({"op": "matmul_weight_only", "group": 32}, {"torch", "onnxruntime", "openvino"}),
    ({"op": "matmul_weight_only", "group": 32, "zero_points": True}, {"torch", "onnxruntime", "openvino"}),
    ({"op": "matmul_weight_only", "group": 64, "x_bits": 8}, {"onnxruntime", "openvino"}),
    ({"op": "matmul_weight_only", "group": 32, "bits": 8, "zero_points": True}, {"onnxruntime", "openvino"}),
    ({"op": "matmul_weight_only", "group": 48}, set()),  # a group that goes beyond k
]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PAUSE_SECONDS", "_WARM_SECONDS", "_TURN_SECONDS"):
        monkeypatch.setattr(turns, name, 0.0)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(
    "form, having",
    FORMS,
    ids=lambda value: str(value) if isinstance(value, dict) else " ".join(sorted(value)),
)
def test_a_peer_computes_what_the_workload_says(form: dict[str, Any], having: set[str], peer: str) -> None:
    sizes = {} if form["op"] == "conv2d" else SIZES
    work = workload(form["op"], **sizes, **{name: form[name] for name in form if name != "op"})
    op = op_of(work)
    inputs, (spec,) = op.random_inputs(work, seed=2), op.outputs(work)
    arrays = [decode(each, s.dtype) for s, each in zip(op.inputs(work), inputs)]
    (expected,) = op.reference(work, *arrays)
    out = poisoned(expected, spec.dtype)
    for package in PEERS[peer][1]:
        pytest.importorskip(package)
    call = peer_call(peer, work, inputs, [out])
    assert (call is not None) == (peer in having)
    if call is not None:
        call()
        assert largest_error(decode(out, spec.dtype), expected) <= 1.5 * op.tolerance(work)


def test_a_peer_that_is_far_off_is_no_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmops.report.compare import OURS, Comparison
    from tvmops.report.turns import Timing

    timings = {name: Timing((seconds,)) for name, seconds in ((OURS, 3.0), ("right", 2.0), ("wrong", 1.0))}
    errors = {OURS: 0.0, "right": 0.2, "wrong": np.nan}
    compared = Comparison(workload("matmul", **SIZES), "exact", "kernel", 1, 0.1, timings, errors)
    assert compared.best_peer == "right"
    assert set(compared.wrong) == {"right", "wrong"}
