"""Products of tf32 on Hopper of two factors whose rows lie across k; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

from dataclasses import replace

from tvm import IRModule

from tvmops.schedules.cuda.gemm_tf32 import ALIGNED, Tf32Across, is_tf32_on_hopper
from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Form, workspace_function
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_TURNED_BYTES = 8  # of each element: read and written
_RATE = 0.82  # of the bandwidth that the target states, when a factor is turned
_START_SECONDS = 3e-6  # of a second kernel
# For less the copy costs what wgmma gains over mma.sync, or nobody has measured it.
_LEAST = {"m": 512, "n": 512, "k": 1024}
_DEEP, _SOME, _ANY_SIZE = 2048, 1024, 2**31 - 1  # of generic kernels: least k, most m of low tiles
_BASE = Tf32Across()


class Tf32Crossed(Tf32Across):
    """`Tf32Across` on a copy of one factor that lies along k; `turns_a` says which.

    wgmma takes the other one through registers. Gradients of weights are such products, x^T dy.
    """

    name = "cuda.gemm_tf32_crossed"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            is_tf32_on_hopper(workload, target)
            and workload["trans_a"] is True
            and workload["trans_b"] is False
            and workload["batch"] == 1
            and all(workload[dim] == ANY or workload.dims(dim)[0] % ALIGNED == 0 for dim in "mn")
        )

    def comes_last(self, workload: Workload, target: Target) -> bool:
        return any(workload[dim] != ANY and workload.dims(dim)[0] < least for dim, least in _LEAST.items())

    def space(self, workload: Workload, target: Target) -> Space:
        spaces = [_BASE.space(_made(workload, turns_a), target) for turns_a in range(2)]
        either = zip(*(space.knobs for space in spaces))
        knobs = [Knob(one.name, tuple(sorted({*one.values, *other.values}))) for one, other in either]

        def is_legal(config: Config) -> bool:
            return _plain(config) in spaces[config.number("turns_a")]

        return Space(self.name, (*knobs, Knob("turns_a", (0, 1))), is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return [
            Config.of(**config.as_dict(), turns_a=turns_a)
            for turns_a in range(2)
            for config in _BASE.choices(_made(workload, turns_a))
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: those of the product, and of reading and writing what is turned."""
        assert target.gpu is not None
        m, n, k = workload.dims("m", "n", "k")
        elements = (m if config["turns_a"] else n) * k
        made = _made(workload, config.number("turns_a"))
        product = _BASE.estimate(made, target, _plain(config))
        return product + _TURNED_BYTES * elements / (_RATE * target.gpu.bandwidth) + _START_SECONDS

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        made = _made(workload, config.number("turns_a"))
        return {**_BASE.features(made, target, _plain(config)), "turns_a": config.number("turns_a")}

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        """Return kernels of products that are large enough for large tiles; others are left to mma.sync."""
        multiples = dict.fromkeys("mn", ALIGNED)
        (_, some, many) = (
            Config.of(**each.config.as_dict(), turns_a=1)
            for each in _BASE.generic(_made(workload, 1), target)
        )
        deep = (_DEEP, _ANY_SIZE)
        low = {"m": (_LEAST["m"], _SOME), "n": (_LEAST["n"], _ANY_SIZE), "k": deep}
        high = {"m": (_SOME + 1, _ANY_SIZE), "n": (_SOME, _ANY_SIZE), "k": deep}
        return [GenericKernel(low, some, multiples), GenericKernel(high, many, multiples)]

    def tiles_of(self, config: Config, target: Target) -> Tiles:
        return _BASE.tiles_of(_plain(config), target)

    def form_of(self, workload: Workload, config: Config) -> Form:
        form = _BASE.form_of(_made(workload, config.number("turns_a")), _plain(config))
        return replace(form, crosses=True)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        module = super().build(workload, target, config)
        module["main_workspace"] = workspace_function(self.form_of(workload, config))
        return module


def _made(workload: Workload, turns_a: int) -> Workload:
    """Return the product of the factors when one has been turned to lie along k."""
    return workload.replace(trans_a=False) if turns_a else workload.replace(trans_b=True)


def _plain(config: Config) -> Config:
    """Return the config of that product."""
    return Config(tuple(item for item in config.items if item[0] != "turns_a"))
