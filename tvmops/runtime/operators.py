"""The operators, as methods: what users of a library call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from tvmops.errors import ArgumentError
from tvmops.runtime.calls import PACKS
from tvmops.runtime.calls.conv2d import held_layout
from tvmops.runtime.families import Attention, Images, NarrowProducts, Rows
from tvmops.runtime.known import REFUSALS
from tvmops.runtime.packed import PackedWeight
from tvmops.workloads import Workload


class Operators(NarrowProducts, Attention, Images, Rows):
    """One method an op; here are matmul, and the packing of weights."""

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
