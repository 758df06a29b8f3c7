"""Scaled products of 8-bit floating point on Hopper; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm, launched_early
from tvmops.schedules.cuda.kernels.gemm_arrays import Form
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload
from tvmops.workloads import workload as make_workload

_MULTIPLES = {"n": 8, "k": 16}  # TMA takes rows of a multiple of 16 bytes


class Fp8Gemm(WgmmaGemm):
    """To the machine a product of 16 bits and half the k: as many bytes, as much time."""

    name = "cuda.gemm_fp8"
    version = 1
    op = "matmul_fp8"
    may_split = False  # sums that are split were verified for 16 bits and for integers

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != self.op or target.gpu is None or target.gpu.code != "sm_90a":
            return False
        return all(
            workload[dim] == ANY or workload.dims(dim)[0] % size == 0 for dim, size in _MULTIPLES.items()
        )

    def space(self, workload: Workload, target: Target) -> Space:
        """Return the space of that product."""
        whole = super().space(_in_pairs(workload), target)
        knobs = (*whole.knobs, Knob("chained", (0, 1)))
        return Space(self.name, knobs, lambda c: (self.may_split or c["split_k"] == 1) and whole.is_legal(c))

    def choices(self, workload: Workload) -> list[Config]:
        return [launched_early(config) for config in super().choices(workload)]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return super().estimate(_in_pairs(workload), target, config)

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return super().features(_in_pairs(workload), target, config)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        kernels = super().generic(_in_pairs(workload), target)
        return [
            GenericKernel(kernel.ranges, launched_early(kernel.config.replace(split_k=1)), _MULTIPLES)
            for kernel in kernels
        ]

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.generic()

    def form_of(self, workload: Workload, config: Config) -> Form:
        return Form(
            dtype=str(workload["dtype"]),
            trans_b=True,
            scales=str(workload["scales"]),
            out_dtype=str(workload["out_dtype"]),
        )


def _in_pairs(workload: Workload) -> Workload:
    """Return the product of 16 bits that moves the same bytes."""
    if workload.op == "matmul":
        return workload
    k = workload["k"]
    dims = {"m": workload["m"], "n": workload["n"], "k": k // 2 if isinstance(k, int) else k}
    return make_workload("matmul", **dims, dtype="bfloat16", trans_b=True)
