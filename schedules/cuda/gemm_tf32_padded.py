"""Products of tf32 on Hopper whose rows begin anywhere; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

from dataclasses import replace

from tvm import IRModule

from tvmops.schedules.cuda.gemm_mma import row_dims
from tvmops.schedules.cuda.gemm_tf32 import ALIGNED, Tf32Across, Tf32Gemm, is_tf32_on_hopper
from tvmops.schedules.cuda.kernels.gemm_arrays import Form, workspace_function
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_FROM_SIZE = 65  # of m: for less, copies take longer than the product
_START_SECONDS = 1.5e-6  # of a second kernel
_COPIED_BYTES = 8  # of each element: read and written


class Tf32Padded(Tf32Gemm):
    """`Tf32Gemm` or `Tf32Across` on copies of those operands that TMA can't take."""

    name = "cuda.gemm_tf32_padded"
    version = 2

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            is_tf32_on_hopper(workload, target)
            and not (workload["trans_a"] and not workload["trans_b"])
            and (workload.is_generic or not _base_of(workload).covers(workload, target))
        )

    def space(self, workload: Workload, target: Target) -> Space:
        whole = _base_of(workload).space(workload, target)
        knobs = tuple(Knob("chained", (1,)) if knob.name == "chained" else knob for knob in whole.knobs)
        return Space(self.name, knobs, whole.is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return _base_of(workload).choices(workload)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        (_, some, many) = _base_of(workload).generic(workload, target)
        return [
            GenericKernel({"m": (_FROM_SIZE, 1024)}, some.config),
            GenericKernel({"m": (1025, 1 << 30)}, many.config),
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: those of the product, and of reading and writing what is copied."""
        assert target.gpu is not None
        m, n, k, batch = workload.dims("m", "n", "k", "batch")
        sizes = {"a": m * k, "b": k * n}
        shared = str(workload["shared"])
        elements = sum(sizes[each] * (1 if shared == each else batch) for each in _ragged(workload))
        product = _base_of(workload).estimate(workload, target, config)
        return product + _COPIED_BYTES * elements / target.gpu.bandwidth + _START_SECONDS

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return _base_of(workload).features(workload, target, config)

    def kernel_workload(self, workload: Workload) -> Workload:
        """Return the workload with `*` for sizes, but those along rows that TMA takes."""
        rows = {*row_dims(workload), "n"}
        aligned = [dim for dim in rows if workload[dim] != ANY and workload.dims(dim)[0] % ALIGNED == 0]
        return super().kernel_workload(workload).replace(**dict.fromkeys(aligned, ALIGNED))

    def form_of(self, workload: Workload, config: Config) -> Form:
        form = _base_of(workload).form_of(workload, config)
        roles = {"a": "b", "b": "a"} if form.turned else {"a": "a", "b": "b"}
        pads = tuple(sorted(roles[name] for name in _ragged(workload)))
        loose = workload["n"] == ANY or workload.dims("n")[0] % ALIGNED > 0
        return replace(form, pads=pads, loose=loose)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        module = super().build(workload, target, config)
        form = self.form_of(workload, config)
        if form.pads:
            module["main_workspace"] = workspace_function(form)
        return module


def _base_of(workload: Workload) -> Tf32Gemm:
    """Return the template for `workload` if its rows were even."""
    along = workload.op == "matmul" and workload["trans_b"] and not workload["trans_a"]
    return Tf32Gemm() if along else Tf32Across()


def _ragged(workload: Workload) -> tuple[str, ...]:
    """Return the operands whose rows begin where TMA can't, or may do so."""
    rows = zip("ab", row_dims(workload))
    return tuple(name for name, dim in rows if workload[dim] == ANY or workload.dims(dim)[0] % ALIGNED > 0)
