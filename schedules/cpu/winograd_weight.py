"""The weights of a Winograd convolution, transformed: u = G g G^T."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, ceildiv, divides, lanes, load, transpose, zeros
from tvmops.schedules.cpu.linear import Vector, apply
from tvmops.signatures.winograd import CHANNELS, TAPS, transforms

_DTYPE = "float32"


def transform_weight(
    w: Any, u: Any, block: Extent, sizes: tuple[int, int], channels_last: bool, m: int, width: int
) -> None:
    """Store u[block, place, c, o] for one block of output channels.

    w is (co, ci, 3, 3), or (co, 3, 3, ci) where channels come last. Either way, the weights of
    one output channel are a row, and rows are transposed so that those channels fill a vector.
    """
    co, ci = sizes
    taps = TAPS * TAPS
    rows = T.decl_buffer((co, taps * ci), _DTYPE, data=w.data, align=4)
    turned = T.alloc_buffer((taps * ci + width, width), _DTYPE)
    matrix = transforms(m).weight
    with T.serial(CHANNELS // width) as part:
        first = block * CHANNELS + part * width

        def row(k: int, start: Extent) -> Vector:
            value = load(rows, [first + k], start, width, None if divides(width, taps * ci) else taps * ci)
            if divides(CHANNELS, co):
                return value
            return tirx.if_then_else(first + k < co, value, zeros(_DTYPE, width))

        with T.serial(ceildiv(taps * ci, width)) as square:
            start = square * width
            for k, column in enumerate(transpose([row(k, start) for k in range(width)], _DTYPE)):
                T.buffer_store(turned, column, [start + k, lanes(0, width)])
        with T.serial(ci) as c:
            places = [tap * ci + c if channels_last else c * taps + tap for tap in range(taps)]
            kernel = [turned[place, lanes(0, width)] for place in places]
            columns = [apply(matrix, kernel[j::TAPS], width) for j in range(TAPS)]
            for i in range(m + 2):
                for j, value in enumerate(apply(matrix, [column[i] for column in columns], width)):
                    T.buffer_store(u, value, [block, i * (m + 2) + j, c, lanes(part * width, width)])
