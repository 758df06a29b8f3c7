"""Products with integer weights on GPUs with mma.sync; `kernels.weight_only` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.kernels.column_sums import ROWS
from tvmops.schedules.cuda.kernels.weight_only import (
    COLUMNS,
    WeightOnlyKernel,
    WeightOnlyTiles,
    shared_bytes,
)
from tvmops.schedules.cuda.weight_only_product import BK, STEP, WeightOnlyProduct, product_of
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_AMPERE = 80  # mma.sync of 16 bits with cp.async
_MOST_WARPS = 16
_MOST_REGISTERS = 65_536
_OTHER_REGISTERS = 64  # of a thread
_LARGE_GROUP = 128
_BLOCK_RATE = 8e10  # bytes a second that one multiprocessor takes at most
_IN_FLIGHT = 1.0e-6  # seconds until a copy from memory has come
_SHARE = 0.45  # of the tensor cores' rate, with integers to convert
_START_SECONDS = 2.5e-6


class WeightOnlyMma(Template):
    """float16 or bfloat16 x by 4-bit or 8-bit weights, any m, n and k."""

    name = "cuda.weight_only"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "matmul_weight_only" or target.gpu is None or target.gpu.compute < _AMPERE:
            return False
        (group,) = workload.dims("group")
        return workload["dtype"] in ("float16", "bfloat16") and (group in (STEP, 2 * STEP) or group % BK == 0)

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("rows", (1, 2, 4, 8)),
            Knob("pairs", (1, 2, 4)),
            Knob("warps_n", (1, 2, 4, 8)),
            Knob("warps_k", (1, 2, 4, 8, 16)),
            Knob("stages", (2, 3, 4, 5, 6, 8)),
            Knob("vector", _vectors(workload)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        choices = [Config.of(**knobs, vector=_vectors(workload)[0]) for knobs in _DEFAULTS]
        legal = [config for config in choices if is_legal(config, workload, target)]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        few, many = _DEFAULTS[1], _knobs(4, 1, 4, 2, 3)
        return [
            GenericKernel(ranges, Config.of(**knobs, vector=vector), {"k": vector} if vector > 1 else {})
            for vector in (8, 1)
            for ranges, knobs in (({"m": (1, ROWS)}, few), ({}, many))
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each wave of blocks the slower of loading and multiplying."""
        assert target.gpu is not None
        m, n, k = (known(workload, name) for name in "mnk")
        tiles, product, gpu = tiles_of(config), product_of(workload), target.gpu
        blocks = math.ceil(m / tiles.bm) * math.ceil(n / tiles.bn)
        by_memory = gpu.shared_bytes // (shared_bytes(product, tiles) + 1024)
        by_registers = _MOST_REGISTERS // (_registers(product, tiles) * 32 * tiles.warps)
        beside = max(1, min(by_memory, by_registers))
        busy = min(blocks, beside * target.cores)
        layout = product.groups
        weights = tiles.bn * k * layout.bits / 8 * layout.rows * layout.step / layout.group
        taken = weights + 0.5 * 2 * min(m, tiles.bm) * k  # x comes from the L2
        in_flight = busy * tiles.stages * tiles.warps * tiles.pairs * product.slots * 512
        of_each = min(_BLOCK_RATE, gpu.bandwidth / min(blocks, target.cores))
        rate = min(of_each * min(blocks, target.cores), in_flight / _IN_FLIGHT)
        multiply = 2 * tiles.bm * tiles.bn * k / (_SHARE * gpu.tensor_flops / target.cores)
        waves = math.ceil(blocks / busy)
        load = taken * busy / rate
        return waves * max(load, multiply * math.ceil(busy / target.cores)) + _START_SECONDS

    def kernel_workload(self, workload: Workload) -> Workload:
        return workload.replace(m=ANY, n=ANY, k=ANY, x_bits="24")  # x is multiplied as it is

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        return WeightOnlyKernel(product_of(self.kernel_workload(workload)), tiles_of(config)).module()


def _registers(product: WeightOnlyProduct, tiles: WeightOnlyTiles) -> int:
    """Guess the registers of a thread: the scales of small groups take some."""
    return _OTHER_REGISTERS + tiles.registers + 48 * (product.groups.group < _LARGE_GROUP)


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles = tiles_of(config)
    m, n, k = (known(workload, name) for name in "mnk")
    registers = _registers(product_of(workload), tiles)
    return (
        tiles.warps <= _MOST_WARPS
        and registers * 32 * tiles.warps <= target.gpu.block_registers
        and registers <= 255
        and shared_bytes(product_of(workload), tiles) <= target.gpu.shared_bytes
        and tiles.bm < 2 * max(ROWS, m)
        and tiles.bn < 2 * max(COLUMNS, n)
        and tiles.warps_k * BK < 2 * max(BK, k)
        and tiles.stages <= max(2, -(-k // (BK * tiles.warps_k)) + 1)
    )


def tiles_of(config: Config) -> WeightOnlyTiles:
    return WeightOnlyTiles(**{name: int(value) for name, value in config.items})


def _vectors(workload: Workload) -> tuple[int, ...]:
    """Return what copies of x can take at once: the most; both ends where k is not known."""
    k = workload["k"]
    if not isinstance(k, int):
        return (8, 1)
    return (8,) if k % 8 == 0 else (1,)


def _knobs(rows: int, pairs: int, warps_n: int, warps_k: int, stages: int) -> dict[str, int]:
    return {"rows": rows, "pairs": pairs, "warps_n": warps_n, "warps_k": warps_k, "stages": stages}


# What `default` chooses from, by the estimate.
_DEFAULTS = (
    _knobs(1, 1, 1, 1, 2),
    _knobs(1, 1, 1, 8, 4),
    _knobs(1, 1, 1, 4, 6),
    _knobs(1, 1, 1, 16, 2),
    _knobs(1, 2, 1, 4, 4),
    _knobs(2, 1, 1, 8, 3),
    _knobs(2, 2, 1, 8, 2),
    _knobs(2, 2, 2, 4, 2),
    _knobs(4, 2, 2, 4, 2),
    _knobs(8, 1, 4, 2, 2),
)
