"""Calls of conv2d."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tvmops.errors import CallError, CallTypeError, WorkloadError
from tvmops.runtime.arrays import as_numpy, view
from tvmops.runtime.calls.base import Call, float_dtype, parsed, shape_of
from tvmops.runtime.packed import PackedWeight
from tvmops.signatures import SIGNATURES
from tvmops.signatures.activations import NONE
from tvmops.signatures.conv2d import weight_sizes
from tvmops.signatures.layouts import LAYOUTS, PLAIN, layout_names
from tvmops.signatures.winograd import TAPS
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
    channels_last = layout == "NHWC"
    arrays = {"x": view(OP, "x", x)}
    image = shape_of(OP, "x", arrays["x"], 4)
    if isinstance(w, PackedWeight):
        arrays["w"], weights = w.array, _packed_shape(w, channels_last)
        fields["packed"] = w.layout
    else:
        arrays["w"] = view(OP, "w", w)
        weights = shape_of(OP, "w", arrays["w"], 4)
    fields |= _sizes(image, weights, groups, channels_last)
    for name, array in (("bias", bias), ("residual", residual)):
        if array is not None:
            arrays[name] = view(OP, name, array)
    fields |= {"bias": bias is not None, "residual": residual is not None}
    fields["dtype"] = w.dtype if "packed" in fields else float_dtype(arrays["x"])

    def unpacked() -> Call:
        plain = np.ascontiguousarray(np.moveaxis(w.plain, 1, 3)) if channels_last else w.plain
        return call(x, plain, bias, stride, padding, dilation, groups, activation, residual, layout)

    try:
        return Call.of(OP, arrays, otherwise=unpacked if "packed" in fields else None, **fields)
    except WorkloadError as error:
        axis, expected = error.fields["field"], error.fields["expected"]
        if axis == "packed":
            raise CallError(op=OP, argument="w", value=repr(w), expected=f"layout {expected}") from None
        # the kernel is larger than the padded image
        value = f"of {axis}={error.fields['value']}"
        raise CallError(op=OP, argument="x", value=value, expected=expected) from None


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.conv2d` that make it `workload` on these arrays."""
    names = [spec.name for spec in SIGNATURES[OP].inputs(workload)]
    fields = ("stride", "padding", "dilation", "groups", "activation", "layout")
    given = dict(zip(names, inputs))
    if workload["packed"] != PLAIN:
        shape, dtype = weight_sizes(workload), str(workload["dtype"])
        given["w"] = PackedWeight(OP, shape, dtype, str(workload["packed"]), given["w"])
    return {**given, **{name: workload[name] for name in fields}}


def pack(weight: Any, packed: str | None = None, layout: str = "NCHW") -> PackedWeight:
    """Return `weight`, the w of later calls in `layout`, in the layout `packed`, by default panels.

    NumPy does it, in float64 where weights are transformed, so that each is rounded once; it
    happens once, and needs no kernel.
    """
    dense, plain = _plain(weight, layout)
    if dense.dtype.name != "float32":
        raise CallTypeError(
            op=OP, argument="weight", value=f"of dtype {dense.dtype.name}", expected="dtype float32"
        )
    names = layout_names(OP)[1:]
    packed = f"panels-{layout.lower()}" if packed is None else packed
    if packed not in names:
        raise CallError(op=OP, argument="packed", value=repr(packed), expected=f"one of {', '.join(names)}")
    taps = (TAPS, TAPS) if packed.startswith("winograd") else plain.shape[2:]
    if plain.ndim != 4 or plain.shape[2:] != taps or 0 in plain.shape:
        kernel = "3, 3" if packed.startswith("winograd") else "kh, kw"
        expected = f"(co, {kernel}, ci)" if layout == "NHWC" else f"(co, ci, {kernel})"
        value = f"of shape {tuple(dense.shape)}"
        raise CallError(op=OP, argument="weight", value=value, expected=f"shape {expected}")
    array = LAYOUTS[OP, packed, "float32"].pack(plain)
    return PackedWeight(OP, tuple(plain.shape), "float32", packed, array)


def held_layout(
    kernels: Iterable[tuple[Workload, float]], weight: Any, layout: str = "NCHW", **_: Any
) -> str | None:
    """Return in which layout most of `kernels` read such a weight, the fastest among equals; None if none.

    Parameters
    ----------
    kernels
        Workloads, and the seconds that each takes.
    """
    shape, found = tuple(_plain(weight, layout)[1].shape), dict[str, tuple[int, float]]()
    for workload, seconds in kernels:
        packed = str(workload["packed"])
        same = workload["layout"] == layout and weight_sizes(workload) == shape
        if same and packed != PLAIN:
            count, total = found.get(packed, (0, 0.0))
            found[packed] = count + 1, total + seconds
    return min(found, key=lambda name: (-found[name][0], found[name][1]), default=None)


def _plain(weight: Any, layout: str) -> tuple[Any, Any]:
    """Return `weight` as an array, and that as (co, ci, kh, kw)."""
    parsed(OP, "layout", layout)
    dense = as_numpy(OP, "weight", weight)
    return dense, np.moveaxis(dense, 3, 1) if layout == "NHWC" and dense.ndim == 4 else dense


def _packed_shape(weight: PackedWeight, channels_last: bool) -> tuple[int, ...]:
    """Return the shape that packed weights have unpacked."""
    if weight.op != OP:
        raise CallError(op=OP, argument="w", value=repr(weight), expected="weights packed for conv2d")
    co, ci, kh, kw = weight.shape
    return (co, kh, kw, ci) if channels_last else (co, ci, kh, kw)


def _sizes(
    image: tuple[int, ...], weights: tuple[int, ...], groups: int, channels_last: bool
) -> dict[str, int]:
    """Return the fields that are sizes; refuse an image and weights that do not fit each other."""
    if 0 in image[1:]:
        raise CallError(op=OP, argument="x", value=f"of shape {image}", expected="an empty batch at most")
    if 0 in weights:
        raise CallError(op=OP, argument="w", value=f"of shape {weights}", expected="no size of 0")
    first = 1 if channels_last else 2  # dimension of rows
    (h, w), (kh, kw) = image[first : first + 2], weights[first : first + 2]
    n, ci = image[0], image[3 if channels_last else 1]
    co, channels = weights[0], weights[3 if channels_last else 1]
    _check_channels(ci, co, channels, groups)
    return {"n": n, "h": h, "w": w, "ci": ci, "co": co, "kh": kh, "kw": kw}


def _check_channels(ci: int, co: int, channels: int, groups: int) -> None:
    """Refuse weights that do not fit the image."""
    if ci % groups or co % groups:
        expected = f"a divisor of the {ci} channels of x and the {co} of w"
        raise CallError(op=OP, argument="groups", value=groups, expected=expected)
    if channels != ci // groups:
        expected = f"{ci // groups}: those of x{f' / {groups} groups' if groups > 1 else ''}"
        raise CallError(op=OP, argument="w", value=f"for {channels} input channels", expected=expected)
