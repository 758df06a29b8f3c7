"""The loops of matmul_weight_only. `tvmops.schedules.cpu.weight_only` says how they multiply."""

from __future__ import annotations

from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.dot import Value, constant
from tvmops.schedules.cpu.dots import integer_dots
from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    branch,
    broadcast,
    ceildiv,
    divides,
    lanes,
    minimum,
    refuse_overlap,
    registers,
    share,
    zeros,
)
from tvmops.schedules.cpu.epilogue import Epilogue
from tvmops.schedules.cpu.floats import argument, load_floats, store_floats
from tvmops.schedules.cpu.weight_only_digits import Digits
from tvmops.signatures.matmul_weight_only import groups_of
from tvmops.signatures.words import COLUMNS
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload

_TOP_BITS = -0x7F7F7F80  # 0x80808080: the signs of four values


class WeightOnlyNest:
    """c = activation(x @ w.T + bias), by tiles of mr rows and nv vectors of columns."""

    def __init__(self, workload: Workload, target: Target, config: Config) -> None:
        sizes = (workload[name] for name in ("m", "n", "k"))
        self.m, self.n, self.k = (
            size if isinstance(size, int) else tirx.Var(name, "int32") for name, size in zip("mnk", sizes)
        )
        self.mr, self.nv, self.ku, self.tasks = (config.number(x) for x in ("mr", "nv", "ku", "tasks"))
        self.layout = groups_of(workload)
        self.x_bits = str(workload["x_bits"])
        self.digits = int(self.x_bits) // 8
        self.dtype = str(workload["dtype"])
        self.epilogue = Epilogue(str(workload["activation"]), workload["bias"] is True)
        self.dot = integer_dots(target)[-1]  # for few rows
        # taken off each weight by turning its sign, where bytes are multiplied as signed ones
        self.shift = 128 if self.dot.is_signed and self.layout.bits == 8 else 0
        self.width = target.vector_width("int32")
        self.groups = ceildiv(self.k, self.layout.group)
        self.nr = self.nv * self.width

    def module(self) -> IRModule:
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                names = ("x", "w", "bias", "c") if self.epilogue.bias else ("x", "w", "c")
                handles = {name: T.arg(name, T.handle()) for name in names}
                rows = self.groups * self.layout.rows
                shapes = {"x": (self.m, self.k), "bias": (self.n,), "c": (self.m, self.n)}
                shapes["w"] = (ceildiv(self.n, COLUMNS), rows, 64)
                buffers = {
                    name: argument(handle, shapes[name], "uint8" if name == "w" else self.dtype)
                    for name, handle in handles.items()
                }
                self.x, self.w, self.c = (buffers[name] for name in ("x", "w", "c"))
                self.bias = buffers.get("bias")
                refuse_overlap(self.c, {name: buffer for name, buffer in buffers.items() if name != "c"})
                panels = Span(0, ceildiv(self.n, self.nr))
                if self.tasks == 1:
                    self._task(panels)
                else:
                    with T.parallel(self.tasks) as task:
                        self._task(share(panels, task, self.tasks))
        return IRModule({"main": builder.get()})

    def _task(self, panels: Span) -> None:
        self.made = Digits(self.x, self.k, self.layout, self.mr, self.x_bits, self.shift)
        with T.serial(ceildiv(self.m, self.mr)) as tile:
            self.made.clear()
            with T.serial(self.mr) as i, T.serial(self.groups) as group:
                row = minimum(tile * self.mr + i, self.m - 1)
                self.made.store(i, row, group)
            with T.serial(panels.count) as panel:
                column = (panels.start + panel) * self.nr
                branch(
                    self.made.serve,
                    lambda column=column: self._multiply(tile, column),  # type: ignore[misc]
                    lambda column=column: self._plainly(tile, column),  # type: ignore[misc]
                )

    def _multiply(self, tile: Extent, column: Extent) -> None:
        sums = registers((self.mr, self.nr), "float32")
        for i in range(self.mr):
            for v in range(self.nv):
                T.buffer_store(sums, zeros("float32", self.width), [i, self._lanes(v)])
        with T.serial(self.groups) as group:
            totals = registers((self.digits, self.mr, self.nr), "int32")
            for digit in range(self.digits):
                for i in range(self.mr):
                    for v in range(self.nv):
                        T.buffer_store(totals, zeros("int32", self.width), [digit, i, self._lanes(v)])
            head = group * self.layout.rows + 1 + int(self.layout.has_zero_points)
            count = self.layout.group // self.layout.step
            ku = self.ku if count % self.ku == 0 else 1
            with T.serial(count // ku) as block:
                for u in range(ku):
                    self._row(totals, column, group, head, block * ku + u)
            for v in range(self.nv):
                self._add_group(sums, totals, column, group, v)
        for i in range(self.mr):
            row = tile * self.mr + i

            def finish(i: int = i, row: Extent = row) -> None:
                for v in range(self.nv):
                    at = column + v * self.width
                    limit = None if divides(self.nr, self.n) else self.n
                    self._store(sums[i, self._lanes(v)], row, at, self.width, limit)

            if divides(self.mr, self.m):
                finish()
            else:
                with T.If(row < self.m), T.Then():
                    finish()

    def _row(self, totals: Any, column: Extent, group: Extent, head: Extent, at: Extent) -> None:
        """Multiply the weights of one row of 64 bytes of each panel by their digits of x."""
        first = group * self.layout.group + at * self.layout.step
        halves = 8 // self.layout.bits
        for v in range(self.nv):
            word = self._bytes(column, v, head + at)
            word = T.bind(word ^ constant(_TOP_BITS, word) if self.shift else word)
            for half in range(halves):
                part = word
                if halves == 2:
                    shifted = word >> constant(4, word) if half else word
                    part = T.bind(shifted & constant(0x0F0F0F0F, word))
                for digit in range(self.digits):
                    for i in range(self.mr):
                        four = self.made.words[digit, i, lanes(first + 4 * half, 4)]
                        x = broadcast(T.reinterpret("int32", four), self.width)
                        place = [digit, i, self._lanes(v)]
                        total = totals[tuple(place)]
                        for piece in range(self.dot.parts):
                            left, right = self.dot.left(part, piece), self.dot.right(x, piece)
                            total = self.dot.add(total, left, right)
                        T.buffer_store(totals, total, place)

    def _add_group(self, sums: Any, totals: Any, column: Extent, group: Extent, v: int) -> None:
        first = group * self.layout.rows
        scale = T.bind(T.reinterpret(f"float32x{self.width}", self._bytes(column, v, first)))
        for i in range(self.mr):
            value = broadcast(self.made.steps[i, group, self.digits], self.width)
            if self.layout.has_zero_points:
                zero = T.reinterpret(f"float32x{self.width}", self._bytes(column, v, first + 1))
                value = value * (zero - constant(self.shift, zero) if self.shift else zero)
            for digit in range(self.digits):
                total = T.Cast(f"float32x{self.width}", totals[digit, i, self._lanes(v)])
                value = value + total * broadcast(self.made.steps[i, group, digit], self.width)
            place = [i, self._lanes(v)]
            T.buffer_store(sums, sums[tuple(place)] + value * scale, place)

    def _bytes(self, column: Extent, v: int, row: Extent) -> Value:
        """Return a vector of words of one row of the panel of `column`, v vectors on."""
        at = column + v * self.width
        panel = minimum(at // COLUMNS, ceildiv(self.n, COLUMNS) - 1)  # the last may lie beyond
        values = self.w[panel, row, lanes(at % COLUMNS * 4, 4 * self.width)]
        return T.reinterpret(f"int32x{self.width}", values)

    def _plainly(self, tile: Extent, column: Extent) -> None:
        """Multiply one by one in float32: for infinities, NaN and numbers far from 1."""
        layout = self.layout
        rows = minimum(self.mr, self.m - tile * self.mr)
        columns = minimum(self.nr, self.n - column)
        with T.serial(rows) as i, T.serial(columns) as j:
            row, at = tile * self.mr + i, column + j
            total = registers((1,), "float32")
            T.buffer_store(total, tirx.const(0, "float32"), [0])
            with T.serial(self.k) as r:
                first, inside = r // layout.group * layout.rows, r % layout.group
                place = first + 1 + int(layout.has_zero_points) + inside // layout.step
                q = T.Cast("int32", self.w[at // COLUMNS, place, at % COLUMNS * 4 + inside % 4])
                if layout.bits == 4:
                    q = (q >> (inside % 8 // 4 * 4)) & 15

                def number(index: Extent, at: Extent = at) -> Value:
                    four = self.w[at // COLUMNS, index, lanes(at % COLUMNS * 4, 4)]
                    return T.reinterpret("float32", four)

                zero: Value = tirx.const(float(layout.zero), "float32")
                if layout.has_zero_points:
                    zero = number(first + 1)
                weight = (T.Cast("float32", q) - zero) * number(first)
                T.buffer_store(total, total[0] + load_floats(self.x, [row], r, 1, None) * weight, [0])
            self._store(total[0], row, at, 1, None)

    def _store(self, value: Value, row: Extent, column: Extent, width: int, limit: Extent | None) -> None:
        """Finish `width` sums and store them."""

        def bias() -> Value:
            return load_floats(self.bias, [], column, width, limit)

        value = self.epilogue.apply(value, width, bias, bias)
        store_floats(self.c, value, [row], column, width, limit)

    def _lanes(self, v: int) -> tirx.Expr:
        return lanes(v * self.width, self.width)
