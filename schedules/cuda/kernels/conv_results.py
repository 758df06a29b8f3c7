"""How results of `conv_wgmma` leave: through swizzled shared memory, 64 channels of a patch at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.conv_tiles import PANEL
from tvmops.schedules.cuda.kernels.conv_producer import LOAD, Tile
from tvmops.schedules.cuda.pairs import element_at, high_of, load_pair, low_of
from tvmops.schedules.cuda.words import Scalar, do, pack, ptx, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_wgmma import WgmmaConvKernel

_STORE = "cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"


class Results:
    """The results of one warpgroup, whose sums a thread holds as wgmma leaves them."""

    matrices = "sync.aligned.m8n8.x4.shared.b16"  # how its parts of four 8 x 8 results lie there

    def __init__(self, kernel: WgmmaConvKernel, sums: Any) -> None:
        self.kernel, self.sums = kernel, sums
        self.leads = (kernel.warp == 0) & (kernel.lane == 0)
        self.packed = T.alloc_local((4,), "uint32")
        self.bias = T.alloc_local((8,), "uint32")
        self.added = T.alloc_local((4,), "uint32")
        self.round = Scalar(0)  # of the barrier that residuals complete

    def fetch_residual(self, tile: Tile, corners: list[tuple[Any, Any, Any]]) -> None:
        """Begin to copy the residual of the tile to where its results will lie."""
        kernel, t = self.kernel, self.kernel.tiles
        with when(self.leads):
            ptx("cp.async.bulk.wait_group.read", 0)  # the results of the last tile have left
            kernel.arrived.expect(kernel.warpgroup, t.store_buffers * t.pixels * 2 * PANEL)
            for number in range(t.store_buffers):
                part, patch = divmod(number, t.patches)
                place = kernel.place(tile.channel + part * 64, tile.group, corners[patch])
                ptx(
                    LOAD.format(rank=kernel.rank),
                    kernel.results.ptr_to([kernel.warpgroup, number, 0, 0]),
                    T.address_of(kernel.maps["residual"]), *place, kernel.arrived.at(kernel.warpgroup),
                )  # fmt: skip

    def finish(self) -> None:
        """Wait until all have left."""
        with when(self.leads):
            ptx("cp.async.bulk.wait_group", 0)

    def store(self, tile: Tile, corners: list[tuple[Any, Any, Any]]) -> None:
        kernel, t = self.kernel, self.kernel.tiles
        count = t.patches * (t.bn // 64)
        # Stores that may still read: none if the next tile begins with the buffer that this one ends with.
        unread = t.store_buffers - 1 if count % t.store_buffers == 0 else 0
        if kernel.waits_for_residual:
            kernel.arrived.wait(kernel.warpgroup, self.round())
            self.round.set(self.round() ^ 1)
        for part in range(t.bn // 64):
            self._load_bias(tile, part)
            for patch, corner in enumerate(corners):
                buffer = (part * t.patches + patch) % t.store_buffers
                if not kernel.waits_for_residual:
                    with when(self.leads):
                        ptx("cp.async.bulk.wait_group.read", unread)
                    do(T.cuda.warpgroup_sync(kernel.warpgroup + 1))
                self._place(part, patch, buffer)
                ptx("fence.proxy.async.shared::cta")
                do(T.cuda.warpgroup_sync(kernel.warpgroup + 1))
                with when(self.leads):
                    place = kernel.place(tile.channel + part * 64, tile.group, corner)
                    ptx(
                        _STORE.format(rank=kernel.rank), T.address_of(kernel.maps["y"]), *place,
                        kernel.results.ptr_to([kernel.warpgroup, buffer, 0, 0]),
                    )  # fmt: skip
                    ptx("cp.async.bulk.commit_group")

    def _load_bias(self, tile: Tile, part: int) -> None:
        """Read the bias of this thread's columns, two at a time."""
        kernel, s = self.kernel, self.kernel.shape
        if kernel.bias is None:
            return
        for j in range(8):
            column = tirx.min(tile.channel + part * 64 + j * 8 + kernel.lane % 4 * 2, s.co_each - 2)
            first = tile.group * s.co_each if kernel.grouped else 0
            T.buffer_store(self.bias, load_pair(element_at(kernel.bias, first + column)), [j])

    def _place(self, part: int, patch: int, buffer: int) -> None:
        """Finish 64 x 64 sums and write them to a buffer, which may hold the residual."""
        kernel, dtype = self.kernel, self.kernel.dtype
        for p in range(4):
            row, piece = self._row_of(p)
            place = kernel.results.ptr_to([kernel.warpgroup, buffer, row, (piece ^ (kernel.lane % 8)) * 8])
            if kernel.epilogue.residual:
                address = T.cuda.cvta_generic_to_shared(place)
                ptx(f"ldmatrix.{self.matrices}", *(self.added[i] for i in range(4)), address)
            for q in range(4):
                at = patch * (self.kernel.tiles.bn // 2) + part * 32 + p * 8 + q * 2
                pairs = [self.added[q]] if kernel.epilogue.residual else []
                pairs += [self.bias[p * 2 + q // 2]] if kernel.bias is not None else []
                low, high = self.sums[at], self.sums[at + 1]
                for pair in pairs:
                    low, high = low + low_of(dtype, pair), high + high_of(dtype, pair)
                activation = kernel.epilogue.activation
                word = pack(dtype, activate(activation, low), activate(activation, high))
                T.buffer_store(self.packed, word, [q])
            ptx(f"stmatrix.{self.matrices}", place, *(self.packed[i] for i in range(4)))

    def _row_of(self, p: int) -> tuple[Any, Any]:
        """Return the row of a buffer, and the piece of 8 elements, that this lane names of the `p`-th four."""
        kernel = self.kernel
        return kernel.warp * 16 + kernel.lane % 16, p * 2 + T.truncdiv(kernel.lane, 16)
