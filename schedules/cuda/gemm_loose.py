"""Few rows of a by a 16-bit b on Hopper whose rows begin anywhere; `kernels.gemm_loose` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.gemm_mma import product_of
from tvmops.schedules.cuda.gemm_swapped import SwappedGemm, is_for_hopper, tiles_of
from tvmops.schedules.cuda.kernels.gemm_loose import MOST_VECTORS, LooseKernel, vectors_of
from tvmops.signatures import ANY
from tvmops.space import Config, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_MOST_ROWS = 32  # of a: more would be loaded by more warps


class LooseGemm(SwappedGemm):
    """`SwappedGemm` for rows that begin at any element, without copies."""

    name = "cuda.gemm_loose"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not is_for_hopper(workload, target) or super().covers(workload, target):
            return False
        few = workload["m"] == ANY or known(workload, "m") <= _MOST_ROWS
        return few and ANY not in (workload["n"], workload["k"])

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)

        def is_legal(config: Config) -> bool:
            tiles = tiles_of(config)
            vectors = vectors_of(tiles.rows, tiles.lines, tiles.bk)
            return whole.is_legal(config) and tiles.ahead == 0 and vectors <= MOST_VECTORS

        return Space(self.name, whole.knobs, is_legal)

    def choices(self, workload: Workload, target: Target) -> list[Config]:
        return [config.replace(ahead=0) for config in super().choices(workload, target)]

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return LooseKernel(product_of(self.kernel_workload(workload)), tiles_of(config)).module()
