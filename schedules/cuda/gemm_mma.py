"""Matrix products of 16-bit types on any GPU with mma.sync; `kernels.gemm_mma` says how."""

from __future__ import annotations

import math
from typing import ClassVar

from tvm import IRModule

from tvmops.schedules.cuda.extents import extent, known
from tvmops.schedules.cuda.kernels.gemm_mma import MmaKernel, MmaTiles
from tvmops.schedules.cuda.kernels.mma_operand import BK
from tvmops.schedules.cuda.kernels.product import Product
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.matmul import SAME
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_AMPERE = 80  # mma.sync of 16 bits with cp.async
_HOPPER = 90  # launches that don't wait for the kernel before
_MOST_REGISTERS = 136  # of a thread, for sums and what is read ahead
_SHARE = 0.6  # of the tensor cores' rate that mma.sync reaches where wgmma is the native way
_FILL_SECONDS = 3e-6


class MmaGemm(Template):
    """Any m, n, k, leading dimensions, batch, transposes and epilogue."""

    name = "cuda.gemm_mma"
    version = 1
    vectors: ClassVar[tuple[int, ...]] = (
        8,
        4,
        2,
        1,
    )  # that a copy may take: elements, or bytes of those of other sizes
    each = 1  # of these in an element

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            workload.op == "matmul"
            and target.gpu is not None
            and target.gpu.compute >= _AMPERE
            and workload["dtype"] in ("float16", "bfloat16")
            and workload["packed"] == PLAIN
            and workload["out_dtype"] == workload["bias_dtype"] == SAME
        )

    def space(self, workload: Workload, target: Target) -> Space:
        halves = self.in_halves(workload)
        a, b = (self._vectors(workload[dim]) for dim in row_dims(workload))
        knobs = (
            Knob("bm", (16, 32, 64, 128, 256)),
            Knob("bn", (32, 64, 128, 256)),
            Knob("warps_m", (1, 2, 4)),
            Knob("warps_n", (1, 2, 4)),
            Knob("stages", (2, 3, 4, 5, 6)),
            Knob("a_vector", a),
            Knob("b_vector", b),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, halves, target))

    def in_halves(self, workload: Workload) -> Workload:
        """Return the product of 16-bit factors that moves as many bytes of them."""
        return workload

    def default(self, workload: Workload, target: Target) -> Config:
        space = self.space(workload, target)
        vectors = {knob.name: knob.values[0] for knob in space.knobs if "vector" in knob.name}
        choices = [Config.of(**knobs, **vectors) for knobs in self.choices()]
        legal = [config for config in choices if config in space]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def choices(self) -> tuple[dict[str, int], ...]:
        """Return what the default is chosen from, by the estimate; but for the width of copies."""
        return _DEFAULTS

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        rows = sorted(set(row_dims(workload)))
        few, many = _DEFAULTS[0], _DEFAULTS[3]
        kernels = []
        for vector in (self.vectors[0], self.vectors[-1]):
            multiples = dict.fromkeys(rows, vector // self.each) if vector > self.each else {}
            for ranges, knobs in (({"m": (1, 16)}, few), ({}, many)):
                config = Config.of(**knobs, a_vector=vector, b_vector=vector)
                kernels.append(GenericKernel(ranges, config, multiples))
        return kernels

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each wave of blocks the slower of multiplying and loading."""
        assert target.gpu is not None
        workload = self.in_halves(workload)
        m, n, k = (known(workload, dim) for dim in "mnk")
        batch, tiles, gpu = known(workload, "batch"), tiles_of(config), target.gpu
        count = batch * math.ceil(m / tiles.bm) * math.ceil(n / tiles.bn)
        beside = max(1, min(4, gpu.shared_bytes // (tiles.shared_bytes + 1024)))
        waves = math.ceil(count / target.cores / beside) * beside if count > target.cores else 1
        rate = _SHARE * gpu.tensor_flops / target.cores
        multiply = 2 * tiles.bm * tiles.bn * k / rate
        slow = math.sqrt(8 / min(tiles.a_vector, tiles.b_vector))
        load = 2 * (tiles.bm + tiles.bn) * k * slow / (2.0 * gpu.bandwidth / min(count, target.cores))
        fewest = 2 * batch * (m * k + k * n + m * n) / gpu.bandwidth
        return max(waves * max(multiply, load), fewest) + _FILL_SECONDS

    def kernel_workload(self, workload: Workload) -> Workload:
        sizes = {"m": ANY, "n": ANY, "k": ANY}
        return workload.replace(**(sizes if workload["batch"] == 1 else {**sizes, "batch": ANY}))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        product = product_of(self.kernel_workload(workload))
        return MmaKernel(product, tiles_of(config)).module()

    def _vectors(self, row: object) -> tuple[int, ...]:
        """Return what copies can take at once of rows of `row` elements: the most; both ends if unknown."""
        if not isinstance(row, int):
            return (self.vectors[0], self.vectors[-1])
        return (next(vector for vector in self.vectors if row * self.each % vector == 0),)


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles = tiles_of(config)
    return (
        tiles.wm % 16 == 0
        and tiles.wn % 16 == 0
        and tiles.registers <= _MOST_REGISTERS
        and tiles.shared_bytes <= target.gpu.shared_bytes
        and tiles.bm < 2 * max(16, known(workload, "m"))
        and tiles.bn < 2 * max(32, known(workload, "n"))
        and tiles.stages <= max(2, known(workload, "k") // BK)
    )


def is_chained(target: Target) -> bool:
    """Say whether kernels are launched while the one before them ends (programmatic dependent launch)."""
    return target.gpu is not None and target.gpu.compute >= _HOPPER


def tiles_of(config: Config) -> MmaTiles:
    return MmaTiles(**{name: int(value) for name, value in config.items})


def product_of(workload: Workload) -> Product:
    """Return what `workload` multiplies; sizes that are `*` become variables."""
    m, n, k, batch = (extent(workload, name) for name in ("m", "n", "k", "batch"))
    return Product(
        m=m,
        n=n,
        k=k,
        batch=batch,
        shared=str(workload["shared"]),
        dtype=str(workload["dtype"]),
        trans_a=bool(workload["trans_a"]),
        trans_b=bool(workload["trans_b"]),
        bias=bool(workload["bias"]),
        residual=bool(workload["residual"]),
        activation=str(workload["activation"]),
    )


def row_dims(workload: Workload) -> tuple[str, str]:
    """Return the dimensions along which the rows of a and of b lie."""
    return "m" if dict(workload.items).get("trans_a") else "k", "k" if workload["trans_b"] else "n"


def knobs_of(bm: int, bn: int, warps_m: int, warps_n: int, stages: int) -> dict[str, int]:
    return {"bm": bm, "bn": bn, "warps_m": warps_m, "warps_n": warps_n, "stages": stages}


# What `default` chooses from, by the estimate; smallest tiles first.
_DEFAULTS = (
    knobs_of(16, 32, 1, 2, 2),
    knobs_of(16, 64, 1, 4, 4),
    knobs_of(32, 64, 2, 2, 4),
    knobs_of(64, 64, 2, 2, 2),
    knobs_of(64, 64, 2, 2, 3),
    knobs_of(64, 128, 2, 2, 3),
    knobs_of(128, 128, 2, 4, 3),
    knobs_of(128, 256, 2, 4, 3),
)
