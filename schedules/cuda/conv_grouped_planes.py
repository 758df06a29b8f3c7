"""Convolutions of 16-bit types in groups of few channels on Hopper, NCHW: of copies with channels last."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_grouped import GroupedConv
from tvmops.schedules.cuda.kernels.conv_grouped import copies_of
from tvmops.schedules.cuda.kernels.conv_planes import workspace_function
from tvmops.space import Config, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_HOPPER = 90  # where a kernel is launched while the one that copies for it ends


class GroupedPlanes(GroupedConv):
    name = "cuda.conv_grouped_planes"
    version = 1
    layout = "NCHW"

    def covers(self, workload: Workload, target: Target) -> bool:
        return target.gpu is not None and target.gpu.compute >= _HOPPER and super().covers(workload, target)

    def space(self, workload: Workload, target: Target) -> Space:
        """Return the configs that are launched early, as what multiplies copies has to be."""
        whole = super().space(workload, target)
        return Space(self.name, whole.knobs, lambda config: bool(config["early"]) and whole.is_legal(config))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        module = super().build(workload, target, config)
        shape = ConvShape.of(self.kernel_workload(workload))
        module["main_workspace"] = workspace_function(shape, str(workload["dtype"]), copies_of(shape))
        return module
