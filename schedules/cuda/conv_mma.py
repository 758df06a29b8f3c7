"""Convolutions of 16-bit types on any GPU with mma.sync, NHWC and NCHW; `kernels.conv_mma` says how."""

from __future__ import annotations

import math

from tvm import IRModule

from tvmops.ops import op_of
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.extents import known
from tvmops.schedules.cuda.kernels.conv_mma import BK, MmaConvKernel
from tvmops.schedules.cuda.kernels.gemm_mma import MmaTiles
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.windows import output_size
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_AMPERE = 80  # mma.sync of 16 bits with cp.async
_VECTORS = (8, 4, 2, 1)  # elements of a copy
_MOST_REGISTERS = 136  # of a thread, for sums and what is read ahead
_SHARE = 0.6  # of the tensor cores' rate that mma.sync reaches where wgmma is the native way
_FILL_SECONDS = 3e-6


class MmaConv(Template):
    """Any sizes, strides, paddings, dilations, groups and epilogue."""

    name = "cuda.conv_mma"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            workload.op == "conv2d"
            and target.gpu is not None
            and target.gpu.compute >= _AMPERE
            and workload["dtype"] in ("float16", "bfloat16")
            and workload["packed"] == PLAIN
        )

    def space(self, workload: Workload, target: Target) -> Space:
        a, b = _vectors(workload)
        knobs = (
            Knob("bm", (16, 32, 64, 128, 256)),
            Knob("bn", (32, 64, 128, 256)),
            Knob("warps_m", (1, 2, 4)),
            Knob("warps_n", (1, 2, 4)),
            Knob("stages", (2, 3, 4, 5)),
            Knob("a_vector", (a,)),
            Knob("b_vector", (b,)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        legal = [
            config
            for knobs in _DEFAULTS
            if is_legal(config := _config(*knobs, *_vectors(workload)), workload, target)
        ]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        last = GenericKernel({}, _config(64, 64, 2, 2, 2, 1, 1))
        if workload["layout"] != "NHWC" or workload["groups"] != 1:
            return [last]
        return [GenericKernel({}, _config(64, 64, 2, 2, 3, 8, 8), {"ci": 8}), last]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: of each wave of blocks the slower of multiplying and loading."""
        assert target.gpu is not None
        m, n, k, groups = _product(workload)
        tiles, gpu = tiles_of(config), target.gpu
        count = groups * math.ceil(m / tiles.bm) * math.ceil(n / tiles.bn)
        beside = max(1, min(4, gpu.shared_bytes // (tiles.shared_bytes + 1024)))
        waves = math.ceil(count / target.cores / beside) * beside if count > target.cores else 1
        multiply = 2 * tiles.bm * tiles.bn * k / (_SHARE * gpu.tensor_flops / target.cores)
        slow = math.sqrt(8 / min(tiles.a_vector, tiles.b_vector))
        load = 2 * (tiles.bm + tiles.bn) * k * slow / (2.0 * gpu.bandwidth / min(count, target.cores))
        fewest = op_of(workload).nbytes(workload) / gpu.bandwidth
        return max(waves * max(multiply, load), fewest) + _FILL_SECONDS

    def kernel_workload(self, workload: Workload) -> Workload:
        free = ("n", "h", "w") if workload["groups"] != 1 else ("n", "h", "w", "co")
        return workload.replace(**dict.fromkeys(free, ANY))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        shape = ConvShape.of(self.kernel_workload(workload))
        return MmaConvKernel(shape, str(workload["dtype"]), tiles_of(config)).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    assert target.gpu is not None
    tiles = tiles_of(config)
    m, n, k, _ = _product(workload)
    return (
        tiles.wm % 16 == 0
        and tiles.wn % 16 == 0
        and tiles.registers <= _MOST_REGISTERS
        and tiles.shared_bytes <= target.gpu.shared_bytes
        and tiles.bm < 2 * max(16, m)
        and tiles.bn < 2 * max(32, n)
        and tiles.stages <= max(2, k // BK)
    )


def tiles_of(config: Config) -> MmaTiles:
    return MmaTiles(**{name: int(value) for name, value in config.items})


def _product(workload: Workload) -> tuple[int, int, int, int]:
    """Return rows, columns and depth of the product of a group, and the groups."""
    (kh, kw, groups), (n, ci, co) = workload.dims("kh", "kw", "groups"), _known(workload, "n", "ci", "co")
    sizes = dict(zip("hw", _known(workload, "h", "w")))
    oh, ow = output_size(workload.replace(**sizes))
    channels = max(1, co // groups)
    m, n = (n * oh * ow, channels) if workload["layout"] == "NHWC" else (channels, n * oh * ow)
    return m, n, kh * kw * max(1, ci // groups), groups


def _known(workload: Workload, *names: str) -> tuple[int, ...]:
    return tuple(known(workload, name) for name in names)


def _vectors(workload: Workload) -> tuple[int, int]:
    """Return how many elements copies of a and b take at once."""
    channels, groups = workload["ci"], workload["groups"]
    assert isinstance(groups, int)
    if not isinstance(channels, int):
        return 1, 1
    kh, kw = workload.dims("kh", "kw")
    each = channels // groups
    weights = next(vector for vector in _VECTORS if each * kh * kw % vector == 0)
    if workload["layout"] != "NHWC":
        return weights, 1
    return (8 if each % 8 == 0 else 1), weights


def _config(bm: int, bn: int, warps_m: int, warps_n: int, stages: int, a: int, b: int) -> Config:
    return Config.of(
        bm=bm, bn=bn, warps_m=warps_m, warps_n=warps_n, stages=stages, a_vector=a, b_vector=b
    )  # fmt: skip


# What `default` chooses from, by the estimate; smallest tiles first.
_DEFAULTS = (
    (16, 32, 1, 2, 2),
    (16, 64, 1, 4, 4),
    (32, 64, 2, 2, 4),
    (64, 64, 2, 2, 2),
    (64, 64, 2, 2, 3),
    (64, 128, 2, 2, 3),
    (128, 64, 4, 2, 3),
    (128, 128, 2, 4, 3),
)
