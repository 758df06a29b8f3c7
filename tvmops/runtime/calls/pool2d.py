"""Calls of pool2d."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvmops.errors import CallError, WorkloadError
from tvmops.runtime.arrays import view
from tvmops.runtime.calls.base import Call, parsed, shape_of
from tvmops.signatures.pool2d import GLOBAL, MAX
from tvmops.workloads import Workload

OP = "pool2d"
_FIELDS = ("kernel", "stride", "padding", "kind", "dilation", "ceil_mode", "count_include_pad", "layout")


def call(
    x: Any,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    kind: str = MAX,
    dilation: Any = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: str = "NCHW",
) -> Call:
    """Return the call that `Library.pool2d` makes of its arguments."""
    if stride is None:
        stride = 1 if isinstance(kernel, str) and kernel == GLOBAL else kernel
    given = (kernel, stride, padding, kind, dilation, ceil_mode, count_include_pad, layout)
    fields: dict[str, Any] = {name: parsed(OP, name, value) for name, value in zip(_FIELDS, given)}
    image = view(OP, "x", x)
    shape = shape_of(OP, "x", image, 4)
    if 0 in shape[1:]:
        raise CallError(op=OP, argument="x", value=f"of shape {shape}", expected="an empty batch at most")
    n, *size = shape
    h, w, c = size if layout == "NHWC" else (*size[1:], size[0])
    try:
        return Call.of(OP, {"x": image}, n=n, h=h, w=w, c=c, dtype="float32", **fields)
    except WorkloadError as error:
        field, value, expected = (error.fields[name] for name in ("field", "value", "expected"))
        if field in ("h", "w"):  # the kernel is larger than the padded image
            field, value = "x", f"of {field}={value}"
        raise CallError(op=OP, argument=field, value=value, expected=expected) from None


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.pool2d` that make it `workload` on these arrays."""
    return {"x": inputs[0], **{name: workload[name] for name in _FIELDS}}
