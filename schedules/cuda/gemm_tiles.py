"""`Tiles`: how `WgmmaGemm` cuts a product into pieces, and what that takes of the machine."""

from __future__ import annotations

from dataclasses import dataclass

from tvmops.space import Config
from tvmops.targets import Target

_MOST_STAGES = 12  # more hide nothing that these do not
_REGISTERS = 65_536  # of a multiprocessor
_MOST_REGISTERS = 232  # of a thread that multiplies
_FEWEST_REGISTERS = 32  # of a thread
_RESERVED = 1024  # bytes of shared memory that the system takes of each block
PARTIAL_PAD = 8  # floats behind each row of a partial sum, so that rows start in different banks


@dataclass(frozen=True)
class Tiles:
    bm: int  # rows of a tile, a multiple of 64 for each consumer
    bn: int  # its columns
    bk: int  # k of a stage
    consumers: int  # warpgroups that multiply, one above the other
    cluster: int  # blocks, one above the other, that share a tile of b
    split_k: int  # blocks of a cluster that share the sum of a tile
    group: int  # rows of tiles that are walked together, column by column
    beside: int  # blocks that share a multiprocessor
    multiprocessors: int
    shared_bytes: int  # of a multiprocessor, for one block
    store_buffers: int = 2  # of 64 x 64, a consumer
    producer_registers: int = 40  # of a thread; fewer where three warpgroups multiply
    parts: int = 1  # blocks anywhere that do, whose sums a second kernel adds up
    streams: int = 0  # 1: blocks share the last tiles evenly (stream-K); more: as many share each tile
    abreast: int = 1  # blocks, side by side, that share a tile of a
    # 1: launched while the kernel before it ends, for whose results it waits by itself; more: until then the
    # L2 is asked for as many stages of b.
    chained: int = 0

    @classmethod
    def of(cls, config: Config, target: Target) -> Tiles:
        assert target.gpu is not None
        knobs = {name: int(value) for name, value in config.items}
        own = {"producer_registers": _FEWEST_REGISTERS} if knobs["consumers"] > 2 else {}
        return cls(**knobs, **own, multiprocessors=target.cores, shared_bytes=target.gpu.shared_bytes)

    @property
    def blocks(self) -> int:
        """Blocks that stay on the machine."""
        return self.multiprocessors * self.beside

    @property
    def sharers(self) -> int:
        """Blocks of a cluster that load a part each of a tile they share."""
        return self.cluster * self.abreast

    @property
    def neighbours(self) -> int:
        """Blocks that are launched as a cluster to lie beside each other, where the L2 answers both at once.

        Those of a kernel that is launched alone do so anyway. What comes by multicast is not joined so.
        """
        alone = self.chained == 0 or self.sharers > 1 or self.split_k > 1 or self.group % 2 > 0
        return 1 if alone else 2

    @property
    def blocks_a_group(self) -> int:
        """Blocks of 64 rows that one consumer multiplies."""
        return self.bm // (64 * self.consumers)

    @property
    def consumer_registers(self) -> int:
        """Registers of a thread, when the producers have given theirs away."""
        threads = 128 * (self.consumers + 1)
        pool = _REGISTERS // self.beside // threads // 8 * 8 * threads
        return min((pool - 128 * self.producer_registers) // (128 * self.consumers) // 8 * 8, _MOST_REGISTERS)

    @property
    def stages(self) -> int:
        """Stages of the ring: as many as there is room for."""
        stores = self.consumers * self.store_buffers * 64 * 64 * 2 if self.split_k == self.parts == 1 else 0
        room = (self.shared_bytes + _RESERVED) // self.beside - _RESERVED
        return min((room - stores - 1024) // (self.stage_bytes + 16), _MOST_STAGES)

    @property
    def stage_bytes(self) -> int:
        return (self.bm + -(-self.bn // 64) * 64) * self.bk * 2

    @property
    def flags(self) -> int:
        """Of warps that may leave sums for another block, one for each that takes them."""
        return 4 * self.consumers * self.blocks * self.streams

    @property
    def left_bytes(self) -> int:
        """Bytes of the sums that all blocks may leave."""
        return 4 * self.bm * self.bn * self.blocks

    @property
    def workspace_bytes(self) -> int:
        return self.left_bytes + 8 * self.flags if self.streams else 0

    @property
    def partial_bytes(self) -> int:
        """Bytes of a block's share of a sum: it takes the place of the ring, when that has been read."""
        return 4 * (self.bn + PARTIAL_PAD) * self.bm if self.split_k > 1 else 0


FEWER_SUMS = 96  # of a thread: what leaves room for more than a plain epilogue


def sums_of(config: Config) -> int:
    """Return the sums of a thread that multiplies."""
    bm, bn, consumers = (int(config[name]) for name in ("bm", "bn", "consumers"))
    return bm // (64 * consumers) * bn // 2


def narrowed(config: Config) -> Config:
    """Return `config`, or one of fewer sums that resembles it."""
    return config if sums_of(config) <= FEWER_SUMS else config.replace(bn=128)
