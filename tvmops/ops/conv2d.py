"""Conv2D: each output pixel is a sum over the window of the image that lies under the kernel."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from tvmops.ops.activations import STEEPEST, activated, expression
from tvmops.ops.base import Array, Exact, Op
from tvmops.ops.matmul import ROUNDING, SUM
from tvmops.ops.winograd import weights_of
from tvmops.signatures.activations import NONE
from tvmops.signatures.conv2d import weight_sizes
from tvmops.signatures.layouts import PLAIN, ConvPanels, layout_of
from tvmops.signatures.windows import output_size, windows
from tvmops.signatures.winograd import TAPS
from tvmops.workloads import Workload

UNIT_ROUNDOFF = 2.0**-24  # of float32

_WINOGRAD_GAIN = 4  # 16 x 9 products by the definition, 36 by F(4x4, 3x3)


class Conv2D(Op):
    """y = activation(conv(x, w) + bias + residual), a cross-correlation as in deep learning.

        conv[n, o, i, j] = sum over c, r, s of xp[n, c, i sh + r dh, j sw + s dw] * w[o, c, r, s]

    where xp is x with zeros around it, and c runs over the input channels of the group of o.
    Zeros of the padding are multiplied like any others: an infinite weight gives NaN there.

    All tensors are `dtype`; accumulation and epilogue are float32. With k = ci / groups * kh * kw
    and |x|, |w|, |bias|, |residual| <= 1 each kernel is held to 4 (k + 3) u, u = 2**-24, times the
    steepest slope of the activation: far inside the worst case, k**2 u (N. Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.5), and far outside what rounding at random
    reaches. A result of 16 bits is rounded once more, as a matmul's is.
    """

    name = "conv2d"

    def expression(self, workload: Workload) -> list[Any]:
        from tvm import te, topi  # here, so that flops and references need no compiler

        ci, co, kh, kw, groups = workload.dims("ci", "co", "kh", "kw", "groups")
        dtype, channels_last = str(workload["dtype"]), workload["layout"] == "NHWC"
        down, across = windows(workload)
        args = {spec.name: te.placeholder(spec.shape, dtype, spec.name) for spec in self.inputs(workload)}
        (output,) = self.outputs(workload)
        is_packed = workload["packed"] != PLAIN
        weights = _unpacked(workload, args["w"]) if is_packed else args["w"]
        before, after = (
            (0, *zeros, 0) if channels_last else (0, 0, *zeros)
            for zeros in ((down.before, across.before), (down.after, across.after))
        )
        padded = topi.nn.pad(args["x"], before, after)
        c, r, s = (te.reduce_axis((0, size)) for size in (ci // groups, kh, kw))

        def product(*at: Any) -> Any:
            b, o, i, j = (at[0], at[3], at[1], at[2]) if channels_last else at
            channel = o // (co // groups) * (ci // groups) + c
            row, column = i * down.stride + r * down.dilation, j * across.stride + s * across.dilation
            weight = weights[o, c, r, s] if is_packed or not channels_last else weights[o, r, s, c]
            weight = weight.astype(SUM)
            if channels_last:
                return te.sum(padded[b, row, column, channel].astype(SUM) * weight, [r, s, c])
            return te.sum(padded[b, channel, row, column].astype(SUM) * weight, [c, r, s])

        sums = te.compute(output.shape, product, "y")
        is_plain = workload["activation"] == NONE and not workload["bias"] and not workload["residual"]
        if is_plain and dtype == SUM:
            return [*args.values(), sums]

        def end(*at: Any) -> Any:
            value = sums[at]
            if workload["bias"]:
                value = value + args["bias"][at[3 if channels_last else 1]].astype(SUM)
            if workload["residual"]:
                value = value + args["residual"][at].astype(SUM)
            return expression(str(workload["activation"]), value, SUM).astype(dtype)

        return [*args.values(), te.compute(output.shape, end, "y")]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        specs = self.inputs(workload)
        given = {spec.name: array.astype(np.float64) for spec, array in zip(specs, inputs)}
        x, w = given["x"], given["w"]
        channels_last = workload["layout"] == "NHWC"
        if channels_last:
            x = np.moveaxis(x, 3, 1)
        if workload["packed"] != PLAIN:
            w = layout_of(workload).unpack(w, *weight_sizes(workload))
        elif channels_last:
            w = np.moveaxis(w, 3, 1)
        total = _convolved(workload, x, w)
        if channels_last:
            total = np.moveaxis(total, 1, 3)
        if "bias" in given:
            total = total + (given["bias"] if channels_last else given["bias"][:, None, None])
        if "residual" in given:
            total = total + given["residual"]
        return (np.ascontiguousarray(activated(str(workload["activation"]), total)),)

    def random_inputs(self, workload: Workload, seed: int) -> list[Array]:
        if workload["packed"] == PLAIN:
            return super().random_inputs(workload, seed)
        plain = workload.replace(packed=PLAIN, layout="NCHW")
        x, w, *others = super().random_inputs(plain, seed)
        x, *others = (
            np.ascontiguousarray(np.moveaxis(each, 1, 3))
            if workload["layout"] == "NHWC" and each.ndim == 4
            else each
            for each in (x, *others)
        )
        return [x, layout_of(workload).pack(w), *others]

    def flops(self, workload: Workload) -> int:
        n, co = workload.dims("n", "co")
        oh, ow = output_size(workload)
        return 2 * n * co * oh * ow * _terms(workload)

    def least_flops(self, workload: Workload) -> int:
        return self.flops(workload) // (_WINOGRAD_GAIN if suits_winograd(workload) else 1)

    def tolerance(self, workload: Workload) -> float:
        terms, activation = _terms(workload) + 2, str(workload["activation"])
        sums = STEEPEST[activation] * 4 * (terms + 1) * UNIT_ROUNDOFF
        rounding = ROUNDING[str(workload["dtype"])]
        if not rounding:
            return sums
        result = min(terms, 2 * sqrt(terms) + 1)
        return sums + rounding * result + 8 * UNIT_ROUNDOFF * (activation != NONE) * result


def suits_winograd(workload: Workload) -> bool:
    """Say whether Winograd's algorithms for 3x3 kernels compute it."""
    dense = all((each.size, each.stride, each.reach) == (TAPS, 1, TAPS) for each in windows(workload))
    return dense and workload["groups"] == 1


def _unpacked(workload: Workload, packed: Any) -> Any:
    """Return the weights (co, ci, kh, kw) that `packed` was made of, as a tensor expression."""
    from tvm import te

    layout = layout_of(workload)
    co, ci, kh, kw = weight_sizes(workload)
    if not isinstance(layout, ConvPanels):
        return weights_of(packed, str(workload["packed"]), co)
    columns, last = packed.shape[2], layout.image == "NHWC"

    def weight(o: Any, c: Any, r: Any, s: Any) -> Any:
        k = (r * kw + s) * ci + c if last else (c * kh + r) * kw + s
        return packed[o // columns, k, o % columns]

    return te.compute((co, ci, kh, kw), weight, "weights")


def _terms(workload: Workload) -> int:
    """Count the products that make one element of the output."""
    ci, groups, kh, kw = workload.dims("ci", "groups", "kh", "kw")
    return ci // groups * kh * kw


def _convolved(workload: Workload, x: Exact, w: Exact) -> Exact:
    """Sum, over all places in the kernel, the products of matrices: weights times pixels."""
    down, across = windows(workload)
    oh, ow = output_size(workload)
    groups = workload.dims("groups")[0]
    n, ci, co = x.shape[0], x.shape[1], w.shape[0]
    sides = ((down.before, down.after), (across.before, across.after))
    padded = np.pad(x, ((0, 0), (0, 0), *sides))
    total = np.zeros((n, groups, co // groups, oh * ow))
    with np.errstate(invalid="ignore", over="ignore"):
        for r in range(down.size):
            for s in range(across.size):
                top, left = r * down.dilation, s * across.dilation
                rows = slice(top, top + (oh - 1) * down.stride + 1, down.stride)
                columns = slice(left, left + (ow - 1) * across.stride + 1, across.stride)
                pixels = padded[:, :, rows, columns].reshape(n, groups, ci // groups, oh * ow)
                total += w[:, :, r, s].reshape(groups, co // groups, ci // groups) @ pixels
    return total.reshape(n, co, oh, ow)
