"""What all schedules of conv2d share: its sizes, known or symbolic, and the frame of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv, refuse_overlap
from tvmops.schedules.cpu.epilogue import Epilogue
from tvmops.signatures.conv2d import weight_sizes
from tvmops.signatures.layouts import PANEL, PLAIN, Layout, layout_of
from tvmops.signatures.windows import Window, windows
from tvmops.signatures.winograd import CHANNELS, WinogradWeights
from tvmops.workloads import Workload


@dataclass(frozen=True)
class ConvShape:
    """The sizes of a conv2d; those of the images and the channels may be symbols."""

    n: Extent
    h: Extent
    w: Extent
    ci: Extent
    co: Extent
    down: Window
    across: Window
    groups: int
    channels_last: bool
    epilogue: Epilogue
    packed: tuple[Extent, ...] | None  # the shape of weights that are

    @classmethod
    def of(cls, workload: Workload) -> ConvShape:
        down, across = windows(workload)
        n, h, w, ci, co = (_extent(workload, name) for name in ("n", "h", "w", "ci", "co"))
        (groups,) = workload.dims("groups")
        channels_last = workload["layout"] == "NHWC"
        packed: tuple[Extent, ...] | None = None
        if workload["packed"] != PLAIN:
            known = isinstance(co, int) and isinstance(ci, int)
            layout = layout_of(workload)
            packed = layout.shape(*weight_sizes(workload)) if known else _unknown_shape(layout, ci)
        return cls(n, h, w, ci, co, down, across, groups, channels_last, Epilogue.of(workload), packed)

    @cached_property
    def oh(self) -> Extent:
        return steps(self.down, self.h)

    @cached_property
    def ow(self) -> Extent:
        return steps(self.across, self.w)

    @property
    def ci_each(self) -> Extent:
        """Input channels of a group."""
        return self.ci // self.groups if self.groups > 1 else self.ci

    @property
    def co_each(self) -> Extent:
        """Output channels of a group."""
        return self.co // self.groups if self.groups > 1 else self.co

    @property
    def is_depthwise(self) -> bool:
        """True if each channel is a group of its own."""
        return self.groups > 1 and self.ci == self.groups == self.co

    @property
    def is_pointwise(self) -> bool:
        """True if pixels of the output are those of the image: a product of matrices."""
        alone = (1, 1, 1, 0, 0)
        return all(
            (each.size, each.stride, each.reach, each.before, each.after) == alone
            for each in (self.down, self.across)
        )


class ConvKernel:
    """The arguments of a kernel as buffers; `emit` writes its body."""

    def __init__(self, shape: ConvShape, dtype: str, width: int) -> None:
        self.shape = shape
        self.dtype = dtype
        self.width = width  # lanes of one vector

    def module(self, emit: Callable[[], None]) -> IRModule:
        """Return a module with the function whose body `emit` writes."""
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                self._arguments()
                emit()
        return IRModule({"main": builder.get()})

    def _arguments(self) -> None:
        shape, epilogue = self.shape, self.shape.epilogue
        n, h, w, ci, co, oh, ow = shape.n, shape.h, shape.w, shape.ci, shape.co, shape.oh, shape.ow
        kernel = (shape.down.size, shape.across.size)
        last = shape.channels_last
        y = (n, oh, ow, co) if last else (n, co, oh, ow)
        shapes = {
            "x": (n, h, w, ci) if last else (n, ci, h, w),
            "w": shape.packed or ((co, *kernel, shape.ci_each) if last else (co, shape.ci_each, *kernel)),
            **({"bias": (co,)} if epilogue.bias else {}),
            **({"residual": y} if epilogue.residual else {}),
            "y": y,
        }
        handles = {name: T.arg(name, T.handle()) for name in shapes}
        # align=4: a caller's array may start at any element
        buffers = {
            name: T.match_buffer(handles[name], extents, self.dtype, align=4)
            for name, extents in shapes.items()
        }
        self.x, self.w, self.y = buffers["x"], buffers["w"], buffers.pop("y")
        self.bias: Any = buffers.get("bias")
        self.residual: Any = buffers.get("residual")
        refuse_overlap(self.y, buffers)
        if shape.packed is not None and not isinstance(shape.packed[0], int):
            self._refuse_other_panels()

    def _refuse_other_panels(self) -> None:
        """Make the kernel fail where packed weights of unknown sizes do not fit the channels."""
        shape, (panels, depth, *_) = self.shape, self.w.shape
        fit = panels == ceildiv(shape.co, PANEL)
        if isinstance(depth, tirx.Var):
            fit = tirx.all(fit, depth == shape.ci_each * (shape.down.size * shape.across.size))
        with T.Assert(fit, "argument 'w' was packed for other channels", "ValueError"):
            pass


def _unknown_shape(layout: Layout, ci: Extent) -> tuple[Extent, ...]:
    """Return the shape of packed weights of an unknown number of channels."""
    panels = tirx.Var("panels", "int32")
    if isinstance(layout, WinogradWeights):
        return panels, (layout.m + 2) ** 2, ci, CHANNELS
    return panels, tirx.Var("depth", "int32"), PANEL


def _extent(workload: Workload, name: str) -> Extent:
    value = workload[name]
    return value if isinstance(value, int) else tirx.Var(name, "int32")


def steps(window: Window, extent: Extent) -> Extent:
    """Return the output's extent along one axis for an image of `extent`."""
    if isinstance(extent, int):
        return window.steps(extent)
    span = extent + (window.before + window.after - window.reach)
    if not window.overhangs:
        return span + 1 if window.stride == 1 else tirx.floordiv(span, window.stride) + 1
    last = tirx.ceildiv(span, window.stride)
    return last + tirx.Select(last * window.stride < extent + window.before, 1, 0)
