"""The signature of pool2d."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.fields import Choice, Dim, Field, Flag, Sizes, Value
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

GLOBAL = "global"  # a kernel as large as the image
MAX, AVERAGE = "max", "average"
_SIZES = Sizes(2, low=1)


@dataclass(frozen=True)
class Kernel:
    """Height and width; or "global", those of the image."""

    @property
    def expected(self) -> str:
        return f"'{GLOBAL}', or {_SIZES.expected}"

    def parse(self, value: object) -> Value | None:
        return GLOBAL if value == GLOBAL else _SIZES.parse(value)


class Pool2D(Signature):
    """Images (n, c, h, w), or NHWC; each channel by itself."""

    fields = (
        Field("n", Dim()),
        Field("h", Dim()),
        Field("w", Dim()),
        Field("c", Dim()),
        Field("kernel", Kernel()),
        Field("stride", Sizes(2, low=1), (1, 1)),
        Field("padding", Padding(), (0, 0, 0, 0)),
        Field("dilation", Sizes(2, low=1), (1, 1)),
        Field("ceil_mode", Flag(), False),
        Field("kind", Choice((MAX, AVERAGE)), MAX, shown=True),
        Field("count_include_pad", Flag(), True),
        Field("layout", Choice(("NCHW", "NHWC")), "NCHW"),
        Field("dtype", Choice(("float32",)), "float32", shown=True),
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        return (TensorSpec("x", _image(workload, *workload.dims("h", "w")), str(workload["dtype"])),)

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        size = (1, 1) if workload["kernel"] == GLOBAL else output_size(workload)
        return (TensorSpec("y", _image(workload, *size), str(workload["dtype"])),)

    def canonical(self, workload: Workload) -> Workload:
        """Return `workload` with its padding in numbers."""
        return workload if workload["kernel"] == GLOBAL else with_padding_in_numbers(workload)

    def check(self, workload: Workload) -> None:
        defaults = {field.name: field.default for field in self.fields}
        unused: tuple[str, ...]
        if workload["kernel"] == GLOBAL:
            unused, why = (
                ("stride", "padding", "dilation", "ceil_mode", "count_include_pad"),
                "a global kernel",
            )
        elif workload["kind"] == MAX:
            unused, why = ("count_include_pad",), "kind=max"
        else:
            unused, why = ("dilation",), "kind=average"
        for name in unused:
            if workload[name] != defaults[name]:
                raise wrong(workload, name, f"the default with {why}")
        if workload["kernel"] != GLOBAL:
            if any(max(each.before, each.after) > each.reach // 2 for each in windows(workload)):
                raise wrong(workload, "padding", "at most half of the kernel at each side")
            check_fit(workload)


def _image(workload: Workload, h: int, w: int) -> tuple[int, ...]:
    n, c = workload.dims("n", "c")
    return (n, h, w, c) if workload["layout"] == "NHWC" else (n, c, h, w)
