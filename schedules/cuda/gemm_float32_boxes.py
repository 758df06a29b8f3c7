"""Products of float32 on CUDA cores of Hopper; `kernels.gemm_float32_boxes` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.gemm_mma import product_of, row_dims
from tvmops.schedules.cuda.gemm_simt import SimtGemm
from tvmops.schedules.cuda.kernels.gemm_float32_boxes import DEPTH, BoxKernel, BoxTiles
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

ALIGNED = 4  # elements: the copy engine takes rows of multiples of 16 bytes
_MOST_REGISTERS = 255  # of a thread
_OTHER_REGISTERS = 24
_SCHEDULERS = 4  # of a multiprocessor
_RESERVED = 1024  # bytes of shared memory that the system takes of each block


class Float32Boxes(SimtGemm):
    """Known sizes, whose rows are multiples of 16 bytes; any batch, transposes and epilogue."""

    name = "cuda.gemm_float32_boxes"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if target.gpu is None or target.gpu.code != "sm_90a" or not super().covers(workload, target):
            return False
        if workload.is_generic or workload["dtype"] != "float32":
            return False
        return self.covers_rows(ragged_of(workload))

    def covers_rows(self, ragged: tuple[str, ...]) -> bool:
        """Say whether the template is for products with these factors' rows ragged."""
        return not ragged

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("bm", _within((8, 16, 32, 64, 128, 256), known(workload, "m"))),
            Knob("bn", _within((32, 64, 128, 256), known(workload, "n"))),
            Knob("tm", (4, 8, 16)),
            Knob("tn", (4, 8)),
            Knob("stages", (2, 3, 4, 6, 8)),
            Knob("splits", (1, 2, 4, 8)),
            Knob("beside", (1, 2, 3, 4)),
            Knob("ahead", (1, 0)),
            Knob("chained", (0, 1)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        legal = [config for knobs in _DEFAULTS if (config := Config.of(**knobs)) in space]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def tiles_of(self, config: Config) -> BoxTiles:
        return tiles_of(config)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        product = product_of(super().kernel_workload(workload))
        return BoxKernel(product, tiles_of(config), ragged_of(workload)).module()


def ragged_of(workload: Workload) -> tuple[str, ...]:
    """Return the factors whose rows begin where the copy engine takes none."""
    rows = zip("ab", row_dims(workload))
    return tuple(name for name, dim in rows if workload[dim] != ANY and workload.dims(dim)[0] % ALIGNED)


def tiles_of(config: Config) -> BoxTiles:
    return BoxTiles(bk=DEPTH, **{name: int(value) for name, value in config.items})


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles, steps = tiles_of(config), math.ceil(known(workload, "k") / DEPTH)
    registers = _registers(tiles, workload)
    return (
        32 <= tiles.threads <= 512
        and tiles.grid is not None
        and registers <= _MOST_REGISTERS
        and tiles.beside * tiles.threads * registers <= target.gpu.block_registers
        and tiles.beside * (tiles.shared_bytes + _RESERVED) <= target.gpu.shared_bytes + _RESERVED
        and tiles.splits <= steps
        and (tiles.stages == 2 or tiles.stages <= math.ceil(steps / tiles.splits))
    )


def _within(sizes: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return those that are less than twice as large as they need be, and the two least."""
    return tuple(each for number, each in enumerate(sizes) if number < 2 or each < 2 * size)


def _registers(tiles: BoxTiles, workload: Workload) -> int:
    """Guess the registers of a thread: its sums, and what it multiplies, by four where that lies along k."""
    each = ((tiles.tm, not workload["trans_a"]), (tiles.tn, workload["trans_b"]))
    factors = [own * (4 if along else 1) for own, along in each]
    held = 2 * sum(factors) if tiles.ahead else max(factors)  # the other is read piece by piece
    return tiles.tm * tiles.tn + held + _OTHER_REGISTERS


def _knobs(
    bm: int, bn: int, tm: int, tn: int, stages: int, splits: int, beside: int, ahead: int = 1, chained: int = 0
) -> dict[str, int]:
    return {
        "bm": bm, "bn": bn, "tm": tm, "tn": tn, "stages": stages, "splits": splits, "beside": beside,
        "ahead": ahead, "chained": chained,
    }  # fmt: skip


_DEFAULTS = (_knobs(8, 64, 4, 4, 2, 1, 1),)
