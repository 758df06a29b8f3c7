"""Ops on rows and on elements, as methods."""

from __future__ import annotations

from typing import Any

from tvmops.errors import CallTypeError
from tvmops.runtime.families.base import Family


class Rows(Family):
    """Softmax, norms and activations."""

    def softmax(
        self,
        x: Any,
        axis: int = -1,
        scale: float | None = None,
        mask: Any = None,
        log: bool = False,
        out: Any = None,
    ) -> Any:
        """Return softmax(x * scale + mask) along one axis, or its logarithm.

        Parameters
        ----------
        x
            Array of any shape, float32 or bfloat16; computed in float32.
        axis
            Along which the results add up to one.
        scale
            A number; 1 where it is left out.
        mask
            Of the dtype of x, added after scaling; or bool, true where an element counts. Of a
            shape that broadcasts to that of x.
        log
            Return the logarithm, without ever computing that of a small number.
        out
            Where to write the result, of the shape of x: dense, not overlapping an input.
            Without it a new array is made.

        A row that is -inf throughout gives NaN, as in PyTorch.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        """
        arrays = (x, mask)
        arguments = (x, axis, scale, mask, log)
        return self._call("softmax", arrays, (axis, scale, log), arguments, (out,))[0]

    def layer_norm(
        self,
        x: Any,
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
        residual: Any = None,
        out: Any = None,
    ) -> Any:
        """Return (x - mean) / sqrt(variance + eps) * weight + bias, and x + residual with a residual.

        Parameters
        ----------
        x
            Array of any shape, float32 or bfloat16; computed in float32.
        weight, bias
            Of the dtype of x and of the shape of its last dimensions, those that are normalised
            together; the last one where neither is given.
        eps
            Is added to the variance.
        residual
            Array of the dtype and shape of x, added to it first. There are two results then: the
            normalised sum, and the sum.
        out
            Where to write the result, of the shape of x: dense, not overlapping an input; with
            a residual a pair of such. Without it new arrays are made.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        """
        return self._norm("layer_norm", x, weight, bias, eps, residual, out)

    def rms_norm(
        self,
        x: Any,
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
        residual: Any = None,
        out: Any = None,
    ) -> Any:
        """Return x / sqrt(mean of x**2 + eps) * weight + bias, and x + residual with a residual.

        Parameters and errors are those of `layer_norm`.
        """
        return self._norm("rms_norm", x, weight, bias, eps, residual, out)

    def _norm(self, op: str, x: Any, weight: Any, bias: Any, eps: float, residual: Any, out: Any) -> Any:
        outs = (out,)
        if residual is not None:
            if out is not None and not (isinstance(out, tuple | list) and len(out) == 2):
                raise CallTypeError(
                    op=op, argument="out", value=type(out).__name__, expected="a pair of arrays"
                )
            outs = (None, None) if out is None else tuple(out)
        arrays = (x, weight, bias, residual)
        arguments = (x, weight, bias, eps, residual)
        made = self._call(op, arrays, (eps,), arguments, outs)
        return made[0] if residual is None else made

    def activation(self, activation: str, x: Any, out: Any = None) -> Any:
        """Return an activation of each element of x.

        Parameters
        ----------
        activation
            relu, relu6, gelu, gelu_tanh, silu, hardswish, sigmoid or tanh.
        x
            Array of any shape, float32 or bfloat16; computed in float32.
        out
            Where to write the result, of the shape of x: dense, not overlapping it. Without it
            a new array is made.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        """
        arrays = (x,)
        arguments = (activation, x)
        return self._call("activation", arrays, (activation,), arguments, (out,))[0]
