"""Batches of small products of 16-bit types on GPUs with mma.sync; `kernels.gemm_small` says how."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.gemm_mma import MmaGemm, is_chained, product_of, row_dims
from tvmops.schedules.cuda.kernels.gemm_small import SmallKernel, SmallTiles, shared_bytes
from tvmops.schedules.cuda.kernels.gemm_small_wgmma import SmallWgmmaKernel
from tvmops.schedules.cuda.kernels.whole_operand import STEP
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_HOPPER = 90
_LARGEST = 256  # of m, n and k
_LARGEST_TILE = 256
_MOST_WARPS = 16
_MOST_REGISTERS = 255  # of a thread
_REGISTERS, _RESIDENT_WARPS = 65_536, 64  # of a multiprocessor
_RESERVED = 1024  # bytes of shared memory that the system takes of each block
_OTHER_REGISTERS = 40  # of a thread, beside sums
# What the default is chosen from: rows and columns of warps, and the most tiles of a matrix.
_WARPS = (
    (1, 1),
    (2, 1),
    (2, 2),
    (4, 1),
    (4, 2),
    (2, 4),
    (3, 1),
    (3, 3),
    (5, 1),
    (5, 3),
    (7, 1),
    (7, 2),
    (4, 4),
)
_MOST_ROWS_OF_TILES, _MOST_COLUMNS_OF_TILES, _LARGEST_OF_WGMMA = 8, 2, 128

# Of the guess, fitted to what an H100 took for 140 configs of 25 shapes: microseconds.
_COPIES = {8: 1, 4: 2, 2: 4, 1: 3}  # instructions for eight elements
# The same for results of rows of a tile; of whole rows, 2 for odd ones and 1 for others.
_STORES = {8: 1, 4: 2, 2: 4, 1: 6}
_ROUND, _WAIT, _UNASKED, _UNCHAINED, _LATE = 0.98, 0.60, 1.3, 1.1, 0.25
_WARP_COPY, _COPY, _SHIFT, _ASKED, _MOVED = 7.6e-5, 6.5e-5, 3.5e-3, 4e-7, 1.5e-7
_PRODUCT = (6.1e-7, 3.1e-7)  # with mma.sync, with wgmma
_STORE = (2.4e-4, 4.3e-4)  # of a row of a tile, of whole rows


class SmallGemm(MmaGemm):
    """Sizes of up to 256, rows that begin anywhere, transposes, any epilogue."""

    name = "cuda.gemm_small"
    version = 2

    def covers(self, workload: Workload, target: Target) -> bool:
        if not super().covers(workload, target) or workload["batch"] == 1:
            return False
        sizes = [workload[dim] for dim in "mnk"]
        return all(isinstance(size, int) and size <= _LARGEST for size in sizes)

    def space(self, workload: Workload, target: Target) -> Space:
        m, n = (known(workload, dim) for dim in "mn")
        knobs = (
            Knob("bm", _tiles(m)),
            Knob("bn", _tiles(n)),
            Knob("warps_m", tuple(range(1, 9))),
            Knob("warps_n", tuple(range(1, 9))),
            Knob("bk", (64, 128, 256)),  # of k, in a chunk
            Knob("stages", (1, 2, 3, 4)),
            Knob("wgmma", (0, 1) if has_wgmma(target) else (0,)),
            Knob("chained", (0, 1, 2) if is_chained(target) else (0,)),
            Knob("asks", (0, 1) if is_chained(target) else (0,)),
        )
        return Space(self.name, knobs, lambda config: is_small_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        legal = [config for config in self._choices(workload, space) if space.is_legal(config)]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def _choices(self, workload: Workload, space: Space) -> Iterator[Config]:
        """Go through what the default may be."""
        m, n, k = (known(workload, dim) for dim in "mnk")
        values = {knob.name: [int(value) for value in knob.values] for knob in space.knobs}
        chained = int(1 in values["chained"])
        chunks = [(bk, 1) for bk in (64, 128) if bk >= k][:1] or [(64, stages) for stages in (2, 3, 4)]
        for bm, bn in itertools.product(values["bm"], values["bn"]):
            if math.ceil(m / bm) > _MOST_ROWS_OF_TILES or math.ceil(n / bn) > _MOST_COLUMNS_OF_TILES:
                continue
            warps = [(*each, 0) for each in _WARPS] + [(bm // 16, 1, 1)] * (
                1 in values["wgmma"] and bm <= _LARGEST_OF_WGMMA
            )
            for (warps_m, warps_n, wgmma), (bk, stages), asks in itertools.product(
                warps, chunks, values["asks"]
            ):
                yield Config.of(
                    bm=bm, bn=bn, warps_m=warps_m, warps_n=warps_n, bk=bk, stages=stages,
                    wgmma=wgmma, chained=chained, asks=asks,
                )  # fmt: skip

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess: rounds of blocks that each wait, and what the busiest multiprocessor has to do."""
        assert target.gpu is not None
        m, n, k, batch = (known(workload, dim) for dim in ("m", "n", "k", "batch"))
        tiles, wgmma = small_tiles_of(config, workload), config.number("wgmma")
        blocks = batch * math.ceil(m / tiles.bm) * math.ceil(n / tiles.bn)
        nbytes = shared_bytes(product_of(workload), tiles, kernel_of(config)) + _RESERVED
        registers = (_registers(tiles, not wgmma) + _OTHER_REGISTERS) * 32 * tiles.warps
        places = (target.gpu.shared_bytes // nbytes, _RESIDENT_WARPS // tiles.warps, _REGISTERS // registers)
        beside = max(1, min(places))
        busiest = math.ceil(blocks / target.cores)
        rounds = math.ceil(busiest / beside)
        share = busiest if blocks < target.cores * beside else blocks / target.cores
        rows, columns = min(tiles.bm, m), min(tiles.bn, n)
        chunks = math.ceil(k / tiles.bk)
        waits = chunks - tiles.stages + 1 if tiles.stages < chunks else 1
        copies = k / 8 * (rows * _COPIES[tiles.a_vector] + columns * _COPIES[tiles.b_vector])
        is_flat, vector = tiles.is_flat(n), next(v for v in self.vectors if n % v == 0)
        stores = rows * columns / 8 * (1 + n % 2 if is_flat else _STORES[vector])
        asked = _ASKED * blocks * rows * k if config["asks"] else _UNASKED
        late = (_UNCHAINED, 0.0, _LATE)[config.number("chained")]
        shifted = wgmma * k / 8 * (rows * (tiles.a_vector == 1) + columns * (tiles.b_vector == 1))
        moved = 2 * batch * (m * k + k * n + m * n) * _MOVED
        busy = copies * _COPY + tiles.bm * tiles.bn * k * _PRODUCT[wgmma] + stores * _STORE[is_flat]
        alone = _ROUND + waits * _WAIT + (copies * _WARP_COPY + shifted * _SHIFT) / tiles.warps
        return 1e-6 * (rounds * alone + share * busy + asked + moved + late)

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(batch=ANY)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        product = product_of(self.kernel_workload(workload))
        tiles = small_tiles_of(config, workload)
        return kernel_of(config)(product, tiles, config.number("chained"), bool(config["asks"])).module()


def kernel_of(config: Config) -> type[SmallKernel]:
    return SmallWgmmaKernel if config["wgmma"] else SmallKernel


def has_wgmma(target: Target) -> bool:
    return target.gpu is not None and target.gpu.compute == _HOPPER


def small_tiles_of(config: Config, workload: Workload) -> SmallTiles:
    """Return the tiles of a config; copies are as wide as rows allow."""
    a, b = (next(v for v in MmaGemm.vectors if known(workload, d) % v == 0) for d in row_dims(workload))
    bm, bn, warps_m, warps_n = (int(config[name]) for name in ("bm", "bn", "warps_m", "warps_n"))
    bk = min(config.number("bk"), -(-known(workload, "k") // STEP) * STEP)
    return SmallTiles(bm, bn, warps_m, warps_n, config.number("stages"), a, b, bk=bk)


def is_small_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles, chunks = small_tiles_of(config, workload), math.ceil(known(workload, "k") / config.number("bk"))
    return (
        tiles.bm % (16 * tiles.warps_m) == 0
        and tiles.bn % (16 * tiles.warps_n) == 0
        and tiles.warps <= _MOST_WARPS
        and _fits_chunks(config, chunks, known(workload, "k"))
        and _registers(tiles, not config["wgmma"]) + _OTHER_REGISTERS
        <= min(_MOST_REGISTERS, _REGISTERS // (32 * tiles.warps))
        and (not config["wgmma"] or _suits_wgmma(tiles))
        and shared_bytes(product_of(workload), tiles, kernel_of(config)) <= target.gpu.shared_bytes
    )


def _suits_wgmma(tiles: SmallTiles) -> bool:
    rows = (tiles.warps_m * 16, tiles.warps_n * tiles.bn)
    return tiles.bm % 64 == 0 and rows == (tiles.bm, tiles.bn)


def _fits_chunks(config: Config, chunks: int, k: int) -> bool:
    """Say whether no stage is left over, and a single chunk is of the smallest size that holds k."""
    bk, stages = config.number("bk"), config.number("stages")
    return stages == 1 and (bk == 64 or 2 * k > bk) if chunks == 1 else 2 <= stages <= chunks


def _registers(tiles: SmallTiles, factors: bool) -> int:
    """Registers of a thread for sums, and for factors unless wgmma reads them."""
    return tiles.wm * tiles.wn // 32 + (tiles.wm // 4 + tiles.wn // 4) * factors


def _tiles(size: int) -> tuple[int, ...]:
    """Return the smallest tiles of multiples of 16, 32 and 64 of which one, two, ... cover `size`."""
    covers = {math.ceil(size / count / unit) * unit for count in range(1, 17) for unit in (16, 32, 64)}
    return tuple(sorted(tile for tile in covers if tile <= _LARGEST_TILE))
