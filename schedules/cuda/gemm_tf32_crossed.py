"""Products of tf32 on Hopper of two factors whose rows lie across k; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

from dataclasses import replace

from tvm import IRModule

from tvmops.schedules.cuda.gemm_tf32 import ALIGNED, Tf32Across, Tf32Gemm, is_tf32_on_hopper
from tvmops.schedules.cuda.kernels.gemm_arrays import Form, workspace_function
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_BASE = Tf32Across()


class Tf32Crossed(Tf32Gemm):
    """Of a (k, m) and b (k, n): one comes to wgmma through registers, the other one is turned."""

    name = "cuda.gemm_tf32_crossed"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            is_tf32_on_hopper(workload, target)
            and workload["trans_a"] is True
            and workload["trans_b"] is False
            and all(workload[dim] == ANY or workload.dims(dim)[0] % ALIGNED == 0 for dim in "mn")
        )

    def space(self, workload: Workload, target: Target) -> Space:
        spaces = [_BASE.space(_made(workload, swaps), target) for swaps in range(2)]
        knobs = [
            Knob(one.name, tuple(sorted({*one.values, *other.values})))
            for one, other in zip(*(space.knobs for space in spaces))
        ]
        knobs += [Knob("swaps", (0, 1)), Knob("turners", (0, 1))]

        def legal(config: Config) -> bool:
            if config["turners"] and (config.number("cluster") > 1 or config.number("bn") % 32 or config.number("bk") > 64):
                return False
            return spaces[config.number("swaps")].is_legal(config)

        return Space(self.name, tuple(knobs), legal)

    def choices(self, workload: Workload) -> list[Config]:
        return [
            Config.of(**one.as_dict(), swaps=swaps, turners=turners)
            for swaps in range(2)
            for turners in range(2)
            for one in super(Tf32Crossed, self).choices(_made(workload, swaps))
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        assert target.gpu is not None
        made = _made(workload, config.number("swaps"))
        n, k = made.dims("n", "k")
        product = _BASE.estimate(made, target, config)
        return product if config["turners"] else product + 8 * n * k / (0.77 * target.gpu.bandwidth) + 1.5e-6

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return _BASE.features(_made(workload, config.number("swaps")), target, config)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def form_of(self, workload: Workload, config: Config) -> Form:
        form = super().form_of(workload, config)
        crossed = "turned" if config["turners"] else "copied"
        return replace(form, trans_a=True, trans_b=True, turned=bool(config["swaps"]), crossed=crossed)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        module = super().build(workload, target, config)
        form = self.form_of(workload, config)
        if form.crossed == "copied":
            module["main_workspace"] = workspace_function(form)
        return module


def _made(workload: Workload, swaps: int) -> Workload:
    """Return the product that is made of the copy."""
    turned = workload.replace(trans_a=True, trans_b=True)
    return turned.replace(m=workload["n"], n=workload["m"]) if swaps else turned
