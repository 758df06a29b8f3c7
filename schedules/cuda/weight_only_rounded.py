"""Many rows of x by integer weights that are scaled in registers; `kernels.weight_only_wgmma` says how."""

from __future__ import annotations

import math
from dataclasses import replace

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.kernels.weight_only_wgmma import WeightOnlyWgmmaKernel
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.weight_only_product import BK, product_of
from tvmops.schedules.cuda.weight_only_tiles import WeightOnlyWgmmaTiles
from tvmops.schedules.cuda.weight_only_wgmma import WeightOnlyWgmma, fits, tiles_of
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.signatures.matmul_weight_only import groups_of
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_FEWEST_ROWS = 512  # of x: with fewer, exact integers take no longer
_LEAST_RESULTS = 1 << 21  # of fewer, blocks had better share k
_MOST_ROWS = 256  # of a tile
_LEAST_DEPTH = 256  # of k: of fewer products the bound leaves no room for weights that are rounded
_GENERIC = {"m": 4096, "n": 8192, "k": _LEAST_DEPTH}  # of fewer waves, those of higher tiles leave more idle
_ANY_SIZE = 2**31 - 1

# Of the guess, fitted to what an H100 took for 38 configs of 19 shapes.
_START_SECONDS = 3.0e-6
_STEP_SECONDS, _ROW_SECONDS = 0.16e-6, 4.7e-9  # of a stage, and more for each row of x
_END_SECONDS = 1.0e-6  # of a tile that others follow


class WeightOnlyRounded(WeightOnlyWgmma):
    """`WeightOnlyWgmma` of weights that are scaled in registers: all of k is one sum, and tiles are higher.

    Weights and scales are rounded to the dtype of x, as if the matrix were stored in it.
    """

    name = "cuda.weight_only_rounded"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not super().covers(workload, target):
            return False
        k, groups = workload["k"], groups_of(workload)
        if workload["dtype"] != "float16" or groups.bits != 4 or groups.group % BK:
            return False  # it computes others as well, but nobody has measured them
        return k == ANY or workload.dims("k")[0] >= _LEAST_DEPTH

    def comes_last(self, workload: Workload, target: Target) -> bool:
        if ANY in (workload["m"], workload["n"]):
            return False
        m, n = workload.dims("m", "n")
        return m < _FEWEST_ROWS or m * n < _LEAST_RESULTS

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("rows", _heights(known(workload, "m"))),
            Knob("groups", (2,)),
            Knob("stages", (2, 3, 4, 5, 6)),
            Knob("splits", (1,)),
            Knob("beside", (1,)),
            Knob("chained", (0, 1, 2)),
        )
        return Space(self.name, knobs, lambda config: fits(_rounded(config, target), workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        configs = [
            _config(rows, stages)
            for rows in reversed(_heights(known(workload, "m")))
            for stages in (6, 5, 4, 3, 2)
        ]
        space = self.space(workload, target)
        legal = [config for config in configs if config in space]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        ranges = {dim: (least, _ANY_SIZE) for dim, least in _GENERIC.items()}
        return [GenericKernel(ranges, _config(256, 3), {"k": PIECE})]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each wave of tiles those of its stages."""
        m, n, k = (known(workload, name) for name in "mnk")
        tiles = _rounded(config, target)
        waves = math.ceil(math.ceil(m / tiles.rows) * math.ceil(n / tiles.bn) / target.cores)
        step = _STEP_SECONDS + _ROW_SECONDS * tiles.rows
        return _START_SECONDS + waves * math.ceil(k / BK) * step + (waves - 1) * _END_SECONDS

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        product = product_of(self.kernel_workload(workload))
        return WeightOnlyWgmmaKernel(product, _rounded(config, target)).module()


def _rounded(config: Config, target: Target) -> WeightOnlyWgmmaTiles:
    return replace(tiles_of(config, target), rounded=1)


def _heights(m: int) -> tuple[int, ...]:
    """Return rows of a tile: even parts of all, and what is never far from the best."""
    even = {-(-m // parts // 8) * 8 for parts in range(1, m // 96 + 1)}
    return tuple(sorted({rows for rows in even if rows <= _MOST_ROWS} | {128, 192, 256}))


def _config(rows: int, stages: int) -> Config:
    return Config.of(rows=rows, groups=2, stages=stages, splits=1, beside=1, chained=2)
