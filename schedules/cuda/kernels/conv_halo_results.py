"""How results of `conv_halo` leave: through shared memory, a warp's own pixels, 16 bytes at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cuda.activation import activate
from tvmops.schedules.cuda.halo_tiles import ROWS, SIDE, HaloLayout, HaloTiles
from tvmops.schedules.cuda.kernels.conv_narrow_results import MOVE_PIECE
from tvmops.schedules.cuda.pairs import element_at, high_of, load_pair, low_of
from tvmops.schedules.cuda.pieces import PIECE, copy_piece
from tvmops.schedules.cuda.words import Scalar, c_call, do, of_now, pack, ptx, shared_address, when

if TYPE_CHECKING:
    from tvmops.schedules.cuda.kernels.conv_halo import HaloKernel
    from tvmops.schedules.cuda.kernels.conv_halo_streamed import StreamedKernel

_MATRICES = "sync.aligned.m8n8.x4.shared.b16"


class Results:
    """The results of one warpgroup, whose sums a thread holds as wgmma leaves them."""

    def __init__(self, kernel: HaloKernel | StreamedKernel, sums: Any, first_patch: Any) -> None:
        self.kernel, self.sums, self.first_patch = kernel, sums, first_patch
        self.packed = T.alloc_local((4,), "uint32")
        self.added = T.alloc_local((4,), "uint32")
        self.inside, self.channel = (
            Scalar(0),
            Scalar(0),
        )  # of a group's output channels, and of all, the first
        self.bias = T.alloc_local((kernel.tiles.bn // 8,), "uint32")

    def begin(self, group: Any, channel: Any) -> None:
        """Say of which output channels the results are, from `channel` of `group` on."""
        kernel = self.kernel
        self.inside.set(channel)
        self.channel.set(group * kernel.shape.co_each + channel)
        if "bias" in kernel.arrays:
            for j in range(kernel.tiles.bn // 8):
                column = tirx.min(self.channel() + j * 8 + kernel.lane % 4 * 2, kernel.shape.co - 2)
                T.buffer_store(self.bias, load_pair(element_at(kernel.arrays["bias"], column)), [j])

    def fetch_residual(self, x: Any, y: Any, image: Any) -> None:
        """Begin to copy the residual of this warp's pixels to where their results will lie."""
        if not self.kernel.shape.epilogue.residual:
            return
        kernel = self.kernel

        def fetch(within: Any, pixel: Any, channel: Any, row: Any, piece: Any) -> None:
            to = shared_address(kernel.results, kernel.warpgroup, row, piece)
            valid, width = tirx.Select(within, PIECE, 0), kernel.shape.co
            do(copy_piece(PIECE, to, kernel.arrays["residual"].data, pixel, width, channel, valid))

        do(T.cuda.warp_sync())  # the last results have been read
        self._each_piece(x, y, image, fetch)
        ptx("cp.async.commit_group")

    def store(self, x: Any, y: Any, image: Any) -> None:
        kernel, layout = self.kernel, self.kernel.layout

        def leave(within: Any, pixel: Any, channel: Any, row: Any, piece: Any) -> None:
            with when(within):
                to = element_at(kernel.arrays["y"], pixel * kernel.shape.co + channel)
                source = kernel.results.ptr_to([kernel.warpgroup, row, piece])
                do(c_call("void", "move_piece", to, source, source=MOVE_PIECE))

        if kernel.shape.epilogue.residual:
            ptx("cp.async.wait_group", 0)
        do(T.cuda.warp_sync())
        for patch in range(layout.patches):
            for columns in range(kernel.tiles.bn // 16):
                self._place(patch, columns)
        do(T.cuda.warp_sync())
        self._each_piece(x, y, image, leave)

    def _place(self, patch: int, columns: int) -> None:
        """Finish 16 pixels of a warp, of 16 channels, and write them to where the residual may lie."""
        kernel, dtype = self.kernel, self.kernel.dtype
        row = patch * ROWS + kernel.warp * 16 + kernel.lane % 16
        column = columns * 16 + T.truncdiv(kernel.lane, 16) * PIECE
        place = kernel.results.ptr_to([kernel.warpgroup, row, column])
        epilogue = kernel.shape.epilogue
        if epilogue.residual:
            address = T.cuda.cvta_generic_to_shared(place)
            ptx(f"ldmatrix.{_MATRICES}", *(self.added[i] for i in range(4)), address)
        for q in range(4):
            at = patch * (kernel.tiles.bn // 2) + columns * 8 + q * 2
            pairs = [self.added[q]] if epilogue.residual else []
            pairs += [self.bias[columns * 2 + q // 2]] if "bias" in kernel.arrays else []
            low, high = self.sums[at], self.sums[at + 1]
            for pair in pairs:
                low, high = low + low_of(dtype, pair), high + high_of(dtype, pair)
            activation = epilogue.activation
            word = pack(dtype, activate(activation, low), activate(activation, high))
            T.buffer_store(self.packed, word, [q])
        ptx(f"stmatrix.{_MATRICES}", place, *(self.packed[i] for i in range(4)))

    def _each_piece(
        self, x: Any, y: Any, image: Any, do_piece: Callable[[Any, Any, Any, Any, Any], None]
    ) -> None:
        """Do something for each piece of this warp's pixels, of which a lane has its share.

        It is told whether the piece is one of the output, its pixel and channel there, and its row and
        first element among the results.
        """
        kernel, s, t, layout = self.kernel, self.kernel.shape, self.kernel.tiles, self.kernel.layout
        pieces = t.bn // PIECE
        for patch in range(layout.patches):
            for at in range(0, 16 * pieces, 32):
                number = at + of_now(kernel.lane)
                inside = Scalar(kernel.warp * 16 + T.truncdiv(number, pieces))()
                piece = Scalar(T.truncmod(number, pieces) * PIECE)()
                row, column = pixel_of(t, layout, self.first_patch + patch, inside)
                own = (y + row < s.oh, row < t.tile_h, x + column < s.ow, column < t.tile_w)
                within = tirx.all(*own, self.inside() + piece < s.co_each)
                pixel = (image * s.oh + y + row) * s.ow + x + column
                do_piece(within, pixel, self.channel() + piece, patch * ROWS + inside, piece)


def pixel_of(tiles: HaloTiles, layout: HaloLayout, patch: Any, inside: Any) -> tuple[Any, Any]:
    """Return the row and the column of a pixel of a patch in the tile."""
    if not tiles.is_boxed:
        place = Scalar(patch * ROWS + inside)()
        row = Scalar(T.truncdiv(place, layout.w))()
        return row, Scalar(place - row * layout.w)()
    abreast = tiles.tile_w // SIDE
    first = patch // abreast if isinstance(patch, int) else Scalar(T.truncdiv(patch, abreast))()
    row, column = T.truncdiv(inside, SIDE), T.truncmod(inside, SIDE)
    return Scalar(first * SIDE + row)(), Scalar((patch - first * abreast) * SIDE + column)()
