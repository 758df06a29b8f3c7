"""What each op takes and gives, by its name. Both halves read this table."""

from __future__ import annotations

from tvmops.signatures.activation import Activation
from tvmops.signatures.attention import Attention
from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.conv2d import Conv2D
from tvmops.signatures.fields import ANY, Choice, Dim, Field, Flag, Range, Sizes, Value
from tvmops.signatures.matmul import MatMul
from tvmops.signatures.matmul_fp8 import MatMulFp8
from tvmops.signatures.matmul_int8 import MatMulInt8
from tvmops.signatures.matmul_weight_only import MatMulWeightOnly
from tvmops.signatures.norm import Norm
from tvmops.signatures.pool2d import Pool2D
from tvmops.signatures.softmax import Softmax

SIGNATURES: dict[str, Signature] = {
    "matmul": MatMul(),
    "matmul_fp8": MatMulFp8(),
    "matmul_int8": MatMulInt8(),
    "matmul_weight_only": MatMulWeightOnly(),
    "attention": Attention(),
    "conv2d": Conv2D(),
    "pool2d": Pool2D(),
    "softmax": Softmax(),
    "layer_norm": Norm(),
    "rms_norm": Norm(),
    "activation": Activation(),
}

__all__ = [
    "ANY",
    "SIGNATURES",
    "Choice",
    "Dim",
    "Field",
    "Flag",
    "Range",
    "Signature",
    "Sizes",
    "TensorSpec",
    "Value",
]
