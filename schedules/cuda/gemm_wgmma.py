"""Matrix products of 16-bit types on Hopper, with batch and epilogue; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

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

_MOST_SUMS = 128  # of a thread: what follows them needs registers, too
_ALIGNED = 8  # elements: TMA takes rows of a multiple of 16 bytes
# Of the guess, fitted to what an H100 took: bytes a second of one multiprocessor,
_TAKEN = 1.05e11  # that come from the L2,
_FROM_L2 = 6.1e10  # that the L2 has for each when all ask,
_SHARED = 2.2e11  # and of its shared memory, which the copy engine fills and wgmma reads.
_JOINED = 0.55  # of what neighbours ask for, that the L2 is asked for: it answers both at once
_APART = 1.1  # times as long memory takes, if rows of tiles read b far from each other
_PLACES = 0.91  # of the machine: clusters of four blocks and more don't find room everywhere
_MEETING_SECONDS = 0.5e-6  # of blocks that share a sum, and
_MEETING_RATE = 1e10  # bytes a second of the sums that one of them reads of others
_UNEVEN = 1.08  # times as long, where a tile's columns end inside 64 that are loaded together
_FILL_SECONDS = 2.5e-6  # until the first stage is there, and for what follows the last
_NEXT_SECONDS = 0.7e-6  # until the stores of a tile let the next begin
_CHAINED_SECONDS = 0.9e-6  # gained by an early launch


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
            Knob("bm", tuple(bm for bm in (64, 128, 256) if bm < 2 * max(m, 64))),
            Knob("bn", tuple(bn for bn in (64, 128, 160, 192, 224, 256) if bn < 2 * max(n, 64))),
            Knob("bk", (64, 128)),
            Knob("consumers", (1, 2) if m > 64 else (1,)),
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
        (m,) = workload.dims("m")
        few = [one for one in _FEW_ROWS if math.ceil(m / one.number("bm")) == one["group"]]
        return [*few, *_DEFAULTS]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        few, some, many = _DEFAULTS[0 if _is_plain(workload) else 3], _DEFAULTS[5], _DEFAULTS[-1]
        aligned = dict.fromkeys(_rows(workload), _ALIGNED)
        return [
            GenericKernel({"m": (1, 64)}, few, aligned),
            GenericKernel({"m": (65, 1024)}, some, aligned),
            GenericKernel({}, many, aligned),
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each wave of tiles the slowest of multiplying and the factors' roads."""
        m, n, k = workload.dims("m", "n", "k")
        gpu, tiles = _gpu(target), self.tiles_of(config, target)
        count = tiles_of_c(workload, tiles) * tiles.split_k
        places = tiles.blocks * (_PLACES if tiles.cluster * tiles.split_k > 2 else 1.0)
        waves = math.ceil(count / places)
        steps = math.ceil(math.ceil(k / tiles.bk) / tiles.split_k)
        busy = tiles.beside if count > tiles.multiprocessors else 1
        seconds = waves * steps * busy * self._step(workload, target, tiles) + (waves - 1) * _NEXT_SECONDS
        fewest = 2 * _items(workload) * (m * k + k * n + m * n) / (0.9 * gpu.bandwidth)
        if tiles.cluster == tiles.group == 1 and m > tiles.bm:
            fewest *= _APART
        if tiles.split_k > 1:
            others = 4 * tiles.bm * tiles.bn * (1 - 1 / tiles.split_k)
            seconds += _MEETING_SECONDS + others / _MEETING_RATE
        return max(seconds, fewest) + _FILL_SECONDS - (_CHAINED_SECONDS if tiles.chained else 0.0)

    def _step(self, workload: Workload, target: Target, tiles: Tiles) -> float:
        """Guess the seconds of a step along k, of a block that has its multiprocessor to itself."""
        (m,) = workload.dims("m")
        item = 2 * tiles.bk
        a, b = min(m, tiles.bm) * item, -(-tiles.bn // 64) * 64 * item
        read = tiles.bm * item + tiles.bm // 64 * tiles.bn * item  # by wgmma: b once for 64 rows
        asked = a + b / tiles.cluster
        if tiles.cluster == tiles.split_k == 1 and (tiles.neighbours > 1 or not tiles.chained):
            asked = _JOINED * (a + b) if tiles.group > 1 else a / 2 + b
        multiply = 2 * tiles.bm * tiles.bn * tiles.bk / (_gpu(target).tensor_flops / tiles.multiprocessors)
        roads = ((a + b) / _TAKEN, asked / _FROM_L2, (a + b + read) / _SHARED)
        return max(multiply, *roads) * (_UNEVEN if tiles.bn % 64 else 1.0)

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
    accumulators = tiles.blocks_a_group * tiles.bn // 2
    return (
        tiles.bm % (64 * tiles.consumers) == 0
        and accumulators <= min(tiles.consumer_registers - 72, _MOST_SUMS)
        and tiles.stages >= 3
        and (tiles.beside == 1 or tiles.consumers == tiles.cluster == 1)
        and tiles.partial_bytes <= tiles.stages * tiles.stage_bytes
        and not (tiles.cluster > 1 and tiles.split_k > 1)
        and tiles.cluster <= rows
        and tiles.split_k <= max(1, k // (2 * tiles.bk))
        and (tiles.split_k == 1 or tiles_of_c(workload, tiles) <= 2 * target.cores)
        and (tiles.group <= max(1, rows // tiles.cluster) or tiles.group == 1)
    )


def is_ragged(workload: Workload, dim: str) -> bool:
    """Say whether rows of `dim` elements begin where TMA can't."""
    (size,) = workload.dims(dim)
    return size % _ALIGNED != 0


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


# Smallest tiles first.
_DEFAULTS = (
    _config(64, 64, 128, 1, 1, 4, 1),
    _config(64, 64, 64, 1, 1, 4, 1, 2),
    _config(64, 64, 64, 1, 1, 2, 1, 2),
    _config(64, 64, 128, 1, 1, 1, 1),
    _config(64, 128, 128, 1, 1, 1, 1),
    _config(128, 128, 64, 2, 1, 1, 1),
    _config(128, 128, 64, 2, 1, 2, 1),
    _config(64, 64, 64, 1, 1, 2, 1),
    _config(128, 64, 64, 1, 1, 2, 1),
    _config(64, 128, 64, 1, 1, 4, 1),
    _config(64, 128, 64, 1, 2, 1, 1),
    _config(64, 64, 64, 1, 2, 1, 1),
    _config(128, 128, 64, 2, 2, 1, 1),
    _config(128, 224, 64, 2, 2, 1, 1),
    _config(128, 256, 64, 2, 1, 1, 1),
    _config(128, 256, 64, 2, 2, 1, 16),
)
# For a few rows of tiles, which are walked together.
_FEW_ROWS = (
    _config(64, 64, 64, 1, 1, 1, 2),
    _config(128, 64, 64, 1, 1, 1, 2),
    _config(64, 128, 64, 1, 1, 1, 4),
    _config(128, 128, 64, 2, 1, 1, 2),
    _config(128, 128, 64, 2, 1, 1, 4),
    _config(128, 256, 64, 2, 1, 1, 2),
)
