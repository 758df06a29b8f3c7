"""`PaddedImage`: rows of an image with zeros around them, so laid out that each tap reads in order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import Extent, Span, branch, lanes, zeros
from tvmops.signatures.windows import Window


@dataclass(frozen=True)
class PaddedImage:
    """A copy of the rows of x that `rows` rows of the output need, for channels of one group.

    It has a plane for each phase of the strides: that of (p, q) holds the pixels of rows
    p, p + sh, ... and columns q, q + sw, ... of the padded image, so that for each place (r, s)
    in the kernel the pixels under a run of outputs lie side by side. Rows of a plane follow
    each other without a gap, and a run goes on from one row of the output to the next; what it
    computes in between is thrown away. With stride 1 the zeros behind a row are those before
    the next.
    """

    shape: ConvShape
    dtype: str
    width: int
    rows: int
    slack: int  # elements that may be read beyond the end

    @cached_property
    def _phases(self) -> tuple[list[int], list[int]]:
        return _phases(self.shape.down), _phases(self.shape.across)

    @cached_property
    def pitch(self) -> Extent:
        """Elements between the starts of two rows of a plane."""
        across = self.shape.across
        return self.shape.ow + ((across.reach - 1) // across.stride - self._shared)

    @property
    def _shared(self) -> int:
        """Count the zeros that end one row and begin the next."""
        across = self.shape.across
        return min(across.before, across.after) if across.stride == 1 else 0

    @property
    def unrolls_rows(self) -> bool:
        """True if `offset` must know r: the row phases that some r reads are no range."""
        phases = self._phases[0]
        return phases != list(range(len(phases)))

    @cached_property
    def plane_rows(self) -> int:
        return self.rows + (self.shape.down.reach - 1) // self.shape.down.stride

    @cached_property
    def channel_size(self) -> Extent:
        return len(self._phases[0]) * len(self._phases[1]) * self.plane_rows * self.pitch

    def offset(self, c: Extent, r: Extent, s: int) -> Extent:
        """Return where the pixel under place (r, s) of the kernel lies, for the first output."""
        down, across = self.shape.down, self.shape.across
        row, column = r * down.dilation, s * across.dilation
        if isinstance(row, int):
            row_phase: Extent = self._phases[0].index(row % down.stride)
        elif down.stride == 1:
            row_phase = 0
        else:  # a loop over r: all phases are there, in order
            row_phase = row % down.stride
        plane = row_phase * len(self._phases[1]) + self._phases[1].index(column % across.stride)
        inside = row // down.stride * self.pitch + column // across.stride
        return c * self.channel_size + plane * (self.plane_rows * self.pitch) + inside

    def copy(self, x: Any, image: Extent, group: Extent, rows: Span) -> Any:
        """Copy what the output's `rows` need; returns the buffer, of one dimension."""
        shape, down, across = self.shape, self.shape.down, self.shape.across
        # overlapping zeros of the last row, and what vectors read beyond it
        end = self.slack + across.after + across.reach
        copied = T.alloc_buffer((shape.ci_each * self.channel_size + end,), self.dtype)
        line = None
        if across.stride > 1:
            columns = across.stride * (self.pitch + self.width)
            line = T.alloc_buffer((columns,), self.dtype)
            with T.serial(columns) as j:
                T.buffer_store(line, tirx.const(0, self.dtype), [j])
        needed = rows.count + (down.reach - 1) // down.stride
        with T.serial(shape.ci_each) as c:
            for p, phase in enumerate(self._phases[0]):
                plane = p * len(self._phases[1]) * self.plane_rows
                with T.serial(needed) as row:
                    source = (rows.start + row) * down.stride + phase - down.before
                    at = [image, group * shape.ci_each + c, source]
                    target = c * self.channel_size + (plane + row) * self.pitch
                    branch(
                        tirx.all(source >= 0, source < shape.h),
                        partial(self._row, x, at, copied, target, line),
                        partial(self._no_row, copied, target),
                    )
        return copied

    def _row(self, x: Any, at: list[Extent], copied: Any, target: Extent, line: Any | None) -> None:
        across, w = self.shape.across, self.shape.w
        if line is None:
            self._zeros(copied, target, across.before)
            self._move(x, at, copied, target + across.before)
            self._zeros(copied, target + across.before + w, across.after)
            return
        self._move(x, at, line, across.before)  # zeros around it stay
        for q, phase in enumerate(self._phases[1]):
            start = target + q * self.plane_rows * self.pitch
            self._deinterleave(line, phase, copied, start)

    def _move(self, x: Any, at: list[Extent], copied: Any, target: Extent) -> None:
        w, width = self.shape.w, self.width
        with T.serial(w // width) as v:
            T.buffer_store(copied, x[(*at, lanes(v * width, width))], [lanes(target + v * width, width)])
        if not isinstance(w, int) or w % width:
            whole = w // width * width
            with T.serial(w - whole) as j:
                T.buffer_store(copied, x[(*at, whole + j)], [target + whole + j])

    def _deinterleave(self, line: Any, phase: int, copied: Any, target: Extent) -> None:
        """Copy columns phase, phase + sw, ...; those that no output needs are left out."""
        across, width = self.shape.across, self.width
        if across.stride != 2:
            with T.serial(self.pitch) as j:
                T.buffer_store(copied, line[j * across.stride + phase], [target + j])
            return
        even = [2 * lane + phase for lane in range(width)]
        with T.serial(self.pitch // width) as v:
            pair = [line[lanes(2 * v * width + half * width, width)] for half in (0, 1)]
            T.buffer_store(copied, tirx.Shuffle(pair, even), [lanes(target + v * width, width)])
        if not isinstance(self.pitch, int) or self.pitch % width:
            whole = self.pitch // width * width
            with T.serial(self.pitch - whole) as j:
                T.buffer_store(copied, line[(whole + j) * 2 + phase], [target + whole + j])

    def _no_row(self, copied: Any, target: Extent) -> None:
        for q in range(len(self._phases[1])):
            self._zeros(copied, target + q * self.plane_rows * self.pitch, self.pitch)
        self._zeros(copied, target + self.pitch, self._shared)

    def _zeros(self, copied: Any, target: Extent, count: Extent) -> None:
        if isinstance(count, int) and count == 0:
            return
        width = self.width
        if not isinstance(count, int) or count >= width:
            with T.serial(count // width) as v:
                T.buffer_store(copied, zeros(self.dtype, width), [lanes(target + v * width, width)])
        with T.serial(count % width) as j:
            T.buffer_store(copied, tirx.const(0, self.dtype), [target + count // width * width + j])


def _phases(window: Window) -> list[int]:
    """Return which of the rows (columns) modulo the stride some place in the kernel reads."""
    return sorted({place * window.dilation % window.stride for place in range(window.size)})
