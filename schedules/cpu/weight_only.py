"""matmul_weight_only: digits of x times integer weights, on words of four; see `dot`.

Each group of a row of x becomes integers of one, two or three digits to the base of 256. The
weights stay integers: a row of 64 bytes is loaded, parted into nibbles by a mask and a shift, and
multiplied by each digit in one instruction. What is done in floats is done once a group. So four
bits are read at the speed of memory, with the accuracy of float32, for one to a few rows of x.
"""

from __future__ import annotations

from math import ceil

from tvm import IRModule

from tvmops.schedules.cpu.weight_only_nest import WeightOnlyNest
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures.matmul_weight_only import groups_of
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload


class WeightOnly(Template):
    name = "cpu.weight_only"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            workload.op == "matmul_weight_only"
            and target.kind == "cpu"
            and workload["dtype"] in ("float32", "bfloat16")
        )

    def space(self, workload: Workload, target: Target) -> Space:
        m, _ = workload.dims("m", "n")
        knobs = (
            Knob("mr", tuple(mr for mr in (1, 2, 3, 4, 6) if mr <= m)),
            Knob("nv", (1, 2, 3, 4, 6)),
            Knob("ku", (1, 2, 4)),
            Knob("tasks", tuple(sorted({1, target.cores, 2 * target.cores, 4 * target.cores}))),
        )
        return Space(self.name, knobs, lambda config: self._is_legal(config, workload, target))

    def _is_legal(self, config: Config, workload: Workload, target: Target) -> bool:
        """Say whether `config` fits the machine; the only statement of the template's limits."""
        (n,) = workload.dims("n")
        mr, nv, ku, tasks = (config.number(name) for name in ("mr", "nv", "ku", "tasks"))
        digits = int(str(workload["x_bits"])) // 8
        vectors = ceil(n / target.vector_width("int32"))
        return (
            (nv == 1 or nv <= vectors)
            and (mr * nv == 1 or mr * nv * (digits + 1) + 4 <= target.vector_registers)
            and mr * nv * ku * digits <= 96
            and (tasks == 1 or tasks * nv <= vectors)
        )

    def default(self, workload: Workload, target: Target) -> Config:
        m, n, k = workload.dims("m", "n", "k")
        space = self.space(workload, target)
        wanted = [
            Config.of(mr=mr, nv=nv, ku=ku, tasks=tasks)
            for tasks in ([target.cores, 1] if m * n * k > 1_000_000 else [1])
            for mr in (4, 3, 2, 1)
            for nv in (4, 3, 2, 1)
            for ku in (2, 1)
        ]
        return next(config for config in wanted if config in space)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        one = Config.of(mr=1, nv=2, ku=2, tasks=target.cores)
        small = {"m": (1, 8), "n": (1, 256), "k": (1, 256)}
        return [
            GenericKernel(small, one.replace(tasks=1)),
            GenericKernel({"m": (1, 1)}, one),
            GenericKernel({}, one.replace(mr=2)),
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Count cycles of the busiest core: products or loads, x's digits, starting threads."""
        m, n, k = workload.dims("m", "n", "k")
        mr, nv, ku, tasks = (config.number(name) for name in ("mr", "nv", "ku", "tasks"))
        layout, digits = groups_of(workload), int(str(workload["x_bits"])) // 8
        products = 8 // layout.bits * digits * mr
        row = max(nv * (products + 3), products / digits * 5) + 2 / ku
        each = k / layout.step * row + k / layout.group * nv * mr * 2 * digits
        panels = ceil(n / (nv * target.vector_width("int32")) / tasks)
        tiles = ceil(m / mr)
        return ceil(tasks / target.cores) * tiles * (panels * each + mr * k) + (tasks > 1) * 10_000

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return WeightOnlyNest(workload, target, config).module()
