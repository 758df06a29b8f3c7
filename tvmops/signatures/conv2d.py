"""The signature of conv2d, and the sizes that follow from its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmops.errors import WorkloadError
from tvmops.signatures.activations import ACTIVATION
from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.fields import ANY, Choice, Dim, Field, Flag, Sizes, Value
from tvmops.signatures.layouts import PLAIN, layout_names, layout_of

if TYPE_CHECKING:
    from tvmops.workloads import Workload

SAME, VALID = "same", "valid"
_SIDES = Sizes(4)  # top, left, bottom, right


@dataclass(frozen=True)
class Padding:
    """Zeros at the top, left, bottom and right; or "same" or "valid", as TensorFlow means them."""

    @property
    def expected(self) -> str:
        return f"'{SAME}', '{VALID}', or {_SIDES.expected}"

    def parse(self, value: object) -> Value | None:
        return value if isinstance(value, str) and value in (SAME, VALID) else _SIDES.parse(value)


@dataclass(frozen=True)
class Window:
    """How the kernel moves along one axis of the image."""

    size: int  # of the kernel
    stride: int
    dilation: int
    before: int  # zeros
    after: int

    @property
    def reach(self) -> int:
        """The extent of the dilated kernel."""
        return self.dilation * (self.size - 1) + 1

    def steps(self, extent: int) -> int:
        """Return the output's extent for an image of `extent`; not positive where the kernel is larger."""
        return (extent + self.before + self.after - self.reach) // self.stride + 1


def windows(workload: Workload) -> tuple[Window, Window]:
    """Return the windows along h and w."""
    stride, dilation, padding = (_sizes(workload, name) for name in ("stride", "dilation", "padding"))
    down, across = (
        Window(size, stride[axis], dilation[axis], padding[axis], padding[axis + 2])
        for axis, size in enumerate(workload.dims("kh", "kw"))
    )
    return down, across


def output_size(workload: Workload) -> tuple[int, int]:
    """Return the height and the width of the output."""
    down, across = windows(workload)
    h, w = workload.dims("h", "w")
    return down.steps(h), across.steps(w)


class Conv2D(Signature):
    """Images (n, ci, h, w) with weights (co, ci / groups, kh, kw); or NHWC and OHWI.

    `packed` names the layout of weights that were packed beforehand.
    """

    fields = (
        Field("n", Dim()),
        Field("h", Dim()),
        Field("w", Dim()),
        Field("ci", Dim()),
        Field("co", Dim()),
        Field("kh", Dim(fixed=True)),
        Field("kw", Dim(fixed=True)),
        Field("stride", Sizes(2, low=1), (1, 1)),
        Field("padding", Padding(), (0, 0, 0, 0)),
        Field("dilation", Sizes(2, low=1), (1, 1)),
        Field("groups", Dim(fixed=True), 1),
        Field("layout", Choice(("NCHW", "NHWC")), "NCHW"),
        Field("dtype", Choice(("float32",)), "float32", shown=True),
        Field("bias", Flag(), False),
        ACTIVATION,
        Field("residual", Flag(), False),
        Field("packed", Choice(layout_names("conv2d")), PLAIN),
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        n, h, w, ci, co, kh, kw, groups = workload.dims("n", "h", "w", "ci", "co", "kh", "kw", "groups")
        dtype = str(workload["dtype"])
        channels_last = workload["layout"] == "NHWC"
        x = (n, h, w, ci) if channels_last else (n, ci, h, w)
        weights: tuple[int, ...] = (co, kh, kw, ci // groups) if channels_last else (co, ci // groups, kh, kw)
        if workload["packed"] != PLAIN:
            weights = layout_of(workload).shape(co, ci)
        specs = [TensorSpec("x", x, dtype), TensorSpec("w", weights, dtype)]
        if workload["bias"]:
            specs.append(TensorSpec("bias", (co,), dtype))
        if workload["residual"]:
            specs.append(TensorSpec("residual", self._output(workload), dtype))
        return tuple(specs)

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        return (TensorSpec("y", self._output(workload), str(workload["dtype"])),)

    def _output(self, workload: Workload) -> tuple[int, ...]:
        n, co = workload.dims("n", "co")
        oh, ow = output_size(workload)
        return (n, oh, ow, co) if workload["layout"] == "NHWC" else (n, co, oh, ow)

    def canonical(self, workload: Workload) -> Workload:
        """Return `workload` with its padding in numbers."""
        padding = workload["padding"]
        if padding == VALID:
            return workload.replace(padding=(0, 0, 0, 0))
        if padding != SAME:
            return workload
        return workload.replace(padding=_same(workload))

    def check(self, workload: Workload) -> None:
        groups = workload["groups"]
        alone = all((each.size, each.stride, each.reach) == (3, 1, 3) for each in windows(workload))
        if workload["packed"] != PLAIN and not (alone and groups == 1):
            raise _wrong(workload, "packed", "none but for 3x3 kernels of stride, dilation and groups 1")
        for name in ("ci", "co"):
            size = workload[name]
            if size != ANY and int(size) % int(groups):  # type: ignore[arg-type]
                raise _wrong(workload, name, f"a multiple of groups={groups}")
        for name, size, window in zip("hw", (workload["h"], workload["w"]), windows(workload)):
            if size != ANY and window.steps(int(size)) < 1:  # type: ignore[arg-type]
                least = window.reach - window.before - window.after
                raise _wrong(workload, name, f"at least {least}, so that the kernel fits the padded image")


def _same(workload: Workload) -> tuple[int, ...]:
    """Return the zeros that make the output ceil(size / stride); the odd one goes behind."""
    stride, dilation = (_sizes(workload, name) for name in ("stride", "dilation"))
    before, after = [], []
    for axis, (name, size) in enumerate(zip("hw", workload.dims("kh", "kw"))):
        extent = workload[name]
        if extent == ANY:
            if stride[axis] > 1:
                raise _wrong(workload, name, f"a known size, on which padding='{SAME}' depends")
            extent = 1  # any: with stride 1 the padding does not depend on it
        reach, extent = dilation[axis] * (size - 1) + 1, int(extent)  # type: ignore[arg-type]
        total = max((-(-extent // stride[axis]) - 1) * stride[axis] + reach - extent, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return (*before, *after)


def _sizes(workload: Workload, name: str) -> tuple[int, ...]:
    value = workload[name]
    assert isinstance(value, tuple)
    return value


def _wrong(workload: Workload, field: str, expected: str) -> WorkloadError:
    return WorkloadError(op=workload.op, field=field, value=workload[field], expected=expected)
