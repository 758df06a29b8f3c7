"""The operators, as methods: what users of a library call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from tvmops.errors import ArgumentError, CallTypeError
from tvmops.runtime.calls import CALLS, PACKS, Call
from tvmops.runtime.calls.conv2d import held_layout
from tvmops.runtime.known import REFUSALS, Key, KnownCalls, key_of
from tvmops.runtime.packed import PackedWeight
from tvmops.workloads import Workload


class Operators(ABC):
    """One method an op. A call like an earlier one goes straight to its kernel."""

    def __init__(self) -> None:
        self._known = KnownCalls()

    def _call(
        self,
        op: str,
        arrays: tuple[Any, ...],
        attributes: tuple[Any, ...],
        arguments: tuple[Any, ...],
        outs: tuple[Any, ...],
    ) -> tuple[Any, ...]:
        """Answer a call of `op` with `arguments`: `arrays`, which have shapes, and `attributes`."""
        key = key_of(op, arrays, attributes)
        made = self._known.answer(key, arrays, outs)
        return self._answer(key, arrays, CALLS[op](*arguments), outs) if made is None else made

    @abstractmethod
    def _answer(
        self, key: Key, arrays: tuple[Any, ...], call: Call, outs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Compute `call` into `outs`, of which those that are None are made, and remember how.

        Parameters
        ----------
        key, arrays
            The same that `KnownCalls.answer` got.
        """

    def matmul(
        self,
        a: Any,
        b: Any,
        bias: Any = None,
        activation: str | None = None,
        trans_a: bool = False,
        trans_b: bool = False,
        residual: Any = None,
        out: Any = None,
        out_dtype: str | None = None,
        precision: str | None = None,
    ) -> Any:
        """Return activation(a @ b + bias + residual), summed in float32.

        Parameters
        ----------
        a, b
            Arrays of shape (..., m, k) and (..., k, n), both float32 or both bfloat16. Batch
            dimensions broadcast as those of `numpy.matmul` do. b may be what `pack` returned.
            CPUs that multiply pairs of bfloat16 take numbers of that below 2**-126 (1.2e-38,
            denormal ones) for zeros.
        bias
            Array of shape (n,), of the dtype of a and b, or float32.
        activation
            relu, relu6, gelu, gelu_tanh, silu, hardswish, sigmoid or tanh.
        trans_a, trans_b
            a is (..., k, m), b is (..., n, k). A transposed view means the same. Both are read
            as they lie where the library has a kernel for that, else copied.
        residual
            Array of the result's shape and dtype, added before the activation.
        out_dtype
            "float32": a result that is not rounded to bfloat16. By default it is as a and b.
        precision
            "tf32": of float32 operands 10 bits of the mantissas are enough. By default all count.
        out
            Where to write the result, of shape (..., m, n): dense, not overlapping an input.
            Without it a new array is made.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        NotInLibraryError
            The library was exported without such an epilogue, or without packed weights.
        """
        # np.matmul is quick: a plain product into a given array takes no longer than it must
        kind, is_packed = type(a), type(b) is PackedWeight
        if (
            kind is type(out)
            and (is_packed or kind is type(b))
            and bias is activation is residual is out_dtype is precision is None
        ):
            try:
                layout = b.layout if is_packed else None
                kernel = self._known.products.get((kind, a.shape, layout, b.shape, trans_a, trans_b))
                if kernel is not None:
                    kernel(a, b.array if is_packed else b, out)
                    return out
            except REFUSALS:
                pass  # the careful way says why, or copies
        arrays = (a, b, bias, residual)
        arguments = (a, b, bias, activation, trans_a, trans_b, residual, out_dtype, precision)
        attributes = (activation, trans_a, trans_b, out_dtype, precision)
        return self._call("matmul", arrays, attributes, arguments, (out,))[0]

    def pack(self, op: str, weight: Any, **attributes: Any) -> PackedWeight:
        """Return `weight` as kernels for constant weights read it, to be packed once and used often.

        Parameters
        ----------
        op
            "matmul" or "matmul_int8", whose weight is b, or "conv2d", whose weight is w.
        weight
            Array of shape (k, n), float32; (n, k) with `trans_b=True`. For matmul_int8 (k, n), int8.
            For conv2d (co, ci, kh, kw), float32; (co, kh, kw, ci) with `layout="NHWC"`; no groups.
        packed
            The layout, by its name, where an op has several: for conv2d "panels-nchw",
            "panels-nhwc", or "winograd4" and "winograd2", of kernels of 3x3 with stride and
            dilation 1. By default one that this library has tuned kernels for, if any. Each serves
            images of any size; "winograd4" is unpacked for fewer than 10 channels of x.

        Raises
        ------
        ArgumentError
            `op` takes no packed weights.
        CallError, CallTypeError
            The weight does not fit; the message says how.
        """
        if op not in PACKS:
            raise ArgumentError(argument="op", value=op, expected="one of " + ", ".join(PACKS))
        if op == "conv2d" and attributes.get("packed") is None:
            attributes["packed"] = held_layout(self._tuned(op), weight, **attributes)
        return PACKS[op](weight, **attributes)

    @abstractmethod
    def _tuned(self, op: str) -> Iterable[tuple[Workload, float]]:
        """Return the workloads of `op` that there are tuned kernels for, and their seconds."""

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

    def attention(
        self,
        q: Any,
        k: Any,
        v: Any,
        causal: bool = False,
        scale: float | None = None,
        mask: Any = None,
        align: str = "bottom-right",
        out: Any = None,
        lengths: Any = None,
        block_table: Any = None,
    ) -> Any:
        """Return softmax(scale * q @ k.T + mask) @ v for each head.

        Parameters
        ----------
        q
            Array of shape (batch, heads, q_len, head_dim), float32 or bfloat16; computed in float32.
            CPUs that multiply pairs of bfloat16 may take numbers of that below 2**-126 (1.2e-38,
            denormal ones) for zeros.
        k, v
            Arrays of shape (batch, kv_heads, kv_len, head_dim); kv_heads divides heads, and
            as many neighbouring heads of q share a head of k and v. Where q, k and v are all views
            of (batch, length, heads, head_dim), a library with kernels for `layout=blhd` reads them
            in place; otherwise they are copied.
        causal
            Let a query see no later key: query i sees key j where j <= i + kv_len - q_len.
        scale
            1 / sqrt(head_dim) by default.
        mask
            Bool, true where a key is seen; or float32, added to the scores (beside a q of bfloat16
            one of that, too, which is copied). Of a shape that broadcasts to (batch, heads, q_len,
            kv_len). May be given together with `causal`.
        align
            "bottom-right": as above, the last query sees all keys. "top-left": query i sees key
            j where j <= i, as PyTorch's `is_causal`. They differ where q_len is not kv_len.
        out
            Where to write the result, of the shape of q: dense, not overlapping an input.
            Without it a new array is made.
        lengths
            int32 of shape (batch): how many keys each sequence has, from 0 to kv_len; those after them
            are not seen, and take no part in how `causal` aligns; v must be finite there (pages may hold
            anything). Kernels for CUDA alone.
        block_table
            int32 of shape (batch, columns). k and v are then pools of pages, of shape (pages, kv_heads,
            page_size, head_dim), or views of (pages, page_size, kv_heads, head_dim), and row
            `block_table[b, j // page_size]` of them holds key j of sequence b. Needs `lengths`.

        A query that sees no key has the result 0.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        """
        arrays = (q, k, v, mask, lengths, block_table)
        arguments = (q, k, v, causal, scale, mask, align, lengths, block_table)
        return self._call("attention", arrays, (causal, scale, align), arguments, (out,))[0]

    def conv2d(
        self,
        x: Any,
        w: Any,
        bias: Any = None,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        activation: str | None = None,
        residual: Any = None,
        layout: str = "NCHW",
        out: Any = None,
    ) -> Any:
        """Return activation(conv(x, w) + bias + residual).

        Parameters
        ----------
        x
            Images, float32, of shape (n, ci, h, w); (n, h, w, ci) where `layout` is "NHWC".
        w
            Weights, float32, of shape (co, ci / groups, kh, kw); (co, kh, kw, ci / groups) for
            NHWC, as torch.channels_last lays them out; or what `pack` returned.
        bias
            Shape (co,).
        stride, dilation
            One number, or (h, w).
        padding
            Zeros around the image: one number, (h, w), or (top, left, bottom, right); "valid"
            is none, "same" makes the output ceil(size / stride), the odd row and column of
            zeros at the bottom and right.
        groups
            Into how many groups the channels are divided; ci of them for a depthwise one.
        activation
            "relu", "relu6", "gelu", "gelu_tanh", "silu", "hardswish", "sigmoid" or "tanh".
        residual
            Is added before the activation; of the result's shape.
        layout
            "NCHW" or "NHWC", of x, w, residual and the result.
        out
            Where to write the result: dense, not overlapping an input. Without it a new array is made.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        """
        arrays = (x, w, bias, residual)
        attributes = (stride, padding, dilation, groups, activation, layout)
        arguments = (x, w, bias, stride, padding, dilation, groups, activation, residual, layout)
        return self._call("conv2d", arrays, attributes, arguments, (out,))[0]

    def pool2d(
        self,
        x: Any,
        kernel: int | tuple[int, int] | str,
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, ...] | str = 0,
        kind: str = "max",
        dilation: int | tuple[int, int] = 1,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        layout: str = "NCHW",
        out: Any = None,
    ) -> Any:
        """Return the largest element, or the mean, of each window of each channel.

        Parameters
        ----------
        x
            Images, float32, of shape (n, c, h, w); (n, h, w, c) where `layout` is "NHWC".
        kernel
            One number, or (h, w); "global": the whole image, so that the result is 1 x 1.
        stride
            One number, or (h, w); that of the kernel where it is left out.
        padding
            One number, (h, w), (top, left, bottom, right), "valid" or "same", as `conv2d` takes
            it, of at most half of the kernel; -inf for max, zeros for the mean.
        kind
            "max" or "average". A window that holds a NaN gives NaN.
        dilation
            Steps between the elements of a window, for max; one number, or (h, w).
        ceil_mode
            Round the output's size up: a last window may end beyond the padding.
        count_include_pad
            Let the padding count in the mean.
        layout
            "NCHW" or "NHWC", of x and the result.
        out
            Where to write the result: dense, not overlapping an input. Without it a new array is made.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        """
        attributes = (kernel, stride, padding, kind, dilation, ceil_mode, count_include_pad, layout)
        return self._call("pool2d", (x,), attributes, (x, *attributes), (out,))[0]

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


def _by_channel(value: Any) -> tuple[Any, Any]:
    """Return `value` as an array and a number, of which one is None."""
    is_array = hasattr(value, "shape") and len(value.shape) == 1
    return (value, None) if is_array else (None, value)
