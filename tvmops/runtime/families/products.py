"""Products of matrices of 8 bits and fewer, as methods."""

from __future__ import annotations

from typing import Any

from tvmops.runtime.families.base import Family
from tvmops.runtime.packed import PackedWeight


class NarrowProducts(Family):
    """matmul_fp8, matmul_int8 and matmul_weight_only."""

    def matmul_fp8(
        self, a: Any, b: Any, a_scale: Any, b_scale: Any, out_dtype: str | None = None, out: Any = None
    ) -> Any:
        """Return a_scale * b_scale * (a @ b.T), a and b of 8-bit floating point, on a GPU.

        Parameters
        ----------
        a, b
            Tensors of shape (m, k) and (n, k), both float8_e4m3fn or both float8_e5m2.
        a_scale, b_scale
            float32: one number each, or m of them and n, one for each row of a and of b.
        out_dtype
            "bfloat16", by default, "float16" or "float32".
        out
            Where to write the result, of shape (m, n): dense, not overlapping an input.
            Without it a new array is made.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        NotInLibraryError
            The library was exported without such a form of matmul_fp8.
        """
        arrays = (a, b, a_scale, b_scale)
        return self._call("matmul_fp8", arrays, (out_dtype,), (*arrays, out_dtype), (out,))[0]

    def matmul_int8(
        self,
        a: Any,
        b: Any,
        a_zero_point: int = 0,
        a_scale: float | None = None,
        b_scale: Any = None,
        bias: Any = None,
        activation: str | None = None,
        out_dtype: str | None = None,
        out_scale: float = 1.0,
        out_zero_point: int = 0,
        trans_b: bool = False,
        b_zero_point: Any = 0,
        out: Any = None,
    ) -> Any:
        """Return (a - a_zero_point) @ (b - b_zero_point) of 8-bit integers, rescaled if wished.

        Sums are int32 and exact: k is at most 32,000, or 21,000 where b has zero points, so that
        they fit whatever the values.

        Parameters
        ----------
        a
            Array of shape (m, k), uint8 or int8.
        b
            Array of shape (k, n), int8, or what `pack("matmul_int8", b)` returned. With `trans_b`
            an array of shape (n, k).
        a_zero_point
            The integer of a that stands for 0.
        b_zero_point
            The integer of b that stands for 0; or an array of shape (n,), int32, one a column.
        a_scale, b_scale
            What a step of a and of b stands for: numbers; b_scale may be an array of shape (n,),
            float32, one a column. With either or with a bias the result is float32.
        bias
            Array of shape (n,), float32, in terms of the rescaled result.
        activation
            Of the rescaled result: relu, relu6, gelu, gelu_tanh, silu, hardswish, sigmoid or tanh.
        out_dtype
            "int32": the sums as they are, exact. "float32": activation(a_scale * b_scale * sums +
            bias). "uint8", "int8": that quantised by `out_scale` and `out_zero_point`, rounded to
            nearest, ties to even, and clipped.
        out
            Where to write the result, of shape (m, n): dense, not overlapping an input.
            Without it a new array is made.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        NotInLibraryError
            The library was exported without such a form of matmul_int8.
        """
        zeros, zero = _by_channel(b_zero_point)
        scales, scale = _by_channel(b_scale)
        arrays = (a, b, zeros, scales, bias)
        rest = activation, out_dtype, out_scale, out_zero_point, trans_b
        arguments = (a, b, a_zero_point, a_scale, b_scale, bias, *rest, b_zero_point)
        return self._call(
            "matmul_int8", arrays, (a_zero_point, a_scale, zero, scale, *rest), arguments, (out,)
        )[0]

    def matmul_weight_only(
        self,
        x: Any,
        w: PackedWeight,
        x_bits: int = 24,
        bias: Any = None,
        activation: str | None = None,
        out: Any = None,
    ) -> Any:
        """Return activation(x @ w.T + bias) for integer weights with a scale for each group of k.

        Parameters
        ----------
        x
            Array of shape (m, k), float32 or bfloat16.
        w
            What `pack("matmul_weight_only", quantized)` returned, of weights (n, k) that
            `tvmops.quantize.quantize(..., axis=1, group=...)` made: int4, uint4, int8 or uint8.
        x_bits
            How finely values of x are told apart within a group: 24 bits, as float32 does; 16; or
            8, which is faster, and what others call dynamic quantisation.
        bias
            Array of shape (n,), of the dtype of x.
        activation
            relu, relu6, gelu, gelu_tanh, silu, hardswish, sigmoid or tanh.
        out
            Where to write the result, of shape (m, n) and the dtype of x: dense, not overlapping an
            input. Without it a new array is made.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        NotInLibraryError
            The library was exported without such an epilogue, or such weights.
        """
        arguments = (x, w, x_bits, bias, activation)
        return self._call("matmul_weight_only", (x, w, bias), (x_bits, activation), arguments, (out,))[0]


def _by_channel(value: Any) -> tuple[Any, Any]:
    """Return `value` as an array and a number, of which one is None."""
    is_array = hasattr(value, "shape") and len(value.shape) == 1
    return (value, None) if is_array else (None, value)
