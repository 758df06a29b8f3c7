"""Convolutions of 16-bit images of few channels with mma.sync; `kernels.conv_narrow` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.ops import op_of
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.kernels.conv_narrow import NarrowKernel
from tvmops.schedules.cuda.kernels.conv_narrow_tiles import NarrowLayout, NarrowTiles
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.windows import output_size, windows
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_AMPERE = 80  # mma.sync of 16 bits
_MOST_CHANNELS = 16  # of more, copies of 16 bytes are worth their while
_MOST_INSTRUCTIONS = 1600  # of a tile's products, all unrolled
_MOST_REGISTERS = 128  # of a thread's sums
_OTHER_REGISTERS = 40
_DEEP = 512  # of k: places of shared memory are no longer constants of instructions
_MOST_FETCHED = 40  # registers of a thread for what the next tile sees
_RESERVED = 1024  # bytes of shared memory that the system takes of each block
_WANTED_WARPS = 16  # of a multiprocessor
_STAGING = 1.5e-11  # seconds an element, of a multiprocessor
_SHARE = 0.3  # of the tensor cores' rate that these products reach


class NarrowConv(Template):
    name = "cuda.conv_narrow"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "conv2d" or target.gpu is None or target.gpu.compute < _AMPERE:
            return False
        ci, co = workload["ci"], workload["co"]
        return (
            workload["dtype"] in ("float16", "bfloat16")
            and workload["packed"] == PLAIN
            and workload["groups"] == 1
            and isinstance(ci, int)
            and ci <= _MOST_CHANNELS
            and isinstance(co, int)
            and co % 8 == 0
            and windows(workload)[1].dilation == 1
            and next(iter(self.space(workload, target)), None) is not None
        )

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, _KNOBS, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        return min(self.space(workload, target), key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []  # channels decide on what is unrolled

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of the busiest multiprocessor, what it stages, multiplies and stores."""
        assert target.gpu is not None
        tiles = tiles_of(config, target)
        layout = NarrowLayout(ConvShape.of(workload), tiles)
        if workload["n"] == ANY or workload["h"] == ANY or workload["w"] == ANY:
            count = layout.blocks * 4
        else:
            (n,), (oh, ow) = workload.dims("n"), output_size(workload)
            count = n * math.ceil(oh / tiles.tile_h) * math.ceil(ow / tiles.tile_w) * layout.columns
        rounds = math.ceil(count / layout.blocks) * min(1.0, count / layout.blocks)
        busy = min(1.0, tiles.warps * tiles.beside / _WANTED_WARPS)
        rate = _SHARE * busy * target.gpu.tensor_flops / target.cores
        multiply = 2 * tiles.pixels * tiles.bn * layout.depth / rate
        stage = layout.copies * layout.rows * layout.width * _STAGING / busy
        fewest = op_of(workload).nbytes(workload) / target.gpu.bandwidth if count != layout.blocks * 4 else 0
        overlap = 1 + 0.5 / tiles.beside
        return max(rounds * (multiply + stage) * tiles.beside * overlap, fewest) + 4e-6

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(**dict.fromkeys(("n", "h", "w"), ANY))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        shape = ConvShape.of(self.kernel_workload(workload))
        return NarrowKernel(shape, str(workload["dtype"]), tiles_of(config, target)).module()


_KNOBS = (
    Knob("tile_h", (1, 2, 4, 8, 16)),
    Knob("tile_w", (8, 16, 32)),
    Knob("warps", (1, 2, 4, 8)),
    Knob("bn", (16, 32, 64, 128)),
    Knob("beside", (1, 2, 3, 4, 6)),
)


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles = tiles_of(config, target)
    if tiles.pixels % (16 * tiles.warps) or not tiles.pixels >= 16 * tiles.warps:
        return False
    layout = NarrowLayout(ConvShape.of(workload), tiles)
    sums = tiles.parts * tiles.bn // 2
    unrolled = layout.depth // 16 * (tiles.parts * (4 + tiles.bn // 8) + tiles.bn // 16)
    others = _OTHER_REGISTERS + 40 * bool(workload["residual"]) + 16 * (layout.depth > _DEEP)
    (co,) = workload.dims("co")
    return (
        tiles.bn < 2 * max(16, co)
        and sums <= _MOST_REGISTERS
        and layout.steps <= _MOST_FETCHED
        and (sums + layout.steps + others) * 32 * tiles.warps * tiles.beside <= target.gpu.block_registers
        and (layout.shared_bytes(tiles) + _RESERVED) * tiles.beside <= target.gpu.shared_bytes + _RESERVED
        and unrolled <= _MOST_INSTRUCTIONS
    )


def tiles_of(config: Config, target: Target) -> NarrowTiles:
    return NarrowTiles(**{name: int(value) for name, value in config.items}, multiprocessors=target.cores)
