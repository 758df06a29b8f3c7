"""What fills the ring of `conv_wgmma`: one thread, through the copy engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.words import Position, Scalar, ptx, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_wgmma import WgmmaConvKernel

LOAD = "cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes"
_MULTICAST = LOAD + ".multicast::cluster"


@dataclass(frozen=True)
class Tile:
    """What a block is at: its first patch, its first output channel of the group, and the group."""

    patch: Any
    channel: Any
    group: Any


class Producer:
    """One thread: fills the ring."""

    def __init__(self, kernel: WgmmaConvKernel) -> None:
        self.kernel = kernel

    def run(self) -> None:
        kernel, s, t = self.kernel, self.kernel.shape, self.kernel.tiles
        self.at, index = Position(t.stages), Scalar(kernel.first_tile())
        nbytes = (t.all_patches * t.pixels + t.bn) * t.row_bytes
        with T.While(index() < kernel.tile_count):
            tile = kernel.locate(index())
            corners = [self._corner(tile.patch + i) for i in range(t.all_patches)]
            tap = Scalar(T.truncdiv(kernel.first(), kernel.chunks))
            chunk = Scalar(kernel.first() - tap() * kernel.chunks)
            row = Scalar(T.truncdiv(tap(), s.across.size))
            column = Scalar(tap() - row() * s.across.size)
            with T.serial(kernel.last() - kernel.first()):
                kernel.ring.empty.wait(self.at.stage, self.at.phase ^ 1)
                kernel.ring.full.expect(self.at.stage, nbytes)
                self._load(tile, corners, chunk() * t.depth, tap(), row(), column())
                self.at.advance()
                self._next(chunk, tap, row, column)
            index.set(index() + (kernel.tile_count if t.split_k > 1 else t.blocks // t.cluster))

    def _corner(self, patch: Any) -> tuple[Any, Any, Any]:
        """Return where the window of a patch's first pixel begins."""
        s = self.kernel.shape
        x, y, image = self.kernel.corner(patch)
        return (
            Scalar(x * s.across.stride - s.across.before)(),
            Scalar(y * s.down.stride - s.down.before)(),
            image,
        )

    def _load(self, tile: Tile, corners: Any, channel: Any, tap: Any, row: Any, column: Any) -> None:
        kernel, s, stage = self.kernel, self.kernel.shape, self.at.stage
        full = kernel.ring.full.at(stage)
        for i, (x, y, image) in enumerate(corners):
            corner = (x + column * s.across.dilation, y + row * s.down.dilation, image)
            place = kernel.place_in_image(channel, tile.group, corner)
            ptx(
                LOAD.format(rank=len(place)),
                kernel.pixels.ptr_to([stage, i, 0, 0]), T.address_of(kernel.maps["x"]), *place, full,
            )  # fmt: skip
        cluster = kernel.tiles.cluster
        own = kernel.cluster_rank * (kernel.tiles.bn // cluster) if cluster > 1 else 0
        first = tile.channel + own + (tile.group * s.co_each if kernel.grouped else 0)
        everyone = (T.uint16((1 << cluster) - 1),) if cluster > 1 else ()
        ptx(
            (_MULTICAST if cluster > 1 else LOAD).format(rank=3),
            kernel.weights.ptr_to([stage, own, 0]), T.address_of(kernel.maps["w"]),
            channel, tap, first, full, *everyone,
        )  # fmt: skip

    def _next(self, chunk: Scalar, tap: Scalar, row: Scalar, column: Scalar) -> None:
        """Go on to the next channels, then to the next place of the kernel."""
        chunk.set(chunk() + 1)
        with when(chunk() == self.kernel.chunks):
            chunk.set(0)
            tap.set(tap() + 1)
            column.set(column() + 1)
            with when(column() == self.kernel.shape.across.size):
                column.set(0)
                row.set(row() + 1)
