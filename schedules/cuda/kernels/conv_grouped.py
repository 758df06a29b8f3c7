"""The kernel of `GroupedConv`: few channels a group, by mma.sync from a tile that many groups share.

What a tile of the output sees of the image, of as many channels as fill whole lines of memory, comes
to shared memory once. Pixels lie there an odd number of 16-byte pieces apart, so that ldmatrix meets
no bank twice, and what a place of the kernel sees is a constant away from what the first sees. Where
columns are strided, those that neighbouring pixels of the output see lie side by side. Groups of
which a piece holds several are multiplied together, with zeros among the weights.

A warp computes 16 pixels of several rows, one above the other. What they see of a line of the image
is loaded once for all rows that see it, if the weights fit a thread's registers, where they stay;
ldmatrix is what such products wait for. Blocks stay, too, and take tile after tile, whose copies run
under the products of another. Results leave as whole lines. NCHW images and their weights are copied
before, with channels last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import IRModule, tirx
from tvm.tirx.lang.alloc_pool import SMEMPool
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.grouped_tiles import PIECE_BYTES, ROWS, GroupedLayout, GroupedTiles, Step
from tvmops.schedules.cuda.kernels.channels_last import BESIDE, Turned, turn
from tvmops.schedules.cuda.kernels.conv_arrays import conv_module
from tvmops.schedules.cuda.kernels.conv_grouped_image import Image
from tvmops.schedules.cuda.kernels.conv_grouped_results import NOWHERE, PlanesResults, Results
from tvmops.schedules.cuda.kernels.conv_planes import Copies
from tvmops.schedules.cuda.words import (
    PROGRAMMATIC_LAUNCH,
    PTX_TYPES,
    Scalar,
    do,
    of_now,
    ptx,
    shared_address,
    wait_for_kernels_before,
    when,
)


class GroupedKernel:
    """`main(x, w, [bias], [residual], y)`; NCHW images and their weights are copied to a workspace first."""

    def __init__(self, shape: ConvShape, dtype: str, tiles: GroupedTiles) -> None:
        self.shape, self.dtype, self.tiles = shape, dtype, tiles
        self.layout = GroupedLayout(shape, tiles)
        self.copies = None if shape.channels_last else copies_of(shape)

    def module(self) -> IRModule:
        beside, planes = self.tiles.beside, self.copies is not None
        module = conv_module(self.shape, self.dtype, self._begin, self._body, beside, workspace=planes)
        if self.tiles.early:
            module["main"] = module["main"].with_attr(*PROGRAMMATIC_LAUNCH)
        return module

    def _begin(self, arrays: dict[str, Any]) -> None:
        self.arrays = arrays
        if self.copies is None:
            return
        assert self.copies.weights is not None
        blocks = BESIDE * self.tiles.multiprocessors
        images, weights = (arrays["x"], self.copies.image), (arrays["w"], self.copies.weights)
        turn(arrays["workspace"], images, weights, blocks)
        self.arrays = arrays | self.copies.places(arrays["workspace"])

    def _body(self) -> None:
        s, t, layout = self.shape, self.tiles, self.layout
        tiles = _over(s.n, t.tile_n) * _over(s.oh, t.tile_h) * _over(s.ow, t.tile_w)
        places = tirx.min(tiles, layout.places) if not isinstance(tiles, int) else min(tiles, layout.places)
        block = T.cta_id([places * layout.blocks_deep])
        self.warp, self.lane = T.warp_id([t.warps]), T.lane_id([32])
        self.thread = Scalar(self.warp * 32 + self.lane)()
        self._allocate()
        self.bundle = Scalar(T.truncmod(block, layout.blocks_deep))()
        self.across = Scalar(_over(s.ow, t.tile_w))()
        self.down = Scalar(_over(s.oh, t.tile_h))()
        self.count = Scalar(self.across * self.down * _over(s.n, t.tile_n))()
        self._prepare()
        image, results = Image(self), Results(self) if s.channels_last else PlanesResults(self)
        if t.early:
            wait_for_kernels_before()
        first = Scalar(T.truncdiv(block, layout.blocks_deep))()
        step = Scalar(places)()
        if layout.groups == 1:
            image.copy_weights()
        for stage in range(t.stages):
            with when(first + stage * step < self.count):
                image.fetch(stage, *self._corner(first + stage * step))
            ptx("cp.async.commit_group")
        if layout.groups > 1:  # through registers, while the image is on its way
            image.spread_weights()
        image.stage_bias()
        if layout.kept:
            ptx("cp.async.wait_group", t.stages - 1)
            do(T.cuda.cta_sync())
            for chunk in range(0, layout.chunks, 4):
                self._load_weights(self.job, chunk)
        self._walk(first, step, image, results)

    def _allocate(self) -> None:
        """Divide the shared memory."""
        t, layout = self.tiles, self.layout
        pool = SMEMPool()
        self.weights = pool.alloc((layout.weight_bytes // 2,), self.dtype, align=16)
        self.begins = pool.alloc((t.columns * ROWS,), "uint32", align=16)
        self.ends = pool.alloc((t.columns * ROWS,), "int32", align=16)
        self.bias = pool.alloc((layout.outputs,), "float32", align=16)
        self.stages = pool.alloc((t.stages * layout.stage_bytes // 2,), self.dtype, align=16)
        self.results = pool.alloc((layout.result_bytes // 2,), self.dtype, align=16)
        pool.commit()

    def _walk(self, first: Any, step: Any, image: Image, results: Results) -> None:
        """Compute each `step`-th tile, from the first on."""
        t = self.tiles
        index, use = Scalar(first), Scalar(0)
        with T.While(index() < self.count):
            corner = self._corner(index())
            ptx("cp.async.wait_group", t.stages - 1)
            do(T.cuda.cta_sync())  # and the last results have left
            self._multiply(use(), results, corner)
            do(T.cuda.cta_sync())
            ahead = Scalar(index() + t.stages * step)()
            with when(ahead < self.count):
                image.fetch(use(), *self._corner(ahead))
            ptx("cp.async.commit_group")
            results.leave(*corner)
            index.set(index() + step)
            if t.stages > 1:
                use.set(tirx.Select(use() == t.stages - 1, 0, use() + 1))
        ptx("cp.async.wait_group", 0)

    def _corner(self, index: Any) -> tuple[Any, Any, Any]:
        """Return the image, the row and the column of the output at which a tile begins."""
        t = self.tiles
        row = Scalar(T.truncdiv(index, self.across))()
        image = Scalar(T.truncdiv(row, self.down))()
        y, x = (row - image * self.down) * t.tile_h, (index - row * self.across) * t.tile_w
        return Scalar(image * t.tile_n)(), Scalar(y)(), Scalar(x)()

    def each_line(self, lines: int, do_line: Callable[[Any, Any], None]) -> None:
        """Do something for each line of a tile, of which a warp has its share, and for this lane."""
        warps = self.tiles.warps
        lane = of_now(self.lane)
        with T.serial(-(-lines // warps)) as step:
            line = Scalar(step * warps + self.warp)()
            with when(line < lines):
                do_line(line, lane)

    def each_piece(self, lane: Any, columns: int, pieces: int, do_piece: Callable[[Any, Any], None]) -> None:
        """Do something for each piece of a line of pixels, of which a lane has its share."""
        for at in range(0, columns * pieces, 32):
            if 32 % pieces == 0:  # always the same piece of a pixel
                column, piece = at // pieces + T.truncdiv(lane, pieces), T.truncmod(lane, pieces)
            else:
                column = Scalar(T.truncdiv(at + lane, pieces))()
                piece = Scalar(at + lane - column * pieces)()
            if at + 32 <= columns * pieces:
                do_piece(column, piece)
                continue
            with when(at + lane < columns * pieces):
                do_piece(column, piece)

    def _prepare(self) -> None:
        """Say what this thread computes, and where windows begin."""
        s, t, layout = self.shape, self.tiles, self.layout
        columns, self.steps = t.bn // 8, layout.steps()
        self.aparts = sorted({step.apart for step in self.steps if step.chunks == 2}) or [0]
        self.sums = T.alloc_local((t.parts * columns * 4,), "float32")
        self.a_parts = T.alloc_local((4,), "uint32")
        self.b_parts = T.alloc_local((layout.kept or columns * 4,), "uint32")
        self.starts = T.alloc_local((len(self.aparts),), "uint32")
        self.share = Scalar(T.truncdiv(self.warp, t.warps_n))()
        self.job = Scalar(T.truncmod(self.warp, t.warps_n))()
        self.above = [
            Scalar(tirx.Select(self.lane < 16, T.uint32(0), T.uint32(apart)), "uint32")()
            for apart in self.aparts
        ]
        self.first_weights, self.first_stage = (
            Scalar(shared_address(each, 0), "uint32")() for each in (self.weights, self.stages)
        )
        threads = t.warps * 32
        with T.serial(-(-t.columns * ROWS // threads)) as step:
            at = Scalar(step * threads + self.thread)()
            with when(at < t.columns * ROWS):
                image = Scalar(T.truncdiv(at, t.tile_w))()
                x = Scalar(at - image * t.tile_w)()
                within = image < t.tile_n
                begin = (image * (layout.h * layout.line) + x) * layout.pitch
                T.buffer_store(self.begins, T.Cast("uint32", tirx.Select(within, begin, 0)), [at])
                T.buffer_store(
                    self.ends, tirx.Select(within, image * (t.tile_h * t.tile_w) + x, NOWHERE), [at]
                )

    def _multiply(self, stage: Any, results: Results, corner: tuple[Any, Any, Any]) -> None:
        """Compute a tile: each warp its pixels and its channels."""
        s, t, layout = self.shape, self.tiles, self.layout
        shares = t.tile_h // t.parts
        row_bytes = s.down.stride * layout.line * layout.pitch
        with T.serial(layout.jobs // t.warps_n) as number:
            job = Scalar(number * t.warps_n + self.job)()
            unit = T.truncdiv(job, layout.co // t.bn)
            inside = stage * layout.stage_bytes + unit * (layout.pieces * PIECE_BYTES)
            tile = Scalar(self.first_stage + T.Cast("uint32", inside), "uint32")()
            with T.serial(t.rounds) as turn:
                share = Scalar(turn * t.warps_m + self.share)()
                column = Scalar(T.truncdiv(share, shares))()
                y = Scalar((share - column * shares) * t.parts)()
                with when(column < t.columns):
                    begin = (
                        tile + self.begins[column * ROWS + self.lane % 16] + T.Cast("uint32", y * row_bytes)
                    )
                    begin = Scalar(begin, "uint32")()
                    for i, above in enumerate(self.above):
                        T.buffer_store(self.starts, begin + above, [i])
                    self._begin_sums(job)
                    self._add(job)
                    results.place(column, y, job * t.bn, corner)

    def _begin_sums(self, job: Any) -> None:
        """Let sums begin as the bias."""
        t = self.tiles
        for j in range(t.bn // 8):
            channel = job * t.bn + j * 8 + self.lane % 4 * 2
            bias = [Scalar(self._bias(channel + i), "float32")() for i in (0, 1)]
            for part in range(t.parts):
                for i in range(4):
                    T.buffer_store(self.sums, bias[i % 2], [(part * (t.bn // 8) + j) * 4 + i])

    def _add(self, job: Any) -> None:
        """Add up the products of a warp's pixels and channels.

        Where all weights are in registers, what a row of the image shows is loaded once for all rows of
        the output that see it.
        """
        s, t, layout = self.shape, self.tiles, self.layout
        rows = range(s.down.size)
        places = [
            (part * s.down.stride + r * s.down.dilation, part, r) for part in range(t.parts) for r in rows
        ]
        lines = sorted({line for line, _, _ in places})
        if layout.kept:
            for line in lines:
                for number, step in enumerate(self.steps):
                    self._load_image(line, step)
                    for part, r in ((part, r) for at, part, r in places if at == line):
                        self._mma_all(part, r * layout.padded + number * 2, step.chunks)
            return
        for r in rows:
            for number, step in enumerate(self.steps):
                chunk = r * layout.padded + number * 2
                if chunk % 4 == 0 or number == 0:
                    self._load_weights(job, chunk // 4 * 4)
                for line, part, _ in (place for place in places if place[2] == r):
                    self._load_image(line, step)
                    self._mma_all(part, chunk, step.chunks)

    def _load_image(self, line: int, step: Step) -> None:
        """Load what a step sees of a line of the image."""
        at = self.aparts.index(step.apart) if step.chunks == 2 else 0
        offset = line * (self.layout.line * self.layout.pitch) + step.offset
        self._load(self.a_parts, 0, self.starts[at] + T.uint32(offset), step.chunks * 2)

    def _mma_all(self, part: int, chunk: int, chunks: int) -> None:
        columns = self.tiles.bn // 8
        for j in range(columns):
            kept = self.layout.kept
            b = j * (kept // columns) + chunk if kept else j * 4 + chunk % 4
            self._mma((part * columns + j) * 4, b, chunks)

    def _bias(self, channel: Any) -> Any:
        return self.bias[channel] if "bias" in self.arrays else T.float32(0)

    def _load_weights(self, job: Any, chunk: int) -> None:
        """Load the weights of a warp's channels, of 32 along k."""
        t, layout = self.tiles, self.layout
        columns = t.bn // 8
        row, piece = job * t.bn + self.lane % 8, T.truncdiv(self.lane, 8)
        first = row * layout.weight_pitch + piece * PIECE_BYTES
        address = Scalar(self.first_weights + T.Cast("uint32", first), "uint32")()
        for j in range(columns):
            at = j * (layout.kept // columns) + chunk if layout.kept else j * 4
            offset = j * 8 * layout.weight_pitch + chunk * PIECE_BYTES
            self._load(self.b_parts, at, address + T.uint32(offset), 4)

    def _load(self, registers: Any, at: int, address: Any, count: int) -> None:
        to = (registers[at + i] for i in range(count))
        ptx(f"ldmatrix.sync.aligned.m8n8.x{count}.shared.b16", *to, address)

    def _mma(self, at: int, b: int, chunks: int) -> None:
        kind = PTX_TYPES[self.dtype]
        own = [self.sums[at + i] for i in range(4)]
        ptx(
            f"mma.sync.aligned.m16n8k{8 * chunks}.row.col.f32.{kind}.{kind}.f32",
            *own, *(self.a_parts[i] for i in range(2 * chunks)),
            *(self.b_parts[b + i] for i in range(chunks)), *own,
        )  # fmt: skip


def copies_of(shape: ConvShape) -> Copies:
    """Return the copies of NCHW images and their weights."""
    s, taps = shape, (shape.down.size, shape.across.size)
    image = Turned(s.n, s.ci, s.h, s.w, s.h, s.w)
    return Copies(image, Turned(s.co, s.ci_each, *taps, *taps, offset=image.end))


def _over(extent: Any, size: int) -> Any:
    if isinstance(extent, int):
        return -(-extent // size)
    return T.truncdiv(extent + (size - 1), size)
