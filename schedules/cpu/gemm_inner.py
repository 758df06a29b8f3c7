"""Products of one to a few rows and a transposed b: inner products, each row of b read once, as it lies.

y = x @ w.T for weights (n, k), as PyTorch stores them, is bound by reading them. Transposing squares
of b first, as `tvmops.schedules.cpu.gemm` does, costs more than the products. Here `nr` rows of b
are multiplied with those of a at a time, k by vectors, each product's lanes added up apart; at
the end of `width` rows of b the lanes become one vector of sums, in registers.
"""

from __future__ import annotations

from typing import Any

from tvm import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import (
    Extent,
    Span,
    ceildiv,
    divides,
    lanes,
    load,
    load_or_zeros,
    minimum,
    registers,
    share,
    store,
    zeros,
)
from tvmops.schedules.cpu.gemm_default import splits
from tvmops.schedules.cpu.gemm_operands import Operands, Product
from tvmops.schedules.cpu.shuffle import sums_of
from tvmops.schedules.template import GenericKernel, Template
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_MOST_ROWS = 4  # of a; beyond, packing b pays
_SMALL = 250_000  # products, below which starting threads costs more than it saves


class CpuGemmInner(Template):
    name = "cpu.gemm_inner"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul" or target.kind != "cpu" or workload["dtype"] != "float32":
            return False
        m, is_turned = workload["m"], workload["trans_b"] and not workload["trans_a"]
        return bool(is_turned) and workload["batch"] == 1 and isinstance(m, int) and m <= _MOST_ROWS

    def space(self, workload: Workload, target: Target) -> Space:
        width = target.vector_width("float32")
        knobs = (
            Knob("nr", tuple(nr for nr in (1, 2, 4, 8, 16) if nr <= width)),
            Knob("ku", (1, 2, 4)),
            Knob("tasks", splits(target.cores)),
        )
        return Space(self.name, knobs, lambda config: self._is_legal(config, workload, target))

    def _is_legal(self, config: Config, workload: Workload, target: Target) -> bool:
        """Say whether `config` fits the machine; the only statement of the template's limits."""
        m, n = workload.dims("m", "n")
        nr, ku, tasks = (config.number(name) for name in ("nr", "ku", "tasks"))
        return (
            (nr == 1 or m * nr + nr + 1 <= target.vector_registers)
            and m * nr * ku <= 64
            and tasks <= -(-n // target.vector_width("float32"))
        )

    def default(self, workload: Workload, target: Target) -> Config:
        m, n, k = workload.dims("m", "n", "k")
        cores = 1 if m * n * k < _SMALL else target.cores
        space = self.space(workload, target)
        wanted = (Config.of(nr=nr, ku=2, tasks=tasks) for tasks in (cores, 1) for nr in (4, 2, 1))
        return next(config for config in wanted if config in space)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []  # the rows of a are written out

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return _Nest(Product.of(workload, target), config).module()


class _Nest:
    def __init__(self, product: Product, config: Config) -> None:
        assert isinstance(product.m, int)
        self.product, self.m, self.width = product, product.m, product.width
        self.nr, self.ku, self.tasks = (config.number(name) for name in ("nr", "ku", "tasks"))

    def module(self) -> IRModule:
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                self.operands = Operands(self.product)
                panels = Span(0, ceildiv(self.product.n, self.width))
                if self.tasks == 1:
                    self._task(panels)
                else:
                    with T.parallel(self.tasks) as task:
                        self._task(share(panels, task, self.tasks))
        return IRModule({"main": builder.get()})

    def _task(self, panels: Span) -> None:
        with T.serial(panels.count) as panel:
            column = (panels.start + panel) * self.width
            totals = [registers((self.width, self.width), "float32") for _ in range(self.m)]
            for first in range(0, self.width, self.nr):
                self._multiply(totals, column, first)
            limit = None if divides(self.width, self.product.n) else self.product.n
            for row, total in enumerate(totals):
                self._finish(sums_of(total, self.width)[0, lanes(0, self.width)], row, column, limit)

    def _multiply(self, totals: list[Any], column: Extent, first: int) -> None:
        """Add up the products of all rows of a and `nr` of b, lane by lane."""
        width, k, every = self.width, self.product.k, lanes(0, self.width)
        columns = [minimum(column + first + j, self.product.n - 1) for j in range(self.nr)]
        for total in totals:
            for j in range(self.nr):
                T.buffer_store(total, zeros("float32", width), [first + j, every])

        def step(at: Extent, is_last: bool) -> None:
            def values(operand: str, row: Extent) -> Any:
                buffer = self.operands.buffers[operand]
                if is_last:
                    return load_or_zeros(buffer, [row], at, width, k)
                return load(buffer, [row], at, width, None)

            for j, each in enumerate(columns):
                b = T.bind(values("b", each))
                for row, total in enumerate(totals):
                    place = [first + j, every]
                    T.buffer_store(total, total[tuple(place)] + values("a", row) * b, place)

        step_size = self.ku * width
        with T.serial(k // step_size) as block:
            for u in range(self.ku):
                step(block * step_size + u * width, is_last=False)
        if divides(step_size, k):
            return
        done = k // step_size * step_size
        with T.serial((k - done) // width) as rest:
            step(done + rest * width, is_last=False)
        if not divides(width, k):
            whole = k // width * width
            with T.If(whole < k), T.Then():
                step(whole, is_last=True)

    def _finish(self, value: Any, row: int, column: Extent, limit: Extent | None) -> None:
        value = self.product.epilogue.apply(
            value,
            self.width,
            bias=lambda: self.operands.load_bias(column, limit),
            residual=lambda: self.operands.load_residual(0, row, column, limit),
        )
        store(self.operands.c, value, [row], column, self.width, limit)
