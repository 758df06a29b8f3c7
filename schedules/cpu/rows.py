"""Ops that work row by row: a row is swept a few times while it lies in the nearest caches.

The rows are shared among tasks that run side by side; each step of a sweep takes a few vectors
of a row. Rows or columns may be symbolic; columns beyond the last are masked.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from tvm import IRModule, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, Span, computed, refuse_overlap, share
from tvmops.schedules.cpu.floats import DTYPES, argument, as_stored, load_floats, store_floats
from tvmops.schedules.cpu.row_sweeps import Sweep, Vector
from tvmops.schedules.cpu.streaming import before_aligned, fence, stream, streaming
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import SIGNATURES
from tvmops.signatures.dtypes import stored
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

SMALL = 1 << 14  # elements; starting threads takes longer
_READ_TO_L1 = (0, 3, 1)  # of llvm.prefetch: not for writing, of high locality, data


class RowTemplate(Template):
    """Knobs: `slots`, vectors a step; `tasks`, parts of the rows that run side by side; `stream`, the
    result past the caches; `ahead`, the next row asked for while one is computed.
    """

    version = 3
    op: str

    def covers(self, workload: Workload, target: Target) -> bool:
        return workload.op == self.op and workload["dtype"] in DTYPES and target.kind == "cpu"

    def space(self, workload: Workload, target: Target) -> Space:
        rows = int(workload.dims("rows")[0])
        counts = (1, target.cores, 2 * target.cores, 4 * target.cores, 8 * target.cores)
        knobs = (
            Knob("slots", (1, 2, 3, 4, 6, 8)),
            Knob("tasks", tuple(dict.fromkeys(tasks for tasks in counts if tasks <= rows))),
            Knob("stream", (False, True) if target.arch == "x86_64" else (False,)),
            Knob("ahead", (False, True)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        rows, cols = workload.dims("rows", "cols")
        vectors = -(-cols // target.vector_width("float32"))
        slots = max(slots for slots in (1, 2, 4) if slots <= vectors)
        tasks = 1 if rows * cols < SMALL or rows < target.cores else target.cores
        ahead = 4 * rows * cols > target.l2_bytes
        return Config.of(slots=slots, tasks=tasks, stream=False, ahead=ahead)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        small = {"rows": (1, 64), "cols": (1, SMALL // 64)}
        return [
            GenericKernel({"rows": (1, 1)}, Config.of(slots=4, tasks=1, stream=False, ahead=False)),
            GenericKernel(small, Config.of(slots=2, tasks=1, stream=False, ahead=False)),
            GenericKernel({}, Config.of(slots=4, tasks=target.cores, stream=False, ahead=True)),
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Count vectors of the busiest task, what fills and drains the slots of a row, and its start."""
        rows, cols = workload.dims("rows", "cols")
        slots, tasks = config.number("slots"), config.number("tasks")
        vectors = -(-cols // target.vector_width("float32"))
        waves = -(-tasks // target.cores)
        each = vectors * (1 + 1 / slots) + vectors % slots + 4 * slots
        return -(-rows // tasks) * waves * each + (2000 + 50 * tasks if tasks > 1 else 0)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return self.kernel(workload, target.vector_width("float32"), config).module()

    @abstractmethod
    def kernel(self, workload: Workload, width: int, config: Config) -> RowKernel:
        """Return what emits the loops."""


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` makes sense for the shape; the only statement of the templates' limits."""
    rows, cols = workload.dims("rows", "cols")
    vectors = -(-cols // target.vector_width("float32"))
    return config.number("slots") <= max(vectors, 1) and config.number("tasks") <= rows


class RowKernel:
    """A function over rows; a subclass says what happens to one."""

    def __init__(self, workload: Workload, width: int, config: Config) -> None:
        self.workload = workload
        self.width = width
        self.dtype = str(workload["dtype"])
        self.tasks = config.number("tasks")
        self.streams = config["stream"] is True
        self.is_ahead = config["ahead"] is True
        self.rows, self.cols = (extent(workload, name) for name in ("rows", "cols"))
        self.sweep = Sweep(self.cols, width, config.number("slots"))
        self.buffers: dict[str, Any] = {}
        self.scalars: dict[str, Any] = {}

    def module(self) -> IRModule:
        signature = SIGNATURES[self.workload.op]
        shapes = self.shapes()
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                inputs = [name for name in shapes if name not in self.outputs]
                handles = {name: T.arg(name, T.handle()) for name in inputs}
                for name in signature.scalars(self.workload):
                    self.scalars[name] = T.arg(name, T.float32())
                handles.update({name: T.arg(name, T.handle()) for name in self.outputs})
                for name, handle in handles.items():
                    self.buffers[name] = argument(handle, shapes[name], self.dtype)
                for index, name in enumerate(self.outputs):
                    others = [*inputs, *self.outputs[:index]]
                    refuse_overlap(self.buffers[name], {other: self.buffers[other] for other in others})
                if self.streams:
                    with streaming(stored(self.dtype), width=self.width):
                        self._tasks()
                else:
                    self._tasks()
        return IRModule({"main": builder.get()})

    def _tasks(self) -> None:
        if self.tasks == 1:
            self._rows(Span(0, self.rows))
            return
        with T.parallel(self.tasks) as task:
            self._rows(share(Span(0, self.rows), task, self.tasks))

    def _rows(self, part: Span) -> None:
        self.begin()
        with T.serial(part.count) as i:
            self.row(computed(part.start + i))
        if self.streams:
            fence()

    outputs: tuple[str, ...] = ("out",)

    @abstractmethod
    def shapes(self) -> dict[str, tuple[Extent, ...]]:
        """Return the shapes of the arrays, inputs first, in the order of the signature."""

    def begin(self) -> None:
        """Emit what a task does before its first row."""

    @abstractmethod
    def row(self, row: Extent) -> None:
        """Emit the work on one row."""

    def load(self, name: str, indices: list[Extent], vector: Vector) -> tirx.Expr:
        return load_floats(self.buffers[name], indices, vector.start, self.width, vector.limit)

    def store(self, name: str, value: tirx.Expr, row: Extent, vector: Vector) -> None:
        store_floats(self.buffers[name], value, [row], vector.start, self.width, vector.limit)

    def ask_ahead(self, row: Extent, vector: Vector, *names: str) -> None:
        """Ask for what the next row has where `vector` lies, of the inputs `names`.

        Sweeps that compute leave the memory idle, and hardware looks ahead no further than a page.
        """
        if not self.is_ahead:
            return
        below = tirx.min(row + 1, self.rows - 1)
        for name in names:
            address = tirx.address_of(self.buffers[name][below, vector.start])
            T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *_READ_TO_L1))

    def finish(self, row: Extent, value: Callable[[Vector], tirx.Expr]) -> None:
        """Store `value` of each vector as the result of a row."""
        out = self.buffers["out"]
        if not self.streams:
            self.sweep.each(lambda vector: self.store("out", value(vector), row, vector))
            return

        def put(vector: Vector) -> None:
            if vector.limit is not None:
                self.store("out", value(vector), row, vector)
            else:
                stream(out, as_stored(out, value(vector), self.width), [row], vector.start, self.width)

        self.sweep.each_from(before_aligned(out, [row], self.width), put)

    def within(self, value: tirx.Expr, otherwise: float, vector: Vector) -> tirx.Expr:
        """Return `value`, and `otherwise` in the lanes beyond the row."""
        if vector.limit is None:
            return value
        mask = T.get_active_lane_mask(f"boolx{self.width}", vector.start, vector.limit)
        return tirx.Select(mask, value, tirx.Broadcast(tirx.const(otherwise, "float32"), self.width))


def extent(workload: Workload, name: str) -> Extent:
    value = workload[name]
    return value if isinstance(value, int) else tirx.Var(name, "int32")
