"""Products of 16-bit types whose rows begin anywhere, on Hopper; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

from dataclasses import replace

from tvmops.schedules.cuda.gemm_tiles import Tiles
from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm, form_of, is_legal, is_ragged
from tvmops.schedules.cuda.kernels.gemm_wgmma import Form
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_PRODUCER_REGISTERS = 72  # for the coordinates of eight views
_KNOBS = ("ragged_a", "ragged_b", "ragged_c")
_BY_K = 64  # of a stage, where rows of b are ragged


class RaggedGemm(WgmmaGemm):
    name = "cuda.gemm_ragged"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul" or target.gpu is None or target.gpu.code != "sm_90a":
            return False
        if (
            workload["dtype"] not in ("float16", "bfloat16")
            or workload["packed"] != PLAIN
            or workload["trans_a"]
        ):
            return False
        if ANY in (workload["n"], workload["k"]):
            return workload["batch"] == 1
        ragged_a, ragged_b, ragged_c = _ragged(workload)
        operands_fit = not (ragged_a and workload["trans_b"])
        batch_fits = workload["batch"] == 1 or not (ragged_a or ragged_b)
        return operands_fit and batch_fits and (ragged_a or ragged_b or ragged_c)

    def space(self, workload: Workload, target: Target) -> Space:
        """Return the space of aligned products, and which rows are ragged: no choice."""
        knobs = super().space(workload, target).knobs
        fixed = tuple(Knob(name, (int(is_so),)) for name, is_so in zip(_KNOBS, _ragged(workload)))
        return Space(self.name, (*knobs, *fixed), lambda config: _is_legal(config, workload, target))

    def choices(self, workload: Workload) -> list[Config]:
        return [_with(config, *_ragged(workload)) for config in _DEFAULTS]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        few, many = _DEFAULTS[0], _DEFAULTS[-1]
        by_k = bool(workload["trans_b"])
        multiples = {"k": 8} if by_k else {}
        return [
            GenericKernel(ranges, _with(config, not by_k, not by_k, True), multiples)
            for ranges, config in (({"m": (1, 64)}, few), ({}, many))
        ]

    def tiles_of(self, config: Config, target: Target) -> Tiles:
        return _tiles_of(config, target)

    def form_of(self, workload: Workload, config: Config) -> Form:
        a, b, c = (bool(config[name]) for name in _KNOBS)
        return replace(form_of(workload), ragged_a=a, ragged_b=b, ragged_c=c)


def _ragged(workload: Workload) -> tuple[bool, bool, bool]:
    """Say whether rows of a, of b and of c begin anywhere."""
    n_is, k_is = is_ragged(workload, "n"), is_ragged(workload, "k")
    return k_is, n_is and not workload["trans_b"], n_is


def _tiles_of(config: Config, target: Target) -> Tiles:
    return replace(Tiles.of(_aligned(config), target), producer_registers=_PRODUCER_REGISTERS)


def _aligned(config: Config) -> Config:
    return Config(tuple((name, value) for name, value in config.items if name not in _KNOBS))


def _is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    tiles = _tiles_of(config, target)
    accumulators = tiles.blocks_a_group * tiles.bn // 2
    return (
        is_legal(_aligned(config), workload, target)
        and accumulators <= tiles.consumer_registers - 72
        and (not config["ragged_b"] or (tiles.bk == _BY_K and tiles.blocks_a_group == 1))
    )


def _with(config: Config, *ragged: bool) -> Config:
    return Config((*config.items, *zip(_KNOBS, map(int, ragged))))


# Rows and columns of a tile, consumers, parts of k; smallest tiles first.
_DEFAULTS = tuple(
    Config.of(bm=bm, bn=bn, bk=_BY_K, consumers=consumers, cluster=1, split_k=parts, group=1, beside=1)
    for bm, bn, consumers, parts in (
        (64, 64, 1, 4), (64, 64, 1, 1), (64, 128, 1, 2), (64, 128, 1, 1), (128, 128, 2, 1), (128, 256, 2, 1),
    )
)  # fmt: skip
