"""Many rows by integer weights on Hopper, made 16-bit floats first; `kernels.expand_weights` says how."""

from __future__ import annotations

import dataclasses

from tvm import IRModule

from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm, form_of, launched_early
from tvmops.schedules.cuda.kernels.expand_weights import WeightOnlyArrays, WeightOnlyForm
from tvmops.schedules.cuda.kernels.gemm_arrays import workspace_function
from tvmops.schedules.cuda.kernels.gemm_wgmma import gemm
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.signatures.matmul_weight_only import groups_of
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload
from tvmops.workloads import workload as make_workload

_ALIGNED = 8  # elements: TMA takes rows of a multiple of 16 bytes
_FROM_SIZE = 2048  # of m: for less, weights are multiplied as they are in the time that making them takes
_LEAST_DEPTH = 256  # of k: of fewer products the bound leaves no room for weights that are rounded
_ANY_SIZE = 1 << 30
_MADE = 0.77  # of the bandwidth that the target states, when weights are made
_START_SECONDS = 1.5e-6  # of a second kernel


class WeightOnlyExpanded(WgmmaGemm):
    """`WgmmaGemm` of x and weights that a kernel before it makes of integers, in a workspace."""

    name = "cuda.weight_only_expanded"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul_weight_only" or target.gpu is None or target.gpu.code != "sm_90a":
            return False
        m, k = workload["m"], workload["k"]
        return (
            workload["dtype"] in ("float16", "bfloat16")
            and all(workload[dim] == ANY or workload.dims(dim)[0] % _ALIGNED == 0 for dim in ("n", "k"))
            and (m == ANY or workload.dims("m")[0] >= _FROM_SIZE)
            and (k == ANY or workload.dims("k")[0] >= _LEAST_DEPTH)
        )

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(_in_floats(workload), target)
        knobs = (*whole.knobs, Knob("chained", (1,)))
        return Space(self.name, knobs, whole.is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return [launched_early(config) for config in super().choices(workload)]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        many = super().generic(_in_floats(workload), target)[-1]
        aligned = dict.fromkeys(("n", "k"), _ALIGNED)
        return [GenericKernel({"m": (_FROM_SIZE, _ANY_SIZE)}, launched_early(many.config), aligned)]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: those of the product, and of reading and writing the weights."""
        assert target.gpu is not None
        n, k = workload.dims("n", "k")
        made = n * k * (2 + groups_of(workload).bits / 8) / (_MADE * target.gpu.bandwidth)
        return super().estimate(_in_floats(workload), target, config) + made + _START_SECONDS

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return super().features(_in_floats(workload), target, config)

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(m=ANY, n=ANY, k=ANY, x_bits="24")  # x is multiplied as it is

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        plain = form_of(_in_floats(workload))
        fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
        form = WeightOnlyForm(**{**fields, "pads": ("b",)}, groups=groups_of(workload))
        main = gemm(form, self.tiles_of(config, target), WeightOnlyArrays(form))
        return IRModule({"main": main, "main_workspace": workspace_function(form, WeightOnlyArrays(form))})


def _in_floats(workload: Workload) -> Workload:
    """Return the product that is made when the weights are floats."""
    if workload.op == "matmul":
        return workload
    fields = {name: workload[name] for name in ("m", "n", "k", "dtype", "bias", "activation")}
    return make_workload("matmul", **fields, trans_b=True)
