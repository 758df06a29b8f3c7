"""Matrix products of 16-bit types on Hopper whose rows begin anywhere; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

import dataclasses

from tvm import IRModule

from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm, form_of, is_ragged, launched_early
from tvmops.schedules.cuda.kernels.gemm_arrays import Form, workspace_function
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_ALIGNED = 8  # elements: what stands for every aligned size
_FROM_SIZE = 65  # of m: for less, a copy of b takes longer than the product
_ANY_SIZE = 1 << 30
COPIED = 0.77  # of the bandwidth that the target states, when rows are copied
_START_SECONDS = 1.5e-6  # of a second kernel


class PaddedGemm(WgmmaGemm):
    """`WgmmaGemm` on copies of those operands that TMA can't take."""

    name = "cuda.gemm_padded"
    version = 4

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul" or target.gpu is None or target.gpu.code != "sm_90a":
            return False
        return (
            workload["dtype"] in ("float16", "bfloat16")
            and workload["packed"] == PLAIN
            and (workload.is_generic or not super().covers(workload, target))
        )

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(workload, target)
        knobs = (*whole.knobs, Knob("chained", (1,)))
        return Space(self.name, knobs, whole.is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return [launched_early(config) for config in super().choices(workload)]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        (*_, some, many) = super().generic(workload, target)
        return [
            GenericKernel({"m": (_FROM_SIZE, 1024)}, launched_early(some.config)),
            GenericKernel({"m": (1025, _ANY_SIZE)}, launched_early(many.config)),
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: those of the product, and of reading and writing what is copied."""
        assert target.gpu is not None
        m, n, k, batch = workload.dims("m", "n", "k", "batch")
        shared = str(workload["shared"])
        sizes = {"a": m * k, "b": k * n}
        elements = sum(sizes[each] * (1 if shared == each else batch) for each in pads_of(workload))
        copies = 4 * elements / (COPIED * target.gpu.bandwidth)
        return super().estimate(workload, target, config) + copies + _START_SECONDS

    def kernel_workload(self, workload: Workload) -> Workload:
        """Return the workload with `*` for sizes, but those along rows that TMA takes."""
        rows = {"n", "k", "m" if workload["trans_a"] else "k"}
        aligned = [dim for dim in rows if workload[dim] != ANY and not is_ragged(workload, dim)]
        return super().kernel_workload(workload).replace(**dict.fromkeys(aligned, _ALIGNED))

    def form_of(self, workload: Workload, config: Config) -> Form:
        loose = workload["n"] == ANY or is_ragged(workload, "n")
        return dataclasses.replace(form_of(workload), pads=pads_of(workload), loose=loose)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        module = super().build(workload, target, config)
        form = self.form_of(workload, config)
        if form.pads:
            module["main_workspace"] = workspace_function(form)
        return module


def pads_of(workload: Workload) -> tuple[str, ...]:
    """Return the operands whose rows begin where TMA can't, or may do so."""
    rows = {"a": "m" if workload["trans_a"] else "k", "b": "k" if workload["trans_b"] else "n"}
    return tuple(name for name, dim in rows.items() if workload[dim] == ANY or is_ragged(workload, dim))
