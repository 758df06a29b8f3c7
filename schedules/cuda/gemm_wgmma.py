"""Matrix products of 16-bit types on Hopper, with batch and epilogue; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

import itertools
import math

from tvm import IRModule

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.kernels.gemm_arrays import Form
from tvmops.schedules.cuda.kernels.gemm_wgmma import gemm
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.matmul import SAME
from tvmops.space import Config, Knob, Space
from tvmops.targets import Gpu, Target
from tvmops.workloads import Workload
from tvmops.workloads import workload as make_workload

_ALIGNED = 8  # elements: TMA takes rows of a multiple of 16 bytes
_WIDTHS = tuple(range(64, 257, 16))  # of tiles
# Rows of tiles, and the warpgroups that multiply them.
_STACKS = ((64, 1), (128, 1), (128, 2), (192, 3), (256, 2))

# Of the guess, fitted to what an H100 and an H200 took for 1309 configs of 169 shapes.
_RATE = 6.82e12  # operations a second of one multiprocessor, of tiles of 256 columns
_NARROW = 0.016  # longer, for each time that a tile is narrower
# Bytes a second of one multiprocessor: those it takes, and those that the L2 has for it.
_TAKEN, _FROM_L2 = 1.20e11, 1.12e11
_JOINED = 0.39  # of what neighbours both ask for, that the L2 is asked for: it answers them at once
_TWO_LINES = 1.13  # more, for boxes of a b that lies across k where they begin within a line of 128 bytes
_READ = 3.2e11  # bytes a second of shared memory that wgmma reads: all columns for each 64 rows
_THREE = 1.03  # times as long, if three warpgroups multiply
_SHARPNESS = 4  # of the bend where one limit takes over from another
_BANDWIDTH = 0.93  # of that which the target states
# Bytes that the L2 keeps of operands; the part of larger ones that each wave loads again.
_KEPT, _AGAIN = 3e7, 0.92
_APART = 1.13  # times as long memory takes, if tiles that read the same of b do so far from each other
_FINISH_SECONDS = 0.67e-6  # of 128 x 128 results of one warpgroup
_WAVE_SECONDS = 0.72e-6
_START_SECONDS = 2.36e-6  # until the first stage is there, and for what follows the last
# Gained by an early launch; lost by one where blocks share sums.
_CHAINED_SECONDS, _LATE_SECONDS = 0.47e-6, 0.23e-6
_PLACES = 0.91  # of the machine: clusters of four blocks and more don't find room everywhere
_MEETING_SECONDS, _EXCHANGE_SECONDS = 0.58e-6, 1.44e-6  # of the blocks of a cluster, each; of 128 x 128 sums


class WgmmaGemm(Template):
    name = "cuda.gemm_wgmma"
    version = 2

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul" or target.gpu is None or target.gpu.code != "sm_90a":
            return False
        return (
            workload["dtype"] in ("float16", "bfloat16")
            and workload["packed"] == PLAIN
            and all(workload[dim] == ANY or not is_ragged(workload, dim) for dim in _rows(workload))
        )

    def space(self, workload: Workload, target: Target) -> Space:
        m, n, k = workload.dims("m", "n", "k")
        knobs = (
            Knob("bm", tuple(bm for bm in (64, 128, 192, 256) if bm < 2 * max(m, 64))),
            Knob("bn", tuple(bn for bn in _WIDTHS if bn < 2 * max(n, 64))),
            Knob("bk", (64, 128)),
            Knob("consumers", (1, 2, 3) if m > 96 else (1, 2) if m > 64 else (1,)),
            Knob("cluster", (1, 2) if m > 64 else (1,)),
            Knob("split_k", tuple(parts for parts in (1, 2, 4, 8) if parts <= max(1, k // 128))),
            Knob("group", tuple(rows for rows in (1, 2, 3, 4, 5, 8, 16) if rows <= math.ceil(m / 64))),
            Knob("beside", (1, 2)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        choices = [config for config in self.choices(workload) if config in space]
        return min(choices, key=lambda config: self.estimate(workload, target, config))

    def choices(self, workload: Workload) -> list[Config]:
        """Return what the default is chosen from, by the estimate."""
        return list(DEFAULTS)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        few = _SPLIT if _is_plain(workload) else _ALONE
        aligned = dict.fromkeys(_rows(workload), _ALIGNED)
        return [
            GenericKernel({"m": (1, 64)}, few, aligned),
            GenericKernel({"m": (65, 1024)}, _MIDDLE, aligned),
            GenericKernel({}, _LARGE, aligned),
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each wave of tiles what limits it most, or those of memory for all."""
        tiles = self.tiles_of(config, target)
        waves = self.waves(workload, tiles)
        finish = _FINISH_SECONDS * tiles.bm * tiles.bn / tiles.consumers / 128**2
        blocks = waves * (self._tile(workload, tiles) + finish) + max(0.0, waves - 1) * _WAVE_SECONDS
        stream = self._bytes(workload, tiles, waves) / (_BANDWIDTH * _gpu(target).bandwidth)
        start = _START_SECONDS
        if tiles.split_k > 1:
            start += self.meeting(tiles)
        if tiles.chained:
            start += _LATE_SECONDS if tiles.split_k > 1 and not tiles.sends else -_CHAINED_SECONDS
        return _bent(blocks, stream) + start

    def waves(self, workload: Workload, tiles: Tiles) -> float:
        """Return how many tiles the busiest block takes, for the estimate."""
        places = tiles.blocks * (_PLACES if tiles.split_k > 2 or tiles.sharers > 2 else 1.0)
        return math.ceil(clusters_of(workload, tiles) * tiles.sharers * tiles.split_k / places)

    def meeting(self, tiles: Tiles) -> float:
        """Guess the seconds until the blocks of a cluster have added up a sum."""
        return _MEETING_SECONDS * tiles.split_k + _EXCHANGE_SECONDS * tiles.bm * tiles.bn / 128**2

    def _tile(self, workload: Workload, tiles: Tiles) -> float:
        """Guess the seconds of a block's share of a tile."""
        m, n, k = workload.dims("m", "n", "k")
        depth = math.ceil(math.ceil(k / tiles.bk) / tiles.split_k) * tiles.bk
        rows, columns = float(min(tiles.bm, m)), float(min(tiles.bn, n))
        if not workload["trans_b"]:
            within = sum(i * tiles.bn % 64 > 0 for i in range(4)) / 4  # of the tiles
            columns = -(-tiles.bn // 64) * 64 * (1 + _TWO_LINES * within)
        joins = tiles.sharers == tiles.split_k == 1 and tiles.streams != 1
        join_rows, join_columns = joins and tiles.group == 1 and not tiles.chained, joins and tiles.group > 1
        asked = rows * (_JOINED if join_rows else 1 / tiles.abreast)
        asked += columns * (_JOINED if join_columns else 1 / tiles.cluster)
        busy = min(1.0, clusters_of(workload, tiles) * tiles.sharers * tiles.split_k / tiles.blocks)
        narrow = 1 + _NARROW * (256 / tiles.bn - 1)
        slow = _THREE if tiles.consumers > 2 else 1.0
        reads = tiles.bm / 64 * ((64 * tiles.consumers if tiles.aside else 64) + tiles.bn)
        return (
            slow
            * tiles.beside
            * _bent(
                2 * tiles.bm * tiles.bn * depth * narrow / _RATE,
                2 * reads * depth / _READ,
                2 * (rows + columns) * depth / _TAKEN,
                2 * asked * depth * busy / _FROM_L2,
            )
        )

    def _bytes(self, workload: Workload, tiles: Tiles, waves: float) -> float:
        """Return the bytes of all arrays, or what waves load of operands that the L2 does not keep."""
        m, n, k = workload.dims("m", "n", "k")
        once = 2.0 * _items(workload) * (m * k + k * n + m * n)
        rows = min(tiles.group * tiles.cluster, math.ceil(m / tiles.bm))
        columns = min(math.ceil(tiles.blocks / tiles.split_k / rows), math.ceil(n / tiles.bn))
        again = 2.0 * waves * (rows * tiles.bm + columns * tiles.bn) * k * _AGAIN
        once *= self.apart(workload, tiles)
        return max(once, again) if 2 * (m * k + k * n) > _KEPT else once

    def apart(self, workload: Workload, tiles: Tiles) -> float:
        """Return how many times as long memory takes where tiles of the same columns lie far apart."""
        (m,) = workload.dims("m")
        return _APART if tiles.cluster * tiles.group < min(math.ceil(m / tiles.bm), 4) else 1.0

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        m, k = workload.dims("m", "k")
        tiles = self.tiles_of(config, target)
        count = tiles_of_c(workload, tiles) * tiles.split_k
        return {
            **super().features(workload, target, config),
            "waves": count / tiles.blocks,
            "last_wave": count % tiles.blocks / tiles.blocks,
            "steps": k / tiles.bk / tiles.split_k,
            "stages": tiles.stages,
            "tile": tiles.bm * tiles.bn,
            "filled": m / (math.ceil(m / tiles.bm) * tiles.bm),
            "estimate": math.log(self.estimate(workload, target, config)),
        }

    def kernel_workload(self, workload: Workload) -> Workload:
        generic = workload.generic()
        return generic if workload["batch"] == 1 else generic.replace(batch=ANY)

    def tiles_of(self, config: Config, target: Target) -> Tiles:
        return Tiles.of(config, target)

    def form_of(self, workload: Workload, config: Config) -> Form:
        return form_of(workload)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return IRModule({"main": gemm(self.form_of(workload, config), self.tiles_of(config, target))})


def launched_early(config: Config) -> Config:
    """Return `config`, launched while the kernel before it ends."""
    return Config.of(**config.as_dict(), chained=1)


def form_of(workload: Workload) -> Form:
    """Return what `workload` multiplies."""
    dtype = str(workload["dtype"])
    bias = dtype if workload["bias_dtype"] == SAME else str(workload["bias_dtype"])
    return Form(
        dtype=dtype,
        trans_a=bool(workload["trans_a"]),
        trans_b=bool(workload["trans_b"]),
        batched=workload["batch"] != 1,
        shared=str(workload["shared"]),
        bias=bias if workload["bias"] else "",
        residual=bool(workload["residual"]),
        activation=str(workload["activation"]),
        out_dtype="" if workload["out_dtype"] == SAME else str(workload["out_dtype"]),
    )


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    tiles = Tiles.of(config, target)
    m, k = workload.dims("m", "k")
    rows = math.ceil(m / tiles.bm)
    return (
        tiles.bm % (64 if tiles.aside else 64 * tiles.consumers) == 0
        and tiles.sums <= _most_sums(tiles, workload)
        and tiles.stages >= 3
        and (tiles.beside == 1 or tiles.consumers == tiles.sharers == 1)
        and tiles.partial_bytes <= tiles.stages * tiles.stage_bytes
        and not (tiles.sharers > 1 and tiles.split_k > 1)
        and tiles.cluster <= rows
        and tiles.split_k <= max(1, k // (2 * tiles.bk))
        and (tiles.split_k == 1 or tiles_of_c(workload, tiles) <= 2 * target.cores)
        and (tiles.group <= max(1, rows // tiles.cluster) or tiles.group == 1)
    )


def _most_sums(tiles: Tiles, workload: Workload) -> int:
    """Return how many sums a thread may have: what follows them needs registers, too, as compiling showed."""
    plain = _is_plain(workload)
    if tiles.consumers > 2:
        return tiles.consumer_registers - (56 if plain else 104)
    one_of_abreast = tiles.consumers == 1 and tiles.abreast > 1  # others spill so many
    room = tiles.consumer_registers - (64 if one_of_abreast else 72)
    return room if plain else min(room, 128)


def is_ragged(workload: Workload, dim: str) -> bool:
    """Say whether rows of `dim` elements begin where TMA can't."""
    (size,) = workload.dims(dim)
    return size % _ALIGNED != 0


def clusters_of(workload: Workload, tiles: Tiles) -> int:
    """Return how many tiles clusters take together, of all matrices."""
    m, n = workload.dims("m", "n")
    rows, columns = tiles.bm * tiles.cluster, tiles.bn * tiles.abreast
    return _items(workload) * math.ceil(m / rows) * math.ceil(n / columns)


def _bent(*limits: float) -> float:
    """Return the largest of `limits`, somewhat more where others are near."""
    return float(sum(limit**_SHARPNESS for limit in limits) ** (1 / _SHARPNESS))


def _is_plain(workload: Workload) -> bool:
    """Say whether the sums are the result: sums that are split were verified there alone."""
    known = {name: workload[name] for name in ("m", "n", "k", "dtype", "trans_a", "trans_b")}
    return workload == make_workload("matmul", **known)


def _items(workload: Workload) -> int:
    (batch,) = workload.dims("batch")
    return batch


def tiles_of_c(workload: Workload, tiles: Tiles) -> int:
    """Return how many tiles the result has, of all matrices."""
    m, n = workload.dims("m", "n")
    return _items(workload) * math.ceil(m / tiles.bm) * math.ceil(n / tiles.bn)


def _rows(workload: Workload) -> tuple[str, ...]:
    """Return the dimensions along which the rows of an array lie."""
    return ("m", "n", "k") if workload["trans_a"] else ("n", "k")


def _gpu(target: Target) -> Gpu:
    assert target.gpu is not None
    return target.gpu


def _config(
    bm: int, bn: int, bk: int, consumers: int, cluster: int, split_k: int, group: int, beside: int = 1
) -> Config:
    return Config.of(
        bm=bm,
        bn=bn,
        bk=bk,
        consumers=consumers,
        cluster=cluster,
        split_k=split_k,
        group=group,
        beside=beside,
    )


_FEW_TILES = (
    _config(64, 64, 64, 1, 1, 4, 1, 2),
    _config(64, 64, 64, 1, 1, 2, 1, 2),
    _config(64, 64, 64, 1, 1, 2, 1),
    _config(64, 64, 128, 1, 1, 2, 1),
    _config(64, 64, 128, 1, 1, 1, 1),
    _config(64, 128, 128, 1, 1, 1, 1),
    _config(64, 128, 64, 1, 1, 4, 1),
    _config(128, 64, 64, 1, 1, 2, 1),
)
_ALONE, _SPLIT = _config(64, 64, 128, 1, 1, 1, 1), _config(64, 64, 128, 1, 1, 4, 1)
_MIDDLE, _LARGE = _config(128, 128, 64, 2, 1, 1, 1), _config(128, 256, 64, 2, 2, 1, 16)
# What a default is chosen from; smallest tiles first.
DEFAULTS = (
    _SPLIT,
    *_FEW_TILES,
    *(
        _config(bm, bn, 64, consumers, cluster, 1, group)
        for (bm, consumers), bn, cluster, group in itertools.product(_STACKS, _WIDTHS, (1, 2), (1, 2, 4, 8))
    ),
)
