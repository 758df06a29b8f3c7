"""Many rows of x by integer weights on Hopper; `kernels.weight_only_wgmma` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.kernels.weight_only_wgmma import WeightOnlyWgmmaKernel
from tvmops.schedules.cuda.pieces import PIECE
from tvmops.schedules.cuda.weight_only_product import BK, STEP, product_of
from tvmops.schedules.cuda.weight_only_tiles import WeightOnlyWgmmaTiles, shared_bytes
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_FEWEST_ROWS = 17  # of x: fewer are a stream
_MOST_ROWS = 128  # of a tile: sums of a group and of all take as many registers each
_OTHER_REGISTERS = 72  # of a thread: 32 for fragments
_RESERVED = 1024  # bytes of shared memory that the system takes of each block

# Of the guess, fitted to what an H100 took for 77 configs of 14 shapes.
_START_SECONDS = 2.0e-6
_MEETING_SECONDS = 2.0e-6  # of the blocks of a cluster
_STEP_SECONDS = {1: 0.196e-6, 2: 0.33e-6}  # of a stage, by warpgroups, and more for each row of x
_ROW_SECONDS = {1: 2.4e-9, 2: 3.5e-9}
_APART_SECONDS = (
    0.05e-6  # more, for each warpgroup, where neighbours are at different k, for which the L2 answers twice
)
_BESIDE = 2.4  # stages of one, that two blocks of a multiprocessor take for one each
_END_SECONDS = 1.0e-6  # of a tile that others follow
_PLACES = 0.9  # of the machine: clusters of 4 and more don't find room everywhere


class WeightOnlyWgmma(Template):
    """float16 or bfloat16 x by 4-bit or 8-bit weights, rows that begin at multiples of 16 bytes."""

    name = "cuda.weight_only_wgmma"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul_weight_only" or target.gpu is None or target.gpu.code != "sm_90a":
            return False
        m, k, group = workload["m"], workload["k"], workload["group"]
        return (
            workload["dtype"] in ("float16", "bfloat16")
            and isinstance(group, int)
            and (group in (STEP, 2 * STEP) or group % BK == 0)
            and (m == ANY or (isinstance(m, int) and m >= _FEWEST_ROWS))
            and (k == ANY or (isinstance(k, int) and k % PIECE == 0))
        )

    def space(self, workload: Workload, target: Target) -> Space:
        k = known(workload, "k")
        knobs = (
            Knob("rows", _heights(known(workload, "m"))),
            Knob("groups", (1, 2)),
            Knob("stages", (2, 3, 4, 5, 6, 8)),
            Knob("splits", tuple(splits for splits in (1, 2, 4, 8) if splits <= max(1, k // BK))),
            Knob("beside", (1, 2)),
            Knob("chained", (0, 1, 2)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        configs = [
            _config(rows, groups, stages, splits, beside)
            for rows in _heights(known(workload, "m"))
            for groups in (2, 1)
            for splits in (1, 2, 4, 8)
            for beside in (1, 2)
            for stages in (6, 5, 4, 3, 2)
        ]
        legal = [config for config in configs if is_legal(config, workload, target)]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return [
            GenericKernel({"m": (first, last)}, config, {"k": PIECE})
            for first, last, config in _GENERIC
            if is_legal(config, workload, target)
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each wave of tiles those of its stages, or those of memory for all."""
        assert target.gpu is not None
        m, n, k = (known(workload, name) for name in "mnk")
        tiles, layout = tiles_of(config, target), product_of(workload).groups
        blocks = math.ceil(m / tiles.rows) * math.ceil(n / tiles.bn) * tiles.splits
        places = int(target.cores * tiles.beside * (_PLACES if tiles.splits >= 4 else 1.0))
        waves = math.ceil(blocks / places)
        step = _STEP_SECONDS[tiles.groups] + _ROW_SECONDS[tiles.groups] * tiles.rows
        meeting = 0.0
        if tiles.splits > 1:
            step, meeting = step + _APART_SECONDS * tiles.groups, _MEETING_SECONDS
        if min(blocks, places) > target.cores:
            step *= _BESIDE
        work = waves * (math.ceil(k / BK / tiles.splits) * step + meeting) + (waves - 1) * _END_SECONDS
        nbytes = n * k * layout.bits / 8 * layout.rows * layout.step / layout.group
        return max(work, nbytes / target.gpu.bandwidth) + _START_SECONDS

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(m=ANY, n=ANY, k=ANY, x_bits="24")  # x is multiplied as it is

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        product = product_of(self.kernel_workload(workload))
        return WeightOnlyWgmmaKernel(product, tiles_of(config, target)).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    return fits(tiles_of(config, target), workload, target)


def fits(tiles: WeightOnlyWgmmaTiles, workload: Workload, target: Target) -> bool:
    """Say whether tiles find room, and steps for all that share them."""
    assert target.gpu is not None
    k = known(workload, "k")
    steps = -(-k // BK)
    room = (target.gpu.shared_bytes + _RESERVED) // tiles.beside - _RESERVED
    return (
        shared_bytes(product_of(workload), tiles) + _RESERVED <= room
        and tiles.sums + _OTHER_REGISTERS <= tiles.consumer_registers
        and tiles.splits <= steps
        and tiles.stages <= max(2, -(-steps // tiles.splits))
    )


def tiles_of(config: Config, target: Target) -> WeightOnlyWgmmaTiles:
    knobs = {name: int(value) for name, value in config.items}
    return WeightOnlyWgmmaTiles(**knobs, multiprocessors=target.cores)


def _config(rows: int, groups: int, stages: int, splits: int, beside: int = 1, chained: int = 2) -> Config:
    return Config.of(
        rows=rows, groups=groups, stages=stages, splits=splits, beside=beside, chained=chained
    )  # fmt: skip


# Of shapes that are not known, by rows of x: what is never far from the best, whatever n and k are.
_GENERIC = (
    (9, 32, _config(32, 1, 6, 1)),
    (33, 64, _config(64, 1, 6, 1)),
    (65, 128, _config(128, 1, 4, 1)),
    (129, 2**31 - 1, _config(128, 2, 4, 1)),
)


def _heights(m: int) -> tuple[int, ...]:
    """Return rows of a tile: all, if they are few, or even parts of them."""
    even = {-(-m // parts // 8) * 8 for parts in range(1, 9)}
    return tuple(sorted({rows for rows in even if rows <= _MOST_ROWS} | ({64, 96, 128} if m > 64 else set())))
