"""`Epilogue`: what happens to a value between its sum and its store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tvm import tirx

from tvmops.schedules.cpu.emit import broadcast
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
    return VECTOR[activation](value, width)


def _constant(value: float, width: int) -> Value:
    return broadcast(tirx.const(value, "float32"), width)


def _at_least(bound: float, value: Value, width: int) -> Value:
    """Return the larger one; NaN where `value` is NaN, which `tirx.max` would lose."""
    low = _constant(bound, width)
    return tirx.Select(low > value, low, value)


def _at_most(bound: float, value: Value, width: int) -> Value:
    high = _constant(bound, width)
    return tirx.Select(high < value, high, value)


def _relu6(value: Value, width: int) -> Value:
    return _at_most(6, _at_least(0, value, width), width)


VECTOR: dict[str, Callable[[Value, int], Value]] = {
    "none": lambda x, width: x,
    "relu": lambda x, width: _at_least(0, x, width),
    "relu6": _relu6,
    "hardswish": lambda x, width: x * (_relu6(x + _constant(3, width), width) * _constant(1 / 6, width)),
}
