"""Small products on Hopper, one after the other: kernels that are launched while the one before them ends."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cuda.gemm_mma import MmaGemm, is_chained, product_of, tiles_of
from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm, launched_early
from tvmops.schedules.cuda.kernels.gemm_mma import MmaKernel
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

# Multiplications: more take so long that what a launch costs is lost in it.
_MOST_WORK, _MOST_MMA_WORK = 1 << 35, 1 << 31


class ChainedGemm(WgmmaGemm):
    """`WgmmaGemm`, launched while the kernel before it ends (programmatic dependent launch)."""

    name = "cuda.gemm_chained"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not super().covers(workload, target) or workload.is_generic:
            return False
        return _work(workload) <= _MOST_WORK

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        return Space(self.name, (*whole.knobs, Knob("chained", (1, 4))), whole.is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return [launched_early(config) for config in super().choices(workload)]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []


class ChainedMma(MmaGemm):
    """`MmaGemm`, launched so."""

    name = "cuda.gemm_mma_chained"
    version = 2

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            super().covers(workload, target)
            and is_chained(target)
            and not workload.is_generic
            and _work(workload) <= _MOST_MMA_WORK
        )

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        return Space(self.name, whole.knobs, whole.is_legal)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        product = product_of(self.kernel_workload(workload))
        return MmaKernel(product, tiles_of(config), chained=True).module()


def _work(workload: Workload) -> int:
    batch, m, n, k = workload.dims("batch", "m", "n", "k")
    return batch * m * n * k
