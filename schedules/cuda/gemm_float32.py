"""Products of float32 on CUDA cores of newer GPUs; `kernels.gemm_float32` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.gemm_mma import product_of
from tvmops.schedules.cuda.gemm_simt import SimtGemm
from tvmops.schedules.cuda.kernels.gemm_float32 import Float32Kernel, Float32Tiles
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_AMPERE = 80  # cp.async
_MOST_REGISTERS = 240  # of a thread
_OTHER_REGISTERS = 28
_VECTOR = 4  # elements: 16 bytes
_RESERVED = 1024  # bytes of shared memory that the system takes of each block


class Float32Gemm(SimtGemm):
    """Any m, n, k, batch, transposes and epilogue."""

    name = "cuda.gemm_float32"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        newer = target.gpu is not None and target.gpu.compute >= _AMPERE
        return newer and super().covers(workload, target) and workload["dtype"] == "float32"

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            *super().space(workload, target).knobs,
            Knob("stages", (2, 3, 4)),
            Knob("a_vector", _vectors(workload["m"]) if workload["trans_a"] else (1,)),
            Knob("b_vector", (1,) if workload["trans_b"] else _vectors(workload["n"])),
            Knob("beside", (1, 2)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        vectors = {knob.name: knob.values[0] for knob in space.knobs if "vector" in knob.name}
        legal = [config for knobs in _DEFAULTS if (config := Config.of(**{**knobs, **vectors})) in space]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        small, large = (
            Config.of(**{**knobs, "a_vector": 1, "b_vector": 1}) for knobs in (_DEFAULTS[0], _DEFAULTS[-1])
        )
        return [GenericKernel({"m": (1, 32)}, small), GenericKernel({}, large)]

    def tiles_of(self, config: Config) -> Float32Tiles:
        return tiles_of(config)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return Float32Kernel(product_of(self.kernel_workload(workload)), tiles_of(config)).module()


def tiles_of(config: Config) -> Float32Tiles:
    return Float32Tiles(**{name: int(value) for name, value in config.items})


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles = tiles_of(config)
    registers = tiles.registers + _OTHER_REGISTERS
    return (
        32 <= tiles.threads <= 512
        and registers <= _MOST_REGISTERS
        and tiles.beside * tiles.threads * registers <= target.gpu.block_registers
        and tiles.beside * (tiles.shared_bytes + _RESERVED) <= target.gpu.shared_bytes + _RESERVED
        and tiles.bm < 2 * max(32, known(workload, "m"))
        and tiles.bn < 2 * max(32, known(workload, "n"))
    )


def _vectors(row: object) -> tuple[int, ...]:
    """Return what copies can take at once where rows have `row` elements: both ends if unknown."""
    if not isinstance(row, int):
        return (_VECTOR, 1)
    return (_VECTOR if row % _VECTOR == 0 else 1,)


def _knobs(bm: int, bn: int, bk: int, tm: int, tn: int, stages: int, beside: int) -> dict[str, int]:
    return {
        "bm": bm, "bn": bn, "bk": bk, "tm": tm, "tn": tn, "stages": stages, "a_vector": 1, "b_vector": 1,
        "beside": beside,
    }  # fmt: skip


# What `default` chooses from, by the estimate; smallest tiles first.
_DEFAULTS = (
    _knobs(16, 32, 16, 4, 4, 3, 1),
    _knobs(32, 32, 16, 4, 4, 3, 1),
    _knobs(64, 64, 16, 4, 4, 3, 1),
    _knobs(64, 64, 16, 8, 8, 3, 1),
    _knobs(128, 64, 16, 8, 8, 3, 2),
    _knobs(128, 128, 16, 8, 8, 3, 2),
)
