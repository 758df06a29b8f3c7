"""The signature of conv2d."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmops.signatures.activations import ACTIVATION
from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.fields import ANY, Choice, Dim, Field, Flag, Sizes
from tvmops.signatures.layouts import PLAIN, ConvPanels, layout_names, layout_of
from tvmops.signatures.windows import (
    Padding,
    check_fit,
    output_size,
    windows,
    with_padding_in_numbers,
    wrong,
)

if TYPE_CHECKING:
    from tvmops.workloads import Workload


class Conv2D(Signature):
    """Images (n, ci, h, w) with weights (co, ci / groups, kh, kw); or NHWC and OHWI.

    `packed` names the layout of weights that were packed beforehand.
    """

    fields = (
        Field("n", Dim(varies=True)),
        Field("h", Dim(varies=True)),
        Field("w", Dim(varies=True)),
        Field("ci", Dim()),
        Field("co", Dim()),
        Field("kh", Dim(fixed=True)),
        Field("kw", Dim(fixed=True)),
        Field("stride", Sizes(2, low=1), (1, 1)),
        Field("padding", Padding(), (0, 0, 0, 0)),
        Field("dilation", Sizes(2, low=1), (1, 1)),
        Field("groups", Dim(fixed=True), 1),
        Field("layout", Choice(("NCHW", "NHWC")), "NCHW"),
        Field("dtype", Choice(("float32", "float16", "bfloat16")), "float32", shown=True),
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
            weights = layout_of(workload).shape(*weight_sizes(workload))
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
        return with_padding_in_numbers(workload)

    def check(self, workload: Workload) -> None:
        groups = workload["groups"]
        self._check_packed(workload)
        for name in ("ci", "co"):
            size = workload[name]
            if size != ANY and int(size) % int(groups):  # type: ignore[arg-type]
                raise wrong(workload, name, f"a multiple of groups={groups}")
        check_fit(workload)

    def _check_packed(self, workload: Workload) -> None:
        if workload["packed"] == PLAIN:
            return
        if workload["dtype"] != "float32":
            raise wrong(workload, "packed", f"none with dtype={workload['dtype']}")
        layout = layout_of(workload)
        if isinstance(layout, ConvPanels):
            if layout.image != workload["layout"]:
                raise wrong(workload, "packed", f"another one with layout={workload['layout']}")
        elif workload["groups"] != 1:
            raise wrong(workload, "packed", "none or panels with groups")
        elif any((each.size, each.stride, each.reach) != (3, 1, 3) for each in windows(workload)):
            raise wrong(workload, "packed", "winograd for 3x3 kernels of stride and dilation 1 alone")


def weight_sizes(workload: Workload) -> tuple[int, ...]:
    """Return the sizes (co, ci / groups, kh, kw) of the weights of a conv2d."""
    co, ci, kh, kw, groups = workload.dims("co", "ci", "kh", "kw", "groups")
    return co, ci // groups, kh, kw
