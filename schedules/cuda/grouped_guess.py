"""What `GroupedConv` guesses without measuring: the seconds of tiles, and tiles that are worth a guess.

The guess is fitted to 107 configs of 25 convolutions on an H100; of 140 its median error is 6%.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from tvmops.schedules.cuda.grouped_tiles import PIECE, ROWS, GroupedLayout, GroupedTiles
from tvmops.targets import Gpu

_CLOCK = 1.7e9
_LOAD, _MULTIPLY = 2.7, 1.0  # cycles of a multiprocessor for each instruction of a warp
# Cycles of a block from one tile to the next: where it waits for its image, of pieces that a warp copies one
# after the other, and of products.
_ALONE, _COPY, _STEP = 300, 90, 17
_WEIGHTS = 70  # bytes a cycle
_RATE = 0.94  # of the memory's
_LINE, _PART_OF_LINE = 64, 1.1  # channels of a line; how much longer the memory takes where lines are shared
_MEMORY_OVERLAP = 1.33  # how little it adds
_START_SECONDS = 2.9e-6

_MOST_PIXELS = 450  # of a tile
_FULL = 0.8  # of tiles within the output, at least
_FEWEST_WARPS, _MOST_WARPS = 4, 8
_WIDEST = 64  # channels of a warp at once
_NARROWEST, _BROADEST = 32, 128  # channels of a block, which are a multiple of the first if they may


def seconds(
    layout: GroupedLayout, tiles: GroupedTiles, count: int, nbytes: int, gpu: Gpu, cores: int
) -> float:
    """Guess the time of `count` tiles of each stretch of channels, that move `nbytes` in all."""
    places = min(count, layout.places)
    beside = max(1.0, places * layout.blocks_deep / cores)
    columns, steps, rows = tiles.bn // PIECE, layout.padded // 2, layout.down.size
    runs = layout.jobs * tiles.rounds * tiles.warps_m
    products = steps * rows * tiles.parts
    seen = (tiles.parts - 1) * layout.down.stride + rows if layout.kept else tiles.parts * rows
    loads = runs * (steps * seen + (0 if layout.kept else columns * math.ceil(layout.chunks / 4)))
    moves = [
        math.ceil(tiles.tile_n * rows / tiles.warps) * math.ceil(columns * pieces / 32)
        for rows, columns, pieces in (
            (layout.h, layout.w, tiles.units * layout.pieces),
            (tiles.tile_h, tiles.tile_w, layout.outputs // PIECE),
        )
    ]
    shared = _LOAD * loads + _MULTIPLY * runs * products * columns
    way = _ALONE * (tiles.stages == 1) + _COPY * sum(moves)
    way += _STEP * layout.jobs // tiles.warps_n * tiles.rounds * steps * rows
    cycles = math.ceil(count / places) * (beside * shared + way) + beside * layout.weight_bytes / _WEIGHTS
    within, memory = cycles / _CLOCK, nbytes / (_RATE * gpu.bandwidth)
    if layout.outputs % _LINE:
        memory *= _PART_OF_LINE
    joined = (within**_MEMORY_OVERLAP + memory**_MEMORY_OVERLAP) ** (1 / _MEMORY_OVERLAP)
    return float(joined) + _START_SECONDS


def worthwhile(
    knobs: Mapping[str, Sequence[int]], output: tuple[int, int], unit: int
) -> Iterator[dict[str, int]]:
    """Yield knobs of tiles with much work for each warp, and few idle, but for those that say how many fit.

    Parameters
    ----------
    output
        Its rows and columns.
    unit
        Output channels of a unit.
    """
    oh, ow = output
    sizes = itertools.product(knobs["tile_n"], knobs["tile_h"], knobs["tile_w"])
    tiles = [
        (n, h, w)
        for n, h, w in sizes
        if n * h * w <= _MOST_PIXELS
        and (n == 1 or (h, w) == output)
        and _filled(oh, h) * _filled(ow, w) >= _FULL
    ]
    fitting = [units for units in knobs["units"] if units * unit <= max(_BROADEST, unit)]
    fitting = [units for units in fitting if units * unit % _NARROWEST == 0] or fitting[-2:]
    for units, bn in itertools.product(fitting, knobs["bn"]):
        if bn > _WIDEST:
            continue
        shares = [count for count in knobs["warps_n"] if units * unit // bn % count == 0][-2:]
        for (n, h, w), warps_n, warps_m in itertools.product(tiles, shares, knobs["warps_m"]):
            if _FEWEST_WARPS <= warps_n * warps_m <= _MOST_WARPS:
                for parts, stages in itertools.product(
                    _parts(n * w, h, warps_m, knobs["parts"]), knobs["stages"]
                ):
                    yield {
                        "tile_n": n, "tile_h": h, "tile_w": w, "units": units, "bn": bn, "parts": parts,
                        "warps_m": warps_m, "warps_n": warps_n, "stages": stages,
                    }  # fmt: skip


def _parts(width: int, rows: int, warps_m: int, choices: Sequence[int]) -> list[int]:
    """Return how many rows a warp may compute at once such that none is idle; nothing if pixels are few."""
    if width < _FULL * math.ceil(width / ROWS) * ROWS and width > ROWS // 2:
        return []
    columns = math.ceil(width / ROWS)
    fitting = [parts for parts in choices if rows % parts == 0 and columns * rows // parts % warps_m == 0]
    return fitting[-2:]


def _filled(extent: int, size: int) -> float:
    """Return what of the tiles of `size` lies within `extent`."""
    return extent / (math.ceil(extent / size) * size)
