"""How a kernel moves over an image: what convolution and pooling share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmops.errors import WorkloadError
from tvmops.signatures.fields import ANY, Sizes, Value

if TYPE_CHECKING:
    from tvmops.workloads import Workload

SAME, VALID = "same", "valid"
_SIDES = Sizes(4)  # top, left, bottom, right


@dataclass(frozen=True)
class Padding:
    """Rows and columns at the top, left, bottom and right; or "same" or "valid", as TensorFlow means them."""

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
    overhangs: bool = False  # whether a last step that begins inside may end beyond the padding

    @property
    def reach(self) -> int:
        """The extent of the dilated kernel."""
        return self.dilation * (self.size - 1) + 1

    def steps(self, extent: int) -> int:
        """Return the output's extent for an image of `extent`; not positive where the kernel is larger."""
        span = extent + self.before + self.after - self.reach
        if not self.overhangs or span < 0:
            return span // self.stride + 1
        last = -(-span // self.stride)
        return last + (last * self.stride < extent + self.before)


def windows(workload: Workload) -> tuple[Window, Window]:
    """Return the windows along h and w."""
    stride, dilation, padding = (sizes(workload, name) for name in ("stride", "dilation", "padding"))
    overhangs = dict(workload.items).get("ceil_mode") is True
    down, across = (
        Window(size, stride[axis], dilation[axis], padding[axis], padding[axis + 2], overhangs)
        for axis, size in enumerate(_kernel(workload))
    )
    return down, across


def output_size(workload: Workload) -> tuple[int, int]:
    """Return the height and the width of the output."""
    down, across = windows(workload)
    h, w = workload.dims("h", "w")
    return down.steps(h), across.steps(w)


def with_padding_in_numbers(workload: Workload) -> Workload:
    """Return `workload` with "same" and "valid" replaced by the sides that they stand for."""
    padding = workload["padding"]
    if padding == VALID:
        return workload.replace(padding=(0, 0, 0, 0))
    if padding != SAME:
        return workload
    return workload.replace(padding=_same(workload))


def check_fit(workload: Workload) -> None:
    """Raise WorkloadError where the kernel is larger than the padded image."""
    for name, size, window in zip("hw", (workload["h"], workload["w"]), windows(workload)):
        if size != ANY and window.steps(int(size)) < 1:  # type: ignore[arg-type]
            least = window.reach - window.before - window.after
            raise wrong(workload, name, f"at least {least}, so that the kernel fits the padded image")


def sizes(workload: Workload, name: str) -> tuple[int, ...]:
    """Return the field `name`, which holds sizes."""
    value = workload[name]
    assert isinstance(value, tuple)
    return value


def wrong(workload: Workload, field: str, expected: str) -> WorkloadError:
    """Return the error that says what `field` should be."""
    return WorkloadError(op=workload.op, field=field, value=workload[field], expected=expected)


def _kernel(workload: Workload) -> tuple[int, ...]:
    """Return the height and the width of the kernel: one field, or two where a weight has them."""
    held = "kernel" in dict(workload.items)
    return sizes(workload, "kernel") if held else workload.dims("kh", "kw")


def _same(workload: Workload) -> tuple[int, ...]:
    """Return the padding that makes the output ceil(size / stride); the odd one goes behind."""
    stride, dilation = (sizes(workload, name) for name in ("stride", "dilation"))
    before, after = [], []
    for axis, (name, size) in enumerate(zip("hw", _kernel(workload))):
        extent = workload[name]
        if not isinstance(extent, int):
            if stride[axis] > 1:
                raise wrong(workload, name, f"a known size, on which padding='{SAME}' depends")
            extent = 1  # any: with stride 1 the padding does not depend on it
        reach = dilation[axis] * (size - 1) + 1
        total = max((-(-extent // stride[axis]) - 1) * stride[axis] + reach - extent, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return (*before, *after)
