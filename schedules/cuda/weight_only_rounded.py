"""Many rows of x by integer weights on Hopper, scaled and rounded in registers; `kernels.weight_only_wgmma` says how."""

from __future__ import annotations

from dataclasses import replace

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.kernels.weight_only_wgmma import WeightOnlyWgmmaKernel
from tvmops.schedules.cuda.weight_only_product import BK, product_of
from tvmops.schedules.cuda.weight_only_tiles import WeightOnlyWgmmaTiles, shared_bytes
from tvmops.schedules.cuda.weight_only_wgmma import WeightOnlyWgmma, tiles_of
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_LEAST_DEPTH = 256  # of k: of fewer products the bound leaves no room for weights that are rounded


class WeightOnlyRounded(WeightOnlyWgmma):
    name = "cuda.weight_only_rounded"
    version = 1

    def space(self, workload: Workload, target: Target) -> Space:
        m = known(workload, "m")
        knobs = (
            Knob("rows", tuple(rows for rows in range(64, 257, 8) if rows < m + 64)),
            Knob("groups", (1, 2)),
            Knob("stages", (2, 3, 4, 5, 6)),
            Knob("splits", (1, 2, 4)),
            Knob("beside", (1, 2)),
            Knob("chained", (0, 1, 2)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(rows=256, groups=2, stages=3, splits=1, beside=1, chained=2)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        product = product_of(self.kernel_workload(workload))
        return WeightOnlyWgmmaKernel(product, rounded_tiles(config, target)).module()


def rounded_tiles(config: Config, target: Target) -> WeightOnlyWgmmaTiles:
    return replace(tiles_of(config, target), rounded=True)


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    assert target.gpu is not None
    tiles, k = rounded_tiles(config, target), known(workload, "k")
    steps = -(-k // BK)
    room = (target.gpu.shared_bytes + 1024) // tiles.beside - 1024
    return (
        shared_bytes(product_of(workload), tiles) + 1024 <= room
        and tiles.rows // 2 + 72 <= tiles.consumer_registers
        and tiles.splits <= steps
    )
