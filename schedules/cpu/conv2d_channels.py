"""Conv2d with vectors along the channels of the output, for NHWC.

It is a product of matrices, [pixel][k] times [k][co] with k = (r, s, ci). Pixels are read as
they lie and broadcast; the weights are transposed once a call, where they were not packed
beforehand. The knobs:

    task            groups x split_co x split_px   run side by side, or one by one (parallel)
      row block     rows                 a copy of rows of x, where there is padding or pack_x
        panel       nv vectors of co
          pixels    mr of a row          mr x nv accumulators in registers
            k       cu input channels unrolled

The pixels of all images are one long row where the kernel is 1x1 of stride 1, without padding;
there pack_x copies those of a register tile, for all panels in turn.

The register tile is that of K. Goto and R. van de Geijn, Anatomy of High-Performance Matrix
Multiplication, ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

from math import ceil

from tvm import IRModule

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.conv2d_channels_nest import ChannelsNest
from tvmops.schedules.cpu.conv2d_direct import (
    FMA_LATENCY,
    LAUNCH_CYCLES,
    Tiling,
    is_parallel,
    row_knob,
    sharing_knobs,
)
from tvmops.schedules.cpu.emit import ALL
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PANEL, PLAIN
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload


class Conv2DChannels(Template):
    name = "cpu.conv2d.channels"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "conv2d" or target.kind != "cpu" or workload["dtype"] != "float32":
            return False
        if workload["packed"] == PLAIN:
            return workload["layout"] == "NHWC"
        return workload["packed"] == "panels-nhwc" and _fits_panels(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        shape = ConvShape.of(workload)
        row = _row(shape)
        knobs = (
            Knob("mr", tuple(mr for mr in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 28) if mr <= row)),
            Knob("nv", (1, 2, 3, 4, 6, 8)),
            Knob("cu", (1, 2, 4, 8)),
            row_knob(shape),
            Knob("pack_x", (False, True)),
            *sharing_knobs(workload, target),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        shape = ConvShape.of(workload)
        co, oh, row = int(shape.co_each), int(shape.oh), _row(shape)
        width = target.vector_width("float32")
        nv = min(2, ceil(co / width))
        most = min(row, (target.vector_registers - 1) // nv - 1)
        mr = max(range(1, most + 1), key=lambda mr: (row / (ceil(row / mr) * mr) * min(mr * nv, 12), mr))
        mr = max(value for value in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 28) if value <= mr)
        parallel = is_parallel(workload)
        cores = target.cores if parallel and shape.groups < target.cores else 1
        units = ceil(row / mr) if shape.is_pointwise else int(shape.n) * oh
        split_px = cores if units >= 4 * cores else 1
        panels = ceil(co / (nv * width))
        rows = ALL if split_px == 1 else max(rows for rows in (1, 2, 4, 7, 8, 14) if rows <= ceil(oh / cores))
        wanted = Config.of(
            mr=mr,
            nv=nv,
            cu=4,
            rows=ALL if shape.is_pointwise or rows >= oh else rows,
            pack_x=not shape.is_pointwise or panels > 4,
            split_co=cores if split_px == 1 and panels >= cores else 1,
            split_px=split_px,
            parallel=parallel,
        )
        if is_legal(wanted, workload, target):
            return wanted
        fitting = (wanted.replace(rows=count) for count in reversed(row_knob(shape).values))
        return next(config for config in fitting if is_legal(config, workload, target))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        mr = 6 if target.vector_registers >= 32 else 4
        config = Config.of(
            mr=mr, nv=2, cu=1, rows=4, pack_x=True, split_co=1, split_px=target.cores, parallel=True
        )
        is_limited = workload["packed"] != PLAIN and workload["groups"] != 1
        return [GenericKernel({}, config, {"co": _least_channels(workload)} if is_limited else {})]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Count cycles of the busiest core, roughly: it orders a first batch, no more."""
        tiling, shape = Tiling.of(config), ConvShape.of(workload)
        n, ci, co = int(shape.n), int(shape.ci_each), int(shape.co_each)
        oh, ow = int(shape.oh), int(shape.ow)
        depth = ci * shape.down.size * shape.across.size
        panels = ceil(ceil(co / (tiling.nv * target.vector_width("float32"))) / tiling.split_co)
        if shape.is_pointwise:
            steps = ceil(ceil(_row(shape) / tiling.mr) / tiling.split_px)
            copied = steps * tiling.mr * ci / 5 if tiling.pack_x else 0.0
        else:
            rows = min(tiling.rows or oh, oh)
            blocks = ceil(n * ceil(oh / rows) / tiling.split_px)
            steps = blocks * rows * ceil(ow / tiling.mr)
            needed = rows * shape.down.stride + shape.down.reach - 1
            copied = blocks * needed * ow * shape.across.stride * ci / 5
        multiplies, loads = tiling.mr * tiling.nv, tiling.nv + 0.5 * tiling.mr
        cycles = max(multiplies, loads, FMA_LATENCY) + 1.5 / tiling.cu
        apart = tiling.pack_x or ci % 256 > 0
        cycles += 0.1 * multiplies * (not apart and tiling.mr > 7)  # lines that share a set
        is_plain = shape.packed is None
        turned = 0.4 * depth * panels * tiling.nv * target.vector_width("float32") * is_plain
        task = steps * panels * (depth * cycles + 4 * multiplies) + copied + turned
        count = shape.groups * tiling.split_co * tiling.split_px
        parallel = tiling.parallel and count > 1
        return task * (ceil(count / target.cores) if parallel else count) + LAUNCH_CYCLES * parallel

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        shape = ConvShape.of(workload)
        dtype = str(workload["dtype"])
        return ChannelsNest(shape, dtype, target.vector_width(dtype), Tiling.of(config)).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    tiling, shape = Tiling.of(config), ConvShape.of(workload)
    ci, co, oh, ow = (int(size) for size in (shape.ci_each, shape.co_each, shape.oh, shape.ow))
    width, row = target.vector_width("float32"), _row(shape)
    panels = ceil(co / (tiling.nv * width))
    rows = min(tiling.rows or oh, oh)
    units = ceil(row / tiling.mr) if shape.is_pointwise else int(shape.n) * ceil(oh / rows)
    copied = (
        0
        if shape.is_pointwise
        else (rows * shape.down.stride + shape.down.reach)
        * (ow * shape.across.stride + shape.across.reach)
        * (ci + 16)
    )
    return (
        tiling.mr * tiling.nv + tiling.nv + 1 <= target.vector_registers
        and (tiling.nv - 1) * width < co
        and tiling.split_co <= panels
        and tiling.split_px <= units
        and tiling.split_co * tiling.split_px <= 2 * target.cores
        and (rows == 1 or 4 * copied <= max(target.l2_bytes, target.l3_bytes // 2))
        and tiling.mr * tiling.nv * tiling.cu <= 128  # beyond, compiling takes long and gains nothing
        and (tiling.parallel or tiling.split_co * tiling.split_px == 1)
    )


def _fits_panels(workload: Workload) -> bool:
    """True if no vector of the channels of a group lies in two panels of packed weights."""
    return workload["co"] == ANY or int(workload["co"]) % _least_channels(workload) == 0  # type: ignore[arg-type]


def _least_channels(workload: Workload) -> int:
    """Return of what `co` must be a multiple for packed weights."""
    (groups,) = workload.dims("groups")
    return PANEL * groups if groups > 1 else 1


def _row(shape: ConvShape) -> int:
    """Return how many pixels lie side by side."""
    return int(shape.n * shape.h * shape.w if shape.is_pointwise else shape.ow)


__all__ = ["Conv2DChannels", "is_legal"]
