"""What products of 16 bits on Hopper have in common whose blocks share the sums of a long k."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from tvm import IRModule

from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm
from tvmops.schedules.cuda.kernels.gemm_arrays import Form, workspace_function
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_LEAST_ROWS = 33  # of a: fewer are streamed
_LEAST_DEPTH = 1024  # of k: less is not worth another's sums


class LongKGemm(WgmmaGemm):
    """`WgmmaGemm` for one product of known sizes, with a knob that says how many blocks share a sum."""

    sharers: ClassVar[Knob]

    def covers(self, workload: Workload, target: Target) -> bool:
        if not super().covers(workload, target) or workload.is_generic or workload["batch"] != 1:
            return False
        m, k = workload.dims("m", "k")
        if m < _LEAST_ROWS or k < _LEAST_DEPTH:
            return False
        space = self.space(workload, target)
        return any(config in space for config in self.choices(workload))

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        knobs = (*whole.knobs, self.sharers, Knob("chained", (1, 4)))
        return Space(self.name, knobs, lambda c: whole.is_legal(c) and self.may_share(c, workload, target))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        module = super().build(workload, target, config)
        module["main_workspace"] = workspace_function(self.with_workspace(workload, target, config))
        return module

    @abstractmethod
    def may_share(self, config: Config, workload: Workload, target: Target) -> bool:
        """True if as many blocks as `sharers` says find work and room, in a config legal without it."""

    def with_workspace(self, workload: Workload, target: Target, config: Config) -> Form:
        """Return the form of a product together with the sums that it leaves in a workspace."""
        return self.form_of(workload, config)
