"""Ops on images, as methods."""

from __future__ import annotations

from typing import Any

from tvmops.runtime.families.base import Family


class Images(Family):
    """Convolution and pooling."""

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
            it, of at most half of the kernel, dilated; -inf for max, zeros for the mean.
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
