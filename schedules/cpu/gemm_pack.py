"""Copies of blocks of a and b, laid out as a GEMM's tiles read them."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    ceildiv,
    divides,
    lanes,
    load,
    minimum,
    store,
    transpose,
)
from tvmops.schedules.cpu.gemm_frame import Frame, at_most


def pack_b(frame: Frame, matrix: Extent, panels: Span, depth: Span) -> Any:
    """Copy b[depth, panels] to [panel][k][nr]; columns beyond n become whatever loads give."""
    product, blocking = frame.product, frame.blocking
    most = at_most(blocking.nc, ceildiv(ceildiv(product.n, frame.nr), blocking.split_n))
    deepest = -(-at_most(blocking.kc, product.k) // product.width) * product.width
    packed = T.alloc_buffer((most, deepest, frame.nr), product.dtype)
    if product.trans_b:
        _turn_b(frame, matrix, panels, depth, packed)
    else:
        _copy_b(frame, matrix, panels, depth, packed)
    return packed


def _copy_b(frame: Frame, matrix: Extent, panels: Span, depth: Span, packed: Any) -> None:
    width = frame.product.width
    with T.serial(depth.count) as kk, T.serial(panels.count) as panel:
        column = (panels.start + panel) * frame.nr

        def copy(limit: Extent | None) -> None:
            for v in range(frame.blocking.nv):
                value = frame.operands.load_b(matrix, depth.start + kk, column + v * width, limit)
                T.buffer_store(packed, value, [panel, kk, lanes(v * width, width)])

        frame.at_columns(column, copy)


def _turn_b(frame: Frame, matrix: Extent, panels: Span, depth: Span, packed: Any) -> None:
    """Transpose squares of `width` rows and columns of a b that is given as (n, k)."""
    product = frame.product
    width = product.width
    b = frame.operands.buffers["b"]
    with T.serial(panels.count) as panel, T.serial(frame.blocking.nv) as v:
        column = (panels.start + panel) * frame.nr + v * width
        inside = divides(frame.nr, product.n)
        rows = [column + i if inside else minimum(column + i, product.n - 1) for i in range(width)]

        def turn(kk: Extent, limit: Extent | None) -> None:
            at = [frame.operands.at("b", matrix, row) for row in rows]
            loaded = [load(b, index, depth.start + kk, width, limit) for index in at]
            for i, value in enumerate(transpose(loaded, product.dtype)):
                T.buffer_store(packed, value, [panel, kk + i, lanes(v * width, width)])

        with T.serial(depth.count // width) as kv:
            turn(kv * width, None)
        if not divides(width, depth.count):
            with T.If(depth.count % width > 0), T.Then():
                turn(depth.count // width * width, depth.start + depth.count)


def pack_a(frame: Frame, matrix: Extent, tiles: Span, depth: Span) -> Any:
    """Copy a[tiles, depth] to rows of their own, a cache line apart from a power of two.

    Rows of a that are a multiple of 4 KiB apart fall into the same few cache lines. A
    transposed a stays so: [k][row].
    """
    product, blocking = frame.product, frame.blocking
    width = product.width
    most = at_most(blocking.mc, ceildiv(ceildiv(product.m, blocking.mr), blocking.split_m)) * blocking.mr
    deepest = at_most(blocking.kc, product.k)
    rows, columns = (deepest, most) if product.trans_a else (most, deepest)
    packed = T.alloc_buffer((rows, -(-columns // width) * width + 16), product.dtype)
    first, count = tiles.start * blocking.mr, tiles.count * blocking.mr
    if product.trans_a:
        _copy_rows(frame, matrix, depth, Span(first, count), packed)
    else:
        _copy_rows(frame, matrix, Span(first, count), depth, packed)
    return packed


def _copy_rows(frame: Frame, matrix: Extent, rows: Span, columns: Span, packed: Any) -> None:
    """Copy the block of a, as it lies in memory, by vectors."""
    product = frame.product
    width = product.width
    a = frame.operands.buffers["a"]
    # rows of tiles beyond m: the last one again, or columns that are not read
    end = product.m if product.trans_a else columns.start + columns.count
    whole = divides(width, columns.count) and (not product.trans_a or divides(frame.blocking.mr, product.m))
    with T.serial(rows.count) as i:
        row = rows.start + i if product.trans_a else frame.row(rows.start + i)
        at = frame.operands.at("a", matrix, row)

        def copy(kv: Extent, limit: Extent | None) -> None:
            value = load(a, at, columns.start + kv * width, width, limit)
            store(packed, value, [i], kv * width, width, None)

        if whole:
            with T.serial(columns.count // width) as kv:
                copy(kv, None)
            return
        full = minimum(columns.count, end - columns.start) // width
        with T.serial(full) as kv:
            copy(kv, None)
        with T.If(full * width < columns.count), T.Then():
            copy(full, end)
