"""Products of 8-bit integers on Hopper; `kernels.gemm_wgmma` and `kernels.gemm_integers` say how."""

from __future__ import annotations

from dataclasses import replace

from tvmops.schedules.cuda.gemm_fp8 import Fp8Gemm
from tvmops.schedules.cuda.kernels.gemm_integers import Int8Form
from tvmops.schedules.template import GenericKernel
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_MOST_SUMS_WITH_ZERO_POINTS = 96  # of a thread


class Int8WgmmaGemm(Fp8Gemm):
    """wgmma takes bytes that lie along k alone: of a b that is (k, n) `Int8Gemm` makes the product."""

    name = "cuda.gemm_int8_wgmma"
    version = 1
    op = "matmul_int8"
    may_split = True

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            super().covers(workload, target) and workload["packed"] == PLAIN and workload["trans_b"] is True
        )

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        return Space(
            self.name, whole.knobs, lambda config: _has_registers(config, workload) and whole.is_legal(config)
        )

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return [
            kernel
            if _has_registers(kernel.config, workload)
            else replace(kernel, config=kernel.config.replace(bn=128))
            for kernel in super().generic(workload, target)
        ]

    def form_of(self, workload: Workload, config: Config) -> Int8Form:
        return Int8Form(
            dtype=str(workload["dtype"]),
            trans_b=True,
            b_zero_points=str(workload["b_zero_points"]),
            by_channel=workload["scales"] == "channel",
            bias="float32" if workload["bias"] else "",
            activation=str(workload["activation"]),
            out_dtype=str(workload["out_dtype"]),
        )


def _has_registers(config: Config, workload: Workload) -> bool:
    """Say whether a thread has room for its sums and what zero points of b ask for beside them."""
    sums = int(config["bm"]) // (64 * int(config["consumers"])) * int(config["bn"]) // 2
    return sums <= _MOST_SUMS_WITH_ZERO_POINTS or workload["b_zero_points"] == "none"
