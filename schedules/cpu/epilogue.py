"""`Epilogue`: what happens to a value between its sum and its store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import TypeAlias

from tvm import tirx

from tvmops.ops.activations import CUBIC, SLOPE
from tvmops.schedules.cpu.vector_math import at_least, at_most, erf, fma, like, sigmoid, tanh
from tvmops.workloads import Workload

Value: TypeAlias = "tirx.Expr"
Load: TypeAlias = "Callable[[], Value]"


@dataclass(frozen=True)
class Epilogue:
    """activation(sum + bias + residual), on vectors of float32.

    The residual is added before the activation, as at the end of a block of a ResNet.
    """

    activation: str = "none"
    bias: bool = False
    residual: bool = False

    @classmethod
    def of(cls, workload: Workload) -> Epilogue:
        """Return what the fields `activation`, `bias` and `residual` of `workload` ask for."""
        return cls(str(workload["activation"]), workload["bias"] is True, workload["residual"] is True)

    @property
    def is_nothing(self) -> bool:
        """True if values are stored as they are."""
        return self == Epilogue()

    @property
    def is_long(self) -> bool:
        """True if it is tens of instructions: too many to repeat for each vector of a tile."""
        return self.activation not in ("none", "relu", "relu6", "hardswish")

    def apply(self, value: Value, width: int, bias: Load, residual: Load) -> Value:
        """Return what to store.

        Parameters
        ----------
        value
            A vector of `width` sums.
        bias, residual
            Return the vectors to add; called only where this epilogue has them.
        """
        if self.bias:
            value = value + bias()
        if self.residual:
            value = value + residual()
        return activate(self.activation, value, width)


def activate(activation: str, value: Value, width: int) -> Value:
    """Return `activation` of each of the `width` lanes of `value`."""
    if activation == "none":
        return value
    x = tirx.Var("x", f"float32x{width}" if width > 1 else "float32")
    return tirx.Let(x, value, VECTOR[activation](x))


def _relu6(x: Value) -> Value:
    return at_most(at_least(x, 0), 6)


def _gelu(x: Value) -> Value:
    return x * fma(erf(x * like(x, sqrt(0.5))), like(x, 0.5), like(x, 0.5))


def _gelu_tanh(x: Value) -> Value:
    argument = x * fma(x * x, like(x, SLOPE * CUBIC), like(x, SLOPE))
    return x * fma(tanh(argument), like(x, 0.5), like(x, 0.5))


def _hardswish(x: Value) -> Value:
    return x * (_relu6(x + like(x, 3)) * like(x, 1 / 6))


# Of a variable, which may stand in a formula many times.
VECTOR: dict[str, Callable[[Value], Value]] = {
    "none": lambda x: x,
    "relu": lambda x: at_least(x, 0),
    "relu6": _relu6,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * sigmoid(x),
    "hardswish": _hardswish,
    "sigmoid": sigmoid,
    "tanh": tanh,
}
