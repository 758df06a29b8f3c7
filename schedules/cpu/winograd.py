"""Conv2d 3x3 by Winograd's minimal filtering, F(m x m, 3 x 3), m = 2, 4 or 6.

Each tile of m x m outputs takes (m + 2)**2 products a pair of channels in place of 9 m**2:
2.25, 4 and 5.06 times fewer (A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural
Networks, CVPR 2016). Three steps, the first two of which leave what they make in the caches:

    image     v[place][tile][ci]   the transformed tiles of a block of rows x columns of them
    product   v[place] @ u[place]  for each place in a tile, and `panels` of co at a time:
                panel              nb blocks of 16 channels of co
                  tile             mr x nb accumulators in registers, ci unrolled by ku
    result    transformed back, with the epilogue, to y

Blocks run side by side, each through all three steps. Or (`shared`) the image is transformed
as a whole, and then blocks and groups of panels run side by side: for small images and many
channels, of whose weights each core then reads only its share.
"""

from __future__ import annotations

from itertools import count
from math import ceil, sqrt
from typing import ClassVar

from tvm import IRModule

from tvmops.ops import op_of
from tvmops.ops.activations import STEEPEST
from tvmops.ops.conv2d import UNIT_ROUNDOFF, suits_winograd
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import ALL
from tvmops.schedules.cpu.winograd_cost import cost
from tvmops.schedules.cpu.winograd_grid import Grid
from tvmops.schedules.cpu.winograd_nest import Blocking, WinogradNest
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.winograd import CHANNELS, TAPS, transforms
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_UNBOUNDED = 2**31 - 1
_SMALL = 1_000_000  # operations; for fewer, starting threads costs more than it saves


class _Winograd(Template):
    """F(m x m, 3 x 3), in float32.

    A sum of ci products is rounded in each place of a tile, and what the places suffer is
    added up by the transform of the result. For x and w uniform in [-1, 1) the standard
    deviation of an output's error is at most

        growth * u / 3 * (ci / sqrt(6) + 2 sqrt(ci)),    u = 2**-24,

    the first term from the sums, the second from both transforms, with `growth` as
    `tvmops.signatures.winograd` defines it. Kernels are held to five of these; the largest
    error seen, of 10**5 outputs, is three, for each m and for ci from 16 to 512.

    Where that is beyond the tolerance of conv2d, the template does not apply: F(2) is always
    within it, F(4) from 10 channels on, F(6) never. That is no matter of a strict bound: in units
    of u, the largest errors of F(6) that were seen for ci of 16, 64, 256 and 512 are 1671, 5646,
    21943 and 39049, where conv2d allows 588, 2316, 9228 and 18444; F(4) has 222, 887, 2937, 8099.

    An infinity or a NaN in the image spoils all of the tiles that it is in, and sums of
    inputs near the largest number overflow, up to 23 times earlier in F(4).
    """

    m: ClassVar[int]
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        return (
            workload.op == "conv2d"
            and target.kind == "cpu"
            and workload["dtype"] == "float32"
            and workload["packed"] in (PLAIN, f"winograd{self.m}")
            and (workload["packed"] != PLAIN or ANY not in (workload["ci"], workload["co"]))
            and suits_winograd(workload)
            and (workload["ci"] == ANY or self._is_exact(workload))
        )

    def _is_exact(self, workload: Workload) -> bool:
        """Say whether the error of so many channels is within what conv2d allows."""
        known = workload.replace(n=1, h=TAPS, w=TAPS, co=1)
        return self.bound(known) <= op_of(known).tolerance(known)

    def bound(self, workload: Workload) -> float:
        """Return how large the error of an output may be, of inputs within [-1, 1)."""
        (ci,) = workload.dims("ci")
        deviation = transforms(self.m).growth / 3 * (ci / sqrt(6) + 2 * sqrt(ci))
        return STEEPEST[str(workload["activation"])] * 5 * deviation * UNIT_ROUNDOFF

    def tolerance(self, workload: Workload, config: Config) -> float:
        return self.bound(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        grid = Grid.of(ConvShape.of(workload), self.m, ALL, ALL)
        (co,) = workload.dims("co")
        tiles, blocks = grid.tiles, ceil(co / CHANNELS)
        knobs = (
            Knob("mr", tuple(mr for mr in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16) if mr <= tiles)),
            Knob("nb", tuple(nb for nb in (1, 2, 3, 4) if nb <= blocks)),
            Knob("rows", _up_to(int(grid.down), (1, 2, 3, 4, 7, 8))),
            Knob("columns", _up_to(int(grid.across), (4, 7, 8, 14, 16, 28))),
            Knob("panels", _up_to(blocks, (1, 2, 4, 8))),
            Knob("ku", (1, 2, 4)),
            Knob("shared", (False, True)),
            Knob("parallel", (False, True) if _flops(workload) < 4 * _SMALL else (True,)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target, self.m))

    def default(self, workload: Workload, target: Target) -> Config:
        """Take the cheapest of a few, by the estimate."""
        values = {knob.name: knob.values for knob in self.space(workload, target).knobs}
        some = [
            Config.of(
                mr=mr,
                nb=nb,
                rows=rows,
                columns=columns,
                panels=panels,
                ku=2,
                shared=shared,
                parallel=parallel,
            )
            for mr in values["mr"]
            for nb in values["nb"]
            for rows in values["rows"]
            for columns in values["columns"]
            for panels in (min(values["panels"], key=bool), ALL)
            for shared in (False, True)
            for parallel in (_flops(workload) >= _SMALL,)
        ]
        legal = [config for config in some if is_legal(config, workload, target, self.m)]
        return min(legal, key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        """Of weights that are transformed already: to do that in each call would cost what tiles save.

        Small images have a few blocks of tiles, which all cores share.
        """
        if workload["packed"] == PLAIN:
            return []
        wide = target.vector_registers >= 32
        config = Config.of(
            mr=4 if wide else 5,
            nb=4 if wide else 1,
            rows=4,
            columns=8,
            panels=2 if wide else 4,
            ku=1,
            shared=False,
            parallel=True,
        )
        least = next(ci for ci in count(1) if self._is_exact(workload.replace(ci=ci)))
        channels = {"ci": (least, _UNBOUNDED)} if least > 1 else {}
        small = {"n": (1, 4), "h": (1, 32), "w": (1, 32)}
        return [
            GenericKernel({**small, **channels}, config.replace(shared=True)),
            GenericKernel(channels, config),
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return cost(workload, target, self.m, Blocking.of(config))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        width = target.vector_width("float32")
        return WinogradNest(ConvShape.of(workload), self.m, width, Blocking.of(config)).module()


class Winograd2(_Winograd):
    name = "cpu.winograd2"
    m = 2


class Winograd4(_Winograd):
    name = "cpu.winograd4"
    m = 4


class Winograd6(_Winograd):
    name = "cpu.winograd6"
    m = 6


def is_legal(config: Config, workload: Workload, target: Target, m: int) -> bool:
    """Say whether `config` fits the machine; the only statement of the templates' limits."""
    blocking = Blocking.of(config)
    grid = Grid.of(ConvShape.of(workload), m, blocking.rows, blocking.columns)
    ci, co = workload.dims("ci", "co")
    vectors = blocking.nb * CHANNELS // target.vector_width("float32")
    spare = 4 if target.vector_registers >= 32 else 1  # more, and LLVM keeps accumulators in memory
    tiles = -(-grid.tiles // blocking.mr) * blocking.mr
    panels = min(blocking.panels or ceil(co / CHANNELS), ceil(co / (blocking.nb * CHANNELS)))
    products = tiles * panels * blocking.nb * CHANNELS
    image = tiles * ci * (int(grid.blocks) if blocking.shared else 1)
    return (
        blocking.mr * vectors + vectors + spare <= target.vector_registers
        and blocking.mr <= grid.tiles
        and 4 * (m + 2) ** 2 * max(products, image) <= max(target.l2_bytes, target.l3_bytes // 2)
        and (blocking.parallel or not blocking.shared)
        and blocking.mr * vectors * blocking.ku <= 128  # beyond, compiling takes long and gains nothing
    )


def _flops(workload: Workload) -> int:
    return op_of(workload).flops(workload)


def _up_to(extent: int, values: tuple[int, ...]) -> tuple[int, ...]:
    """Return the values below `extent`, and `ALL` of it."""
    return (*(value for value in values if value < extent), ALL)


__all__ = ["Winograd2", "Winograd4", "Winograd6", "is_legal"]
