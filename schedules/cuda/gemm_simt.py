"""Matrix products on CUDA cores, for any GPU and any shape; `kernels.gemm_simt` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.gemm_mma import product_of
from tvmops.schedules.cuda.kernels.gemm_simt import SimtKernel, SimtTiles
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.matmul import SAME
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_AMPERE = 80  # 16 bits go to tensor cores
_TINY = 1 << 21  # multiplications, which take no longer than starting does
_MOST_REGISTERS = 144  # of a thread; ptxas takes half as many more to read ahead
_OTHER_REGISTERS = 40
_START_SECONDS = 3e-6


class SimtGemm(Template):
    """Any m, n, k, batch, transposes and epilogue; float32 inside."""

    name = "cuda.gemm_simt"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul" or target.gpu is None or workload["packed"] != PLAIN:
            return False
        same = workload["out_dtype"] == workload["bias_dtype"] == SAME
        if workload["dtype"] == "float32" or target.gpu.compute < _AMPERE or not same:
            return True
        sizes = [workload[name] for name in ("batch", "m", "n", "k")]
        return math.prod(size if isinstance(size, int) else _TINY for size in sizes) < _TINY

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("bm", (16, 32, 64, 128, 256)),
            Knob("bn", (16, 32, 64, 128, 256)),
            Knob("bk", (8, 16, 32)),
            Knob("tm", (4, 8, 16)),
            Knob("tn", (4, 8)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        legal = [config for config in _DEFAULTS if is_legal(config, workload, target)]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        small, large = _DEFAULTS[0], _DEFAULTS[-1]
        return [GenericKernel({"m": (1, 32)}, small), GenericKernel({}, large)]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each wave of blocks, multiplying and reading shared memory."""
        assert target.gpu is not None
        m, n, k, batch = (known(workload, name) for name in ("m", "n", "k", "batch"))
        tiles, gpu = self.tiles_of(config), target.gpu
        blocks = batch * math.ceil(m / tiles.bm) * math.ceil(n / tiles.bn)
        warps = tiles.threads / 32
        beside = max(1.0, min(16.0, _blocks_beside(tiles, target), blocks / target.cores))
        busy = min(1.0, warps * beside / 8)  # warps that hide latency
        reads = 1 + 2.0 * (tiles.tm + tiles.tn) / (tiles.tm * tiles.tn)
        each = 2 * tiles.bm * tiles.bn * k * reads / (gpu.flops / target.cores * busy)
        nbytes = batch * (m * k + k * n + m * n) * (4 if workload["dtype"] == "float32" else 2)
        return max(math.ceil(blocks / target.cores) * each, nbytes / gpu.bandwidth) + _START_SECONDS

    def tiles_of(self, config: Config) -> SimtTiles:
        return tiles_of(config)

    def kernel_workload(self, workload: Workload) -> Workload:
        sizes = {"m": ANY, "n": ANY, "k": ANY}
        return workload.replace(**(sizes if workload["batch"] == 1 else {**sizes, "batch": ANY}))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        dtypes = [
            str(workload["dtype"] if workload[field] == SAME else workload[field])
            for field in ("bias_dtype", "out_dtype")
        ]
        return SimtKernel(product_of(self.kernel_workload(workload)), tiles_of(config), *dtypes).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles = tiles_of(config)
    return (
        32 <= tiles.threads <= 512
        and tiles.registers + _OTHER_REGISTERS <= _MOST_REGISTERS
        and tiles.threads * (tiles.registers + _OTHER_REGISTERS) <= target.gpu.block_registers
        and tiles.shared_bytes <= target.gpu.shared_bytes
        and tiles.bm < 2 * max(32, known(workload, "m"))
        and tiles.bn < 2 * max(32, known(workload, "n"))
    )


def tiles_of(config: Config) -> SimtTiles:
    return SimtTiles(**{name: int(value) for name, value in config.items})


def _blocks_beside(tiles: SimtTiles, target: Target) -> float:
    assert target.gpu is not None
    registers = tiles.threads * (tiles.registers + _OTHER_REGISTERS)
    return min(target.gpu.shared_bytes // tiles.shared_bytes, target.gpu.block_registers // registers)


def _config(bm: int, bn: int, bk: int, tm: int, tn: int) -> Config:
    return Config.of(bm=bm, bn=bn, bk=bk, tm=tm, tn=tn)


# What `default` chooses from, by the estimate; smallest tiles first.
_DEFAULTS = (
    _config(16, 32, 16, 4, 4),
    _config(32, 32, 16, 4, 4),
    _config(64, 64, 16, 4, 4),
    _config(64, 64, 8, 8, 8),
    _config(128, 64, 8, 8, 8),
    _config(128, 128, 8, 8, 8),
)
