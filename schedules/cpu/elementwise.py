"""Activations of arrays of any shape: one sweep, in parts that run side by side."""

from __future__ import annotations

from tvm import IRModule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, Span, ceildiv, divides, refuse_overlap, share
from tvmops.schedules.cpu.epilogue import activate
from tvmops.schedules.cpu.floats import argument, load_floats, store_floats
from tvmops.schedules.cpu.rows import SMALL, extent
from tvmops.schedules.template import GenericKernel, Template
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload


class CpuElementwise(Template):
    """Knobs: `slots`, vectors a step; `tasks`, parts that run side by side."""

    name = "cpu.elementwise"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return workload.op == "activation" and target.kind == "cpu"

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("slots", (1, 2, 4, 8)),
            Knob("tasks", tuple(dict.fromkeys((1, target.cores, 4 * target.cores)))),
        )
        return Space(self.name, knobs, lambda config: True)

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(slots=4, tasks=1 if workload.dims("size")[0] < 2 * SMALL else target.cores)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return [
            GenericKernel({"size": (1, 2 * SMALL)}, Config.of(slots=4, tasks=1)),
            GenericKernel({}, Config.of(slots=4, tasks=target.cores)),
        ]

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        size, width = extent(workload, "size"), target.vector_width("float32")
        slots, tasks = config.number("slots"), config.number("tasks")
        step = slots * width
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                T.func_attr({"tirx.noalias": True})
                dtype = str(workload["dtype"])
                x, out = (argument(T.arg(name, T.handle()), (size,), dtype) for name in ("x", "out"))
                refuse_overlap(out, {"x": x})

                def vector(start: Extent, limit: Extent | None) -> None:
                    value = load_floats(x, [], start, width, limit)
                    value = activate(str(workload["activation"]), value, width)
                    store_floats(out, value, [], start, width, limit)

                def sweep(steps: Span) -> None:
                    with T.serial(steps.count) as i:
                        for slot in range(slots):
                            vector((steps.start + i) * step + slot * width, None)

                whole = Span(0, size // step)
                if tasks == 1:
                    sweep(whole)
                else:
                    with T.parallel(tasks) as task:
                        sweep(share(whole, task, tasks))
                if not divides(step, size):
                    done = size // step * step
                    with T.serial(ceildiv(size - done, width)) as i:
                        vector(done + i * width, size)
        return IRModule({"main": builder.get()})
