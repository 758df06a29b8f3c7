"""Few rows of a by a b of float32, at the speed of memory; `kernels.stream_float32` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.gemm_float32 import has_clusters
from tvmops.schedules.cuda.gemm_mma import product_of, row_dims
from tvmops.schedules.cuda.gemm_simt import SimtGemm
from tvmops.schedules.cuda.kernels.stream_float32 import StreamKernel, StreamTiles
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_ALIGNED = 4  # elements: 16 bytes
_MOST_ROWS = 16  # of a: with more, `gemm_float32` is faster
_MOST_REGISTERS, _OTHER_REGISTERS = 255, 40  # of a thread
_LATENCY = 1.2e-6  # seconds until a vector has come
_BLOCK_RATE = 4e10  # bytes a second that one multiprocessor takes at most
_SHARPNESS = 4.0  # of the bend where one limit takes over from another
_START_SECONDS = 3e-6
_MEETING_SECONDS = 0.5e-6  # of a cluster's blocks
_READ_SECONDS = 1.6e-8  # of a warp for 128 bytes of shared memory, with what is multiplied
_PLACES = 0.9  # of the machine: clusters of 4 and more don't find room everywhere


class Float32Stream(SimtGemm):
    """Known sizes, no batch, rows of a and b of multiples of 16 bytes; any epilogue."""

    name = "cuda.float32_stream"
    version = 2

    def covers(self, workload: Workload, target: Target) -> bool:
        if not has_clusters(target) or not super().covers(workload, target) or workload.is_generic:
            return False
        (m,) = workload.dims("m")
        whole = all(workload.dims(dim)[0] % _ALIGNED == 0 for dim in ("k", *row_dims(workload)))
        plain = workload["dtype"] == "float32" and workload["batch"] == 1 and not workload["trans_a"]
        return plain and whole and m <= _MOST_ROWS

    def space(self, workload: Workload, target: Target) -> Space:
        (m,) = workload.dims("m")
        rows = next(rows for rows in (1, 2, 4, 8, 16) if rows >= m)
        knobs = (
            Knob("rows", (rows,)),
            Knob("columns", (1, 2, 4, 8) if workload["trans_b"] else (4,)),
            Knob("warps", (4, 8, 16)),
            Knob("splits", (1, 2, 4, 8)),
            Knob("spread", (1,) if workload["trans_b"] else (1, 2, 4)),
            Knob("depth", (2, 3, 4, 6)),
            Knob("chained", (0, 1)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        return min(
            (config for config in self.space(workload, target) if config["chained"]),
            key=lambda config: (self.estimate(workload, target, config), config.key),
        )

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of memory, of what is on its way, and of the busiest multiprocessor."""
        assert target.gpu is not None
        m, n, k = workload.dims("m", "n", "k")
        tiles = tiles_of(config)
        cores = target.cores * (_PLACES if tiles.splits >= 4 else 1.0)
        kernel = kernel_of(workload, tiles)
        blocks = math.ceil(n / kernel.width) * tiles.splits
        beside = min(_blocks_beside(workload, tiles, target), math.ceil(blocks / cores))
        waves = math.ceil(blocks / (beside * cores))
        own = 4 * kernel.width * kernel.stretch  # bytes of b of a block
        on_the_way = min(own, (tiles.depth - 1) * tiles.threads * 16 * kernel.slots)
        limits = (
            4 * n * k / target.gpu.bandwidth,
            waves * own / on_the_way * _LATENCY,
            math.ceil(blocks / cores) * own / _BLOCK_RATE,
            _READ_SECONDS * waves * kernel.groups * _reads(kernel),
        )
        stream: float = sum(limit**_SHARPNESS for limit in limits) ** (1 / _SHARPNESS)
        meeting = _MEETING_SECONDS * math.log2(2 * tiles.splits)
        rows = 8 * m * kernel.stretch * blocks / target.gpu.bandwidth / 4  # of a, from the L2
        return _START_SECONDS + stream + rows + meeting

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(m=ANY, n=ANY)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return kernel_of(self.kernel_workload(workload), tiles_of(config)).module()


def kernel_of(workload: Workload, tiles: StreamTiles) -> StreamKernel:
    group = 128 if workload["trans_b"] else _ALIGNED
    (k,) = workload.dims("k")
    return StreamKernel(product_of(workload), tiles, math.ceil(k / tiles.splits / group) * group)


def tiles_of(config: Config) -> StreamTiles:
    return StreamTiles(**{name: int(value) for name, value in config.items})


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles, (k,) = tiles_of(config), workload.dims("k")
    kernel = kernel_of(workload, tiles)
    return (
        _registers(kernel) <= _MOST_REGISTERS
        and _blocks_beside(workload, tiles, target) >= 1
        and (tiles.splits - 1) * kernel.stretch < k
        and kernel.width < 2 * max(128, known(workload, "n"))
    )


def _registers(kernel: StreamKernel) -> int:
    """Guess the registers of a thread: its sums, and vectors of a group of b and of a row of a."""
    return kernel.slots * (kernel.tiles.rows + 4) + 4 + _OTHER_REGISTERS


def _reads(kernel: StreamKernel) -> int:
    """Count 128 bytes that a warp reads for a group: where b lies across k, its lanes share rows of a."""
    return 4 * kernel.slots + kernel.tiles.rows * (4 if kernel.along else 1)


def _blocks_beside(workload: Workload, tiles: StreamTiles, target: Target) -> int:
    """Return how many blocks share a multiprocessor."""
    assert target.gpu is not None
    kernel = kernel_of(workload, tiles)
    shared = kernel.shared_bytes + 1024
    registers = tiles.threads * _registers(kernel)
    return min(target.gpu.shared_bytes // shared, target.gpu.block_registers // registers)
