"""Few rows of a by a 16-bit b on Hopper whose rows begin anywhere; `kernels.gemm_loose` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.gemm_mma import product_of
from tvmops.schedules.cuda.gemm_swapped import SwappedGemm, is_sixteen_bit, tiles_of
from tvmops.schedules.cuda.kernels.gemm_loose import EIGHT, LooseKernel
from tvmops.signatures import ANY
from tvmops.space import Config, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_MOST_RAW = 64  # elements of a that a thread holds at a time


class LooseGemm(SwappedGemm):
    """`SwappedGemm` for rows that begin at any element, without copies."""

    name = "cuda.gemm_loose"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not is_sixteen_bit(workload, target) or super().covers(workload, target):
            return False
        n, k = workload["n"], workload["k"]
        return isinstance(n, int) and isinstance(k, int) and min(n, k) >= EIGHT

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        return Space(
            self.name,
            whole.knobs,
            lambda config: (
                whole.is_legal(config) and config.number("rows") * config.number("bk") // 128 <= _MOST_RAW
            ),
        )

    def kernel_workload(self, workload: Workload) -> Workload:
        """Return the workload with `*` for sizes, but those along rows that TMA takes."""
        rows = ("k",) if workload["trans_b"] else ("n", "k")
        aligned = [dim for dim in rows if workload[dim] != ANY and known(workload, dim) % EIGHT == 0]
        return super().kernel_workload(workload).replace(**dict.fromkeys(aligned, EIGHT))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        shared = self.kernel_workload(workload)
        loose_b = shared["k" if workload["trans_b"] else "n"] == ANY
        product = product_of(super().kernel_workload(workload))
        return LooseKernel(product, tiles_of(config), loose_b).module()
