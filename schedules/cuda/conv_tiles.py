"""`ConvTiles`: how `WgmmaConv` cuts a convolution into pieces, and what that takes of the machine."""

from __future__ import annotations

from dataclasses import dataclass

from tvmops.schedules.cuda.gemm_tiles import PARTIAL_PAD
from tvmops.space import Config
from tvmops.targets import Target

ROWS = 64  # of a wgmma: the pixels of a patch, at most
PANEL = 64  # channels of results that leave together
_BUFFER = ROWS * 2 * PANEL  # bytes
_MOST_STAGES = 10  # more hide nothing that these do not
_REGISTERS = 65_536  # of a multiprocessor
_MOST_REGISTERS = 232  # of a thread that multiplies
_RESERVED = 1024  # bytes of shared memory that the system takes of each block
_BARRIERS = 1024  # bytes, and what alignment takes


@dataclass(frozen=True)
class ConvTiles:
    patch_w: int  # columns of a patch of the output, which one wgmma multiplies
    patch_h: int  # its rows
    patch_n: int  # its images
    patches: int  # of a warpgroup
    consumers: int  # warpgroups that multiply
    alternate: int  # whether each of them takes tiles of its own, in turn, or all share each tile's patches
    bn: int  # output channels
    depth: int  # channels of a step
    cluster: int  # blocks, each with patches of its own, that share a tile of the weights
    split_k: int  # blocks that share the sum of a tile
    beside: int  # blocks that share a multiprocessor
    multiprocessors: int
    shared_bytes: int  # of a multiprocessor, for one block
    residual: bool
    direct: int = 0  # whether pixels are read from NCHW images as they lie
    producer_registers: int = 56

    @classmethod
    def of(cls, config: Config, target: Target, residual: bool) -> ConvTiles:
        assert target.gpu is not None
        knobs = {name: int(value) for name, value in config.items}
        return cls(
            **knobs, multiprocessors=target.cores, shared_bytes=target.gpu.shared_bytes, residual=residual
        )

    @property
    def blocks(self) -> int:
        """Blocks that stay on the machine."""
        return self.multiprocessors * self.beside // self.cluster * self.cluster

    @property
    def meeting(self) -> int:
        """Blocks of a cluster."""
        return self.cluster * self.split_k

    @property
    def pixels(self) -> int:
        """Pixels of a patch."""
        return self.patch_w * self.patch_h * self.patch_n

    @property
    def all_patches(self) -> int:
        """Patches of a tile."""
        return self.patches * self.sharers

    @property
    def sharers(self) -> int:
        """Warpgroups that multiply one tile."""
        return 1 if self.alternate else self.consumers

    @property
    def store_buffers(self) -> int:
        """Buffers of 64 x 64 results a consumer: of the whole tile where a residual waits in them."""
        whole = self.patches * (self.bn // PANEL)
        return 0 if self.split_k > 1 else whole if self.residual else min(2, whole)

    @property
    def consumer_registers(self) -> int:
        """Registers of a thread, when the producers have given theirs away."""
        return registers_of(self.consumers, self.beside, self.producer_registers)

    @property
    def partial_bytes(self) -> int:
        """Bytes of a block's own sums, where others add theirs; they take the place of the ring."""
        return 4 * (self.bn + PARTIAL_PAD) * ROWS * self.all_patches if self.split_k > 1 else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of a pixel's, or an output channel's, part of a step: what shared memory is swizzled by."""
        return 2 * self.depth

    @property
    def stage_bytes(self) -> int:
        return (self.all_patches * ROWS + self.bn) * self.row_bytes

    @property
    def stages(self) -> int:
        """Stages of the ring: as many as there is room for."""
        fixed = self.consumers * self.store_buffers * _BUFFER + _BARRIERS
        room = (self.shared_bytes + _RESERVED) // self.beside - _RESERVED
        return min((room - fixed) // self.stage_bytes, _MOST_STAGES)


def registers_of(consumers: int, beside: int, producer_registers: int) -> int:
    """Return the registers of a thread that multiplies, when the producers have given theirs away."""
    threads = 128 * (consumers + 1)
    pool = _REGISTERS // beside // threads // 8 * 8 * threads
    return min((pool - 128 * producer_registers) // (128 * consumers) // 8 * 8, _MOST_REGISTERS)
