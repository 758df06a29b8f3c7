"""Sizes and knobs of the decode kernel."""

from __future__ import annotations

from dataclasses import dataclass

from tvmops.schedules.cpu.emit import Extent

KEYS = 16  # of a product
COLUMNS = 8  # heads of a product
LINE = 128  # bytes of the L2
PAD = 4  # floats behind each row of a sum
MET, SUMMED = 0, 1  # when the next kernel may begin; n + 1: with n chunks left


@dataclass(frozen=True)
class Split:
    splits: int  # blocks that share the keys of a head
    warps: int  # of a block
    keys: int  # of a chunk
    stages: int  # chunks of a warp's ring
    ahead: int = 0  # chunks of a warp that the L2 is asked for before the kernel before is done
    clusters: int = 1  # that share the keys of a head; what they have meets in a workspace
    early: int = MET  # when the next kernel may begin: blocks have met, warps have summed up, or n + 1 for
    # when a warp has n chunks left

    @property
    def blocks(self) -> int:
        """Blocks that share the keys of a head."""
        return self.splits * self.clusters

    @property
    def threads(self) -> int:
        return 32 * self.warps

    def finished(self, group: int) -> int:
        """Return how many of a group's heads one block finishes, at most."""
        return -(-group // self.splits)


@dataclass(frozen=True)
class Cache:
    """How keys and values lie: by sequence, or in pages; the heads of a row side by side, or apart."""

    beside: bool
    pages: Extent = 0
    page_size: int = 0  # 0 without pages


def pitch(head_dim: int) -> int:
    """Return the bytes of a row of k or v in shared memory."""
    return LINE * -(-2 * head_dim // LINE)


def shared_bytes(head_dim: int, group: int, split: Split) -> int:
    columns = COLUMNS * -(-group // COLUMNS)
    ring = split.warps * split.stages * 2 * split.keys * pitch(head_dim)
    received = 0
    if split.splits > 1:
        received = split.splits * split.finished(group) * 4 * (head_dim + PAD + 2) + 8  # and a barrier
    return ring + 8 * columns * split.warps + received
