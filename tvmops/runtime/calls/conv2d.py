"""Calls of conv2d."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvmops.errors import CallError, WorkloadError
from tvmops.runtime.arrays import view
from tvmops.runtime.calls.base import Call, parsed, shape_of
from tvmops.signatures import SIGNATURES
from tvmops.signatures.activations import NONE
from tvmops.workloads import Workload

OP = "conv2d"


def call(
    x: Any,
    w: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: str | None = None,
    residual: Any = None,
    layout: str = "NCHW",
) -> Call:
    """Return the call that `Library.conv2d` makes of its arguments."""
    fields: dict[str, Any] = {
        name: parsed(OP, name, value)
        for name, value in {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "activation": activation or NONE,
            "layout": layout,
        }.items()
    }
    arrays = {"x": view(OP, "x", x), "w": view(OP, "w", w)}
    channels_last = layout == "NHWC"
    image, weights = (shape_of(OP, name, arrays[name], 4) for name in ("x", "w"))
    n, *size = image
    co, *kernel = weights
    (h, width, ci), (kh, kw, channels) = (
        (size, kernel) if channels_last else ((*size[1:], size[0]), (*kernel[1:], kernel[0]))
    )
    if 0 in image[1:]:
        raise CallError(op=OP, argument="x", value=f"of shape {image}", expected="an empty batch at most")
    if 0 in weights:
        raise CallError(op=OP, argument="w", value=f"of shape {weights}", expected="no size of 0")
    _check_channels(ci, co, channels, groups)
    for name, array in (("bias", bias), ("residual", residual)):
        if array is not None:
            arrays[name] = view(OP, name, array)
    fields |= {"n": n, "h": h, "w": width, "ci": ci, "co": co, "kh": kh, "kw": kw}
    fields |= {"dtype": "float32", "bias": bias is not None, "residual": residual is not None}
    try:
        return Call.of(OP, arrays, **fields)
    except WorkloadError as error:  # the kernel is larger than the padded image
        axis, expected = error.fields["field"], error.fields["expected"]
        value = f"of {axis}={error.fields['value']}"
        raise CallError(op=OP, argument="x", value=value, expected=expected) from None


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.conv2d` that make it `workload` on these arrays."""
    names = [spec.name for spec in SIGNATURES[OP].inputs(workload)]
    fields = ("stride", "padding", "dilation", "groups", "activation", "layout")
    return {**dict(zip(names, inputs)), **{name: workload[name] for name in fields}}


def _check_channels(ci: int, co: int, channels: int, groups: int) -> None:
    """Refuse weights that do not fit the image."""
    if ci % groups or co % groups:
        expected = f"a divisor of the {ci} channels of x and the {co} of w"
        raise CallError(op=OP, argument="groups", value=groups, expected=expected)
    if channels != ci // groups:
        expected = f"{ci // groups}: those of x{f' / {groups} groups' if groups > 1 else ''}"
        raise CallError(op=OP, argument="w", value=f"for {channels} input channels", expected=expected)
