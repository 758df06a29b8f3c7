"""The operators, by name."""

from __future__ import annotations

from tvmops.errors import UnknownOpError
from tvmops.ops.activation import Activation
from tvmops.ops.attention import Attention
from tvmops.ops.base import Array, Exact, Op
from tvmops.ops.conv2d import Conv2D
from tvmops.ops.matmul import MatMul
from tvmops.ops.matmul_fp8 import MatMulFp8
from tvmops.ops.matmul_int8 import MatMulInt8
from tvmops.ops.matmul_weight_only import MatMulWeightOnly
from tvmops.ops.norm import LayerNorm, RMSNorm
from tvmops.ops.pool2d import Pool2D
from tvmops.ops.softmax import Softmax
from tvmops.workloads import Workload

_OPS: dict[str, Op] = {
    op.name: op
    for op in (
        MatMul(),
        MatMulFp8(),
        MatMulInt8(),
        MatMulWeightOnly(),
        Attention(),
        Conv2D(),
        Pool2D(),
        Softmax(),
        LayerNorm(),
        RMSNorm(),
        Activation(),
    )
}


def op_of(workload: Workload) -> Op:
    """Return the op that `workload` names."""
    if workload.op not in _OPS:
        raise UnknownOpError(op=workload.op, known=", ".join(_OPS))
    return _OPS[workload.op]


__all__ = ["Array", "Exact", "Op", "op_of"]
