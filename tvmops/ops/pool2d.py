"""Pool2D: each output pixel is the largest, or the mean, of the window of its channel under the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmops.ops.base import Array, Exact, Op
from tvmops.signatures.pool2d import GLOBAL, MAX
from tvmops.signatures.windows import Window, windows
from tvmops.workloads import Workload

UNIT_ROUNDOFF = 2.0**-24  # of float32


class Pool2D(Op):
    """y = max or mean of x over windows of the image, channel by channel, as in PyTorch.

    The padding is -inf for max, whose result is NaN where the window holds one. For the mean it
    is zeros, which count with `count_include_pad`; what a window of `ceil_mode` has beyond the
    padding never does.

    The maximum is exact. A mean is a float32 sum of k numbers, times the rounded reciprocal of
    their count: for |x| <= 1 an error of at most (k + 2) u, u = 2**-24 (N. Higham, Accuracy and
    Stability of Numerical Algorithms, section 4.2).
    """

    name = "pool2d"

    def expression(self, workload: Workload) -> list[Any]:
        from tvm import te, tirx, topi  # here, so that flops and references need no compiler

        dtype, is_max = str(workload["dtype"]), workload["kind"] == MAX
        (spec,), (output,) = self.inputs(workload), self.outputs(workload)
        x = te.placeholder(spec.shape, dtype, spec.name)
        down, across = _windows(workload)
        h, w = workload.dims("h", "w")
        channels_last = workload["layout"] == "NHWC"
        before, after = (
            (0, *sides, 0) if channels_last else (0, 0, *sides)
            for sides in ((down.before, across.before), (_behind(down, h), _behind(across, w)))
        )
        padded = topi.nn.pad(x, before, after, tirx.const(-np.inf if is_max else 0.0, dtype))
        larger = te.comm_reducer(
            lambda a, b: tirx.Select(tirx.any(a > b, tirx.isnan(a)), a, b),
            lambda dtype: tirx.const(-np.inf, dtype),
        )
        r, s = te.reduce_axis((0, down.size)), te.reduce_axis((0, across.size))

        def pooled(*at: Any) -> Any:
            b, c, i, j = (at[0], at[3], at[1], at[2]) if channels_last else at
            row, column = i * down.stride + r * down.dilation, j * across.stride + s * across.dilation
            value = padded[b, row, column, c] if channels_last else padded[b, c, row, column]
            return larger(value, axis=[r, s]) if is_max else te.sum(value, [r, s])

        result = te.compute(output.shape, pooled, "y")
        if is_max:
            return [x, result]
        counts_padding = bool(workload["count_include_pad"])

        def mean(*at: Any) -> Any:
            i, j = at[1:3] if channels_last else at[2:]
            count = cells(down, h, i, counts_padding) * cells(across, w, j, counts_padding)
            return result[at] / tirx.Cast(dtype, count)

        return [x, te.compute(output.shape, mean, "y")]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        x, channels_last = inputs[0].astype(np.float64), workload["layout"] == "NHWC"
        x = np.moveaxis(x, 3, 1) if channels_last else x
        down, across = _windows(workload)
        if workload["kind"] == MAX:
            y = _reduced(np.maximum, _padded(x, down, across, -np.inf), down, across)
        else:
            ones = np.ones((1, 1, *x.shape[2:]))
            if workload["count_include_pad"]:
                sides = ((down.before, down.after), (across.before, across.after))
                counted = np.pad(ones, ((0, 0), (0, 0), *sides), constant_values=1)
                counted = _beyond(counted, ones.shape, down, across)
            else:
                counted = _padded(ones, down, across, 0)
            y = _reduced(np.add, _padded(x, down, across, 0), down, across)
            y = y / _reduced(np.add, counted, down, across)
        return (np.ascontiguousarray(np.moveaxis(y, 1, 3) if channels_last else y),)

    def flops(self, workload: Workload) -> int:
        """One for each element of each window."""
        down, across = _windows(workload)
        return self.outputs(workload)[0].elements * down.size * across.size

    def tolerance(self, workload: Workload) -> float:
        down, across = _windows(workload)
        return 0.0 if workload["kind"] == MAX else (down.size * across.size + 2) * UNIT_ROUNDOFF


def cells(window: Window, extent: Any, step: Any, counts_padding: bool) -> Any:
    """Return, as an expression, how many rows (columns) under the kernel at `step` a mean counts."""
    from tvm import tirx

    start = step * window.stride - window.before
    if counts_padding:
        return tirx.min(start + window.size, extent + window.after) - start
    return tirx.min(start + window.size, extent) - tirx.max(start, 0)


def _windows(workload: Workload) -> tuple[Window, Window]:
    """Return the windows along h and w, those of a global kernel included."""
    if workload["kernel"] != GLOBAL:
        return windows(workload)
    down, across = (Window(size, 1, 1, 0, 0) for size in workload.dims("h", "w"))
    return down, across


def _behind(window: Window, extent: int) -> int:
    """Return how far the last window reaches beyond the image; no less than the padding."""
    last = (window.steps(extent) - 1) * window.stride + window.reach
    return max(last - extent - window.before, window.after)


def _padded(x: Exact, down: Window, across: Window, value: float) -> Exact:
    h, w = x.shape[2:]
    sides = ((down.before, _behind(down, h)), (across.before, _behind(across, w)))
    return np.pad(x, ((0, 0), (0, 0), *sides), constant_values=value)


def _beyond(counted: Exact, shape: tuple[int, ...], down: Window, across: Window) -> Exact:
    """Pad with zeros, which do not count, what windows reach beyond the padding."""
    sides = [(0, _behind(window, size) - window.after) for window, size in zip((down, across), shape[2:])]
    return np.pad(counted, ((0, 0), (0, 0), *sides))


def _reduced(combine: np.ufunc, padded: Exact, down: Window, across: Window) -> Exact:
    """Combine, for each output, the elements under the kernel."""
    oh, ow = (
        (size - window.reach) // window.stride + 1 for size, window in zip(padded.shape[2:], (down, across))
    )
    total: Exact | None = None
    with np.errstate(invalid="ignore"):
        for r in range(down.size):
            for s in range(across.size):
                top, left = r * down.dilation, s * across.dilation
                rows = slice(top, top + (oh - 1) * down.stride + 1, down.stride)
                columns = slice(left, left + (ow - 1) * across.stride + 1, across.stride)
                seen = padded[:, :, rows, columns]
                total = seen if total is None else combine(total, seen)
    assert total is not None
    return total
