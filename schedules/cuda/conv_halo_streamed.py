"""Convolutions of many channels of 16-bit types on Hopper, NHWC; `kernels.conv_halo_streamed` says how."""

from __future__ import annotations

import itertools
import math

from tvm import IRModule

from tvmops.ops import op_of
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_halo import (
    MOST_BOX,
    HaloConv,
    depths_for,
    output_of,
    seconds,
    seconds_without,
    tiles_for,
)
from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.halo_tiles import ROWS, StreamedLayout, StreamedTiles
from tvmops.schedules.cuda.kernels.conv_halo_streamed import StreamedKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_WIDTHS = (64, 96, 128, 160, 192, 256)
_MOST_TAPS = 25  # whose products are unrolled
_OTHER_REGISTERS, _END_REGISTERS = 88, 64  # the latter for what comes after a sum
_CLOCK = 1.75e9
_WAITING = 48  # cycles of a tap in which a warpgroup does not multiply
_ROW_SECONDS, _TAKEN = 7.3e-10, 2.9e11  # of a row that a multiprocessor copies, and its bytes a second
_PLACES = 0.85  # of the machine: large clusters don't find room everywhere
_L2 = 7.8e12  # bytes a second that the L2 answers
_STORED = 3.4e10  # bytes a second of results that one multiprocessor finishes
_FILL_SECONDS = 2.9e-6
_MEETING = 1.4e-6  # of the blocks of a cluster
_BETTER = 0.96
_RESIDENT = HaloConv()


class StreamedHaloConv(HaloConv):
    name = "cuda.conv_halo_streamed"
    version = 1

    def comes_last(self, workload: Workload, target: Target) -> bool:
        """Say whether `conv_halo` can keep the weights, or `conv_wgmma` is faster by a guess."""
        is_kept = seconds(_RESIDENT, workload, target) < math.inf
        own, usual = seconds(self, workload, target), seconds_without(workload, target)
        return is_kept or not own < _BETTER * usual

    def space(self, workload: Workload, target: Target) -> Space:
        heights, widths = (tuple(sorted({tile[axis] for tile in tiles_for(workload)})) for axis in range(2))
        knobs = (
            Knob("tile_h", heights),
            Knob("tile_w", widths),
            Knob("consumers", (1, 2, 3)),
            Knob("bn", _WIDTHS),
            Knob("depth", depths_for(workload)),
            Knob("beside", (1, 2)),
            Knob("split_k", (1, 2, 3, 4, 5, 6)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def choices(self, workload: Workload, target: Target) -> list[Config]:
        found = []
        for (tile_h, tile_w), consumers, bn, depth, split_k in itertools.product(
            tiles_for(workload), (2, 1), _WIDTHS, depths_for(workload), (1, 2)
        ):
            config = Config.of(
                tile_h=tile_h,
                tile_w=tile_w,
                consumers=consumers,
                bn=bn,
                depth=depth,
                beside=1,
                split_k=split_k,
            )
            if is_legal(config, workload, target):
                found.append(config)
        return found

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each wave of tiles the slower of multiplying and moving, and its end."""
        assert target.gpu is not None
        tiles = tiles_of(config, target)
        layout = StreamedLayout(ConvShape.of(workload), tiles)
        (oh, ow), n = output_of(workload), known(workload, "n")
        count = layout.count(n, oh, ow) * layout.jobs * tiles.split_k
        waves = math.ceil(count / (tiles.blocks * (_PLACES if tiles.split_k > 2 else 1.0)))
        taps, chunks = len(layout.taps), math.ceil(layout.chunks / tiles.split_k)
        patch = 2 * tiles.bn * tiles.depth / 64  # cycles of a tap's products
        multiply = taps * max(patch * layout.patches + _WAITING, patch * layout.all_patches) / _CLOCK
        nbytes = layout.loaded_bytes + taps * layout.weight_stage_bytes
        load = nbytes / tiles.row_bytes * _ROW_SECONDS + nbytes / _TAKEN
        asked = nbytes * min(count, tiles.blocks) / _L2
        results = 2 * ROWS * layout.all_patches * tiles.bn
        end = results / _STORED
        meeting = _MEETING + results / _STORED if tiles.split_k > 1 else 0.0
        fewest = op_of(workload).nbytes(workload) / (0.79 * target.gpu.bandwidth)
        return max(waves * (chunks * max(multiply, load, asked) + end), fewest) + meeting + _FILL_SECONDS

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        shape = ConvShape.of(self.kernel_workload(workload))
        return StreamedKernel(shape, str(workload["dtype"]), tiles_of(config, target)).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    tiles = tiles_of(config, target)
    co, groups = workload.dims("co", "groups")
    if (tiles.tile_h, tiles.tile_w) not in tiles_for(workload) or tiles.bn >= max(co // groups, 16) + 64:
        return False
    layout = StreamedLayout(ConvShape.of(workload), tiles)
    (oh, ow), n = output_of(workload), known(workload, "n")
    count = layout.count(n, oh, ow) * layout.jobs
    plain = not workload["residual"] and workload["activation"] in ("none", "relu", "relu6")
    others = _OTHER_REGISTERS + (0 if plain else _END_REGISTERS)
    return (
        len(layout.taps) <= _MOST_TAPS
        and layout.patches * tiles.bn // 2 <= tiles.consumer_registers - others
        and max(layout.h * layout.down.stride, layout.w * layout.across.stride) <= MOST_BOX
        and layout.weight_stages >= 3
        and layout.partial_bytes <= layout.ring_bytes
        and tiles.split_k <= layout.chunks
        and (tiles.split_k <= 5 or layout.patches * tiles.bn <= 192)  # of others' sums a thread holds 8 each
        and (tiles.split_k == 1 or (tiles.beside == 1 and count * tiles.split_k <= 2 * tiles.blocks))
    )


def tiles_of(config: Config, target: Target) -> StreamedTiles:
    return StreamedTiles.of(config, target)
