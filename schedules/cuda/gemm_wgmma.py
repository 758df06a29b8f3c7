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

_ALIGNED = 8  # elements: TMA takes rows of a multiple of 16 bytes
_FULL_REUSE = 128 * 256 / (128 + 256)
_TAKEN = 9e10  # bytes a second that one multiprocessor loads at most
_FROM_L2 = 1.6  # times the bandwidth of memory
_PLACES = 0.91  # of the machine: clusters of four blocks and more don't find room everywhere
_MEETING = 1e-6  # of the blocks of a cluster, each
_UNEVEN = 1.08  # times as long, where a tile's columns end inside 64 that are loaded together
_FILL_SECONDS = 2.5e-6  # until the first stage is there, and for what follows the last


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
            Knob("bn", tuple(bn for bn in (64, 128, 192, 224, 256) if bn < 2 * max(n, 64))),
            Knob("bk", (64, 128)),
            Knob("consumers", (1, 2) if m > 64 else (1,)),
            Knob("cluster", (1, 2) if m > 64 else (1,)),
            Knob("split_k", tuple(parts for parts in (1, 2, 4, 8) if parts <= max(1, k // 128))),
            Knob("group", tuple(rows for rows in (1, 4, 8, 16) if rows <= max(1, m // 64))),
            Knob("beside", (1, 2)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        choices = [config for config in self.choices(workload) if config in space]
        return min(choices, key=lambda config: self.estimate(workload, target, config))

    def choices(self, workload: Workload) -> list[Config]:
        """Return what the default is chosen from, by the estimate."""
        return list(_DEFAULTS)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        few, some, many = _DEFAULTS[0 if _is_plain(workload) else 3], _DEFAULTS[5], _DEFAULTS[-1]
        aligned = dict.fromkeys(_rows(workload), _ALIGNED)
        return [
            GenericKernel({"m": (1, 64)}, few, aligned),
            GenericKernel({"m": (65, 1024)}, some, aligned),
            GenericKernel({}, many, aligned),
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each wave of tiles the slower of multiplying and loading."""
        m, n, k = workload.dims("m", "n", "k")
        gpu, tiles = _gpu(target), self.tiles_of(config, target)
        count = tiles_of_c(workload, tiles) * tiles.split_k
        places = tiles.blocks * (_PLACES if tiles.split_k > 2 else 1.0)
        waves = math.ceil(count / places)
        depth = math.ceil(math.ceil(k / tiles.bk) / tiles.split_k) * tiles.bk
        reuse = tiles.bm * tiles.bn / (tiles.bm + tiles.bn)  # of what is loaded; small tiles wait for it
        one = gpu.tensor_flops / tiles.blocks * min(1.0, 1.5 * reuse / _FULL_REUSE)
        multiply = 2 * tiles.bm * tiles.bn * depth / one * (_UNEVEN if tiles.bn % 64 else 1.0)
        rate = min(_TAKEN / tiles.beside, _FROM_L2 * gpu.bandwidth / min(count, tiles.blocks))
        load = 2 * (min(m, tiles.bm) + tiles.bn / tiles.cluster) * depth / rate
        fewest = 2 * _items(workload) * (m * k + k * n + m * n) / gpu.bandwidth
        meeting = _MEETING * tiles.split_k if tiles.split_k > 1 else 0.0
        return max(waves * max(multiply, load), fewest) + _FILL_SECONDS + meeting

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
        and accumulators <= tiles.consumer_registers - _other_registers(tiles, workload)
        and tiles.stages >= 3
        and (tiles.beside == 1 or tiles.consumers == tiles.cluster == 1)
        and tiles.partial_bytes <= tiles.stages * tiles.stage_bytes
        and not (tiles.cluster > 1 and tiles.split_k > 1)
        and -(-tiles.bn // 64) % tiles.cluster == 0
        and tiles.cluster <= rows
        and tiles.split_k <= max(1, k // (2 * tiles.bk))
        and (tiles.split_k == 1 or tiles_of_c(workload, tiles) <= 2 * target.cores)
        and (tiles.group <= max(1, rows // tiles.cluster) or tiles.group == 1)
    )


def _other_registers(tiles: Tiles, workload: Workload) -> int:
    """Return how many registers a thread that multiplies needs beside its sums, in what was compiled."""
    if tiles.consumers < 3:
        return 72
    return 56 if _is_plain(workload) else 104


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
    _config(128, 128, 64, 2, 2, 1, 1),
    _config(128, 224, 64, 2, 2, 1, 1),
    _config(128, 256, 64, 2, 1, 1, 1),
    _config(128, 256, 64, 2, 2, 1, 16),
)
