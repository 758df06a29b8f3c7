"""Matrix products whose rows begin anywhere, copied in part beside the product; `kernels.late_copies` says how."""

from __future__ import annotations

from dataclasses import replace

from tvmops.schedules.cuda.gemm_padded import PaddedGemm
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Form
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_REGISTERS = 96  # of a thread that copies
_ONE = ("split_k", "beside")  # knobs


class LatePaddedGemm(PaddedGemm):
    """`PaddedGemm` of more than a wave of tiles, whose operands are copied in part beside the first."""

    name = "cuda.gemm_padded_late"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.is_generic or workload.ranges or not super().covers(workload, target):
            return False
        return workload["batch"] == 1

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        knobs = tuple(Knob(knob.name, (1,)) if knob.name in _ONE else knob for knob in whole.knobs)
        knobs = tuple(Knob(knob.name, (1, 2)) if knob.name == "consumers" else knob for knob in knobs)
        return Space(self.name, knobs, whole.is_legal)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def tiles_of(self, config: Config, target: Target) -> Tiles:
        return replace(super().tiles_of(config, target), producer_registers=_REGISTERS)

    def form_of(self, workload: Workload, config: Config) -> Form:
        return replace(super().form_of(workload, config), late=True)
