"""Products of 8-bit integers on Hopper; `kernels.gemm_wgmma` and `kernels.gemm_integers` say how."""

from __future__ import annotations

from dataclasses import replace

from tvmops.schedules.cuda.gemm_fp8 import Fp8Gemm
from tvmops.schedules.cuda.gemm_tiles import FEWER_SUMS, Tiles, narrowed, sums_of
from tvmops.schedules.cuda.kernels.gemm_arrays import Int8Form
from tvmops.schedules.template import GenericKernel
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_PRODUCER_REGISTERS = 56  # of a thread: some add up rows


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
        if workload["b_zero_points"] == "none":
            return whole
        return Space(self.name, whole.knobs, lambda c: sums_of(c) <= FEWER_SUMS and whole.is_legal(c))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        kernels = super().generic(workload, target)
        if workload["b_zero_points"] == "none":
            return kernels
        return [replace(kernel, config=narrowed(kernel.config)) for kernel in kernels]

    def tiles_of(self, config: Config, target: Target) -> Tiles:
        return replace(super().tiles_of(config, target), producer_registers=_PRODUCER_REGISTERS)

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
