"""Pooling: the image read once, each channel by itself. The knobs:

slots    vectors a step, independent of each other
tasks    parts of the output that run side by side
"""

from __future__ import annotations

from tvm import IRModule

from tvmops.ops import op_of
from tvmops.schedules.cpu.pool_global import GlobalNest
from tvmops.schedules.cpu.pool_window import WindowNest
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures.pool2d import GLOBAL
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_SMALL = 1 << 15  # elements of the image; for fewer, starting threads costs more than it saves


class CpuPool(Template):
    name = "cpu.pool2d"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return workload.op == "pool2d" and target.kind == "cpu"

    def space(self, workload: Workload, target: Target) -> Space:
        cores = target.cores
        knobs = (
            Knob("slots", (1, 2, 4, 8)),
            Knob("tasks", tuple(dict.fromkeys((1, cores, 2 * cores, 4 * cores)))),
        )
        return Space(self.name, knobs, lambda config: True)

    def default(self, workload: Workload, target: Target) -> Config:
        (image,) = op_of(workload).inputs(workload)
        return Config.of(slots=2, tasks=1 if image.elements < _SMALL else target.cores)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return [GenericKernel({}, Config.of(slots=2, tasks=target.cores))]

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        width, slots, tasks = target.vector_width("float32"), config.number("slots"), config.number("tasks")
        nest = GlobalNest if workload["kernel"] == GLOBAL else WindowNest
        return nest(workload, width, slots, tasks).module()


__all__ = ["CpuPool"]
