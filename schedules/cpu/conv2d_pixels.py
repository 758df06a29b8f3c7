"""Conv2d with vectors along the pixels of the output, for NCHW.

It is a product of matrices, [co][k] times [k][pixel] with k = (ci, r, s), whose second factor
is never made (implicit GEMM): what place (r, s) of the kernel sees of a channel is that
channel, shifted. Weights are read as they lie and broadcast: rows
of (ci, r, s), or packed beforehand to panels of 16 channels. The knobs:

    task            n x groups x split_co x split_px   run side by side, or one by one (parallel)
      row block     rows                 a padded copy of x, see `PaddedImage`
        tile of co  mr channels          their weights are copied to rows of their own (pack_w)
          pixels    nv vectors           mr x nv accumulators in registers
            k       the kernel unrolled, and cu input channels

A 1x1 kernel of stride 1 without padding reads x where it lies, the whole image as one row; or
a panel of nv vectors, all of k, copied to one place (pack_x), for all tiles of co in turn.

Runs of pixels go on from one row of the output to the next, so that images of 7, 14 or 28
columns fill vectors; the sums between two rows are left out when rows are copied to y.
The register tile is that of K. Goto and R. van de Geijn, Anatomy of High-Performance Matrix
Multiplication, ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

from math import ceil

from tvm import IRModule

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.conv2d_direct import (
    FMA_LATENCY,
    LAUNCH_CYCLES,
    is_parallel,
    row_knob,
    sharing_knobs,
)
from tvmops.schedules.cpu.conv2d_pixels_nest import PixelsNest
from tvmops.schedules.cpu.conv2d_pixels_tile import PixelTiling
from tvmops.schedules.cpu.emit import ALL
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures.layouts import PLAIN
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload


class Conv2DPixels(Template):
    name = "cpu.conv2d.pixels"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "conv2d" or target.kind != "cpu" or workload["dtype"] != "float32":
            return False
        if workload["packed"] == PLAIN:
            return workload["layout"] == "NCHW"
        return workload["packed"] == "panels-nchw"

    def space(self, workload: Workload, target: Target) -> Space:
        shape = ConvShape.of(workload)
        co = int(shape.co_each)
        flat, taps = shape.is_pointwise, shape.down.size * shape.across.size
        knobs = (
            Knob("mr", tuple(mr for mr in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 24, 28) if mr <= co)),
            Knob("nv", (1, 2, 3, 4, 5, 6, 7, 8)),
            Knob("cu", (1, 2, 4) if taps <= 3 else (1,)),
            row_knob(shape),
            Knob("pack_w", (False, True) if shape.packed is None else (False,)),
            Knob("pack_x", (False, True) if flat else (False,)),
            *sharing_knobs(workload, target),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        shape = ConvShape.of(workload)
        oh, ow, co = (int(size) for size in (shape.oh, shape.ow, shape.co_each))
        width = target.vector_width("float32")
        flat = shape.is_pointwise
        # pixels under larger kernels are read once a place: more channels for each of these reads
        pointwise = shape.down.size * shape.across.size == 1
        nv = min(3 if target.vector_registers >= 32 and pointwise else 2, ceil(oh * ow / width))
        tall = (mr for mr in (1, 2, 3, 4, 5, 6, 8, 12) if mr <= co)
        mr = max(mr for mr in tall if (mr + 1) * nv < target.vector_registers)
        tiles, steps = ceil(co / mr), ceil(oh * ow / (nv * width)) if flat else oh
        independent = int(shape.n) * shape.groups
        parallel = is_parallel(workload)
        cores = 1 if independent >= target.cores or not parallel else target.cores
        split_px = cores if steps >= 4 * cores else 1
        wanted = Config.of(
            mr=mr,
            nv=nv,
            cu=2 if flat else 1,
            rows=ALL,
            pack_w=False,
            pack_x=flat and tiles > 4,
            split_co=cores if split_px == 1 and tiles >= cores else 1,
            split_px=split_px,
            parallel=parallel,
        )
        fitting = (wanted.replace(rows=count) for count in reversed(row_knob(shape).values))
        return next(config for config in fitting if is_legal(config, workload, target))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        wide = target.vector_registers >= 32
        config = Config.of(
            mr=4,
            nv=5 if wide else 2,
            cu=1,
            rows=8,
            pack_w=False,
            pack_x=False,
            split_co=1,
            split_px=target.cores,
            parallel=True,
        )
        return [GenericKernel({}, config)]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Count cycles of the busiest core, roughly: it orders a first batch, no more."""
        tiling, shape = PixelTiling.of(config), ConvShape.of(workload)
        ci, co, oh, ow = (int(size) for size in (shape.ci_each, shape.co_each, shape.oh, shape.ow))
        step = tiling.nv * target.vector_width("float32")
        depth = ci * shape.down.size * shape.across.size
        tiles = ceil(ceil(co / tiling.mr) / tiling.split_co)
        if shape.is_pointwise:
            steps = ceil(oh * ow / step / tiling.split_px)
            copied = ci * tiling.nv * steps * (3.0 if tiling.pack_x else 0.0)
        else:
            rows = ceil(oh / tiling.split_px)
            each = min(tiling.rows or rows, rows)
            pitch = ow + (shape.across.reach - 1) // shape.across.stride
            steps = ceil(rows / each) * ceil(each * pitch / step)
            needed = each * shape.down.stride + shape.down.reach - 1
            copied = ci * ceil(rows / each) * needed * ow * shape.across.stride / 5
        multiplies, loads = tiling.mr * tiling.nv, 1.5 * tiling.nv + 0.5 * tiling.mr
        cycles = max(multiplies, loads, FMA_LATENCY) + 1.5 / tiling.cu
        cycles += 0.1 * multiplies * (shape.is_pointwise and not tiling.pack_x)  # pages and lines apart
        packed = tiles * tiling.mr * depth / 5 if tiling.pack_w else 0.0
        task = steps * tiles * (depth * cycles + 4 * multiplies) + copied + packed
        waves = ceil(int(shape.n) * shape.groups * tiling.split_co * tiling.split_px / target.cores)
        alone = int(shape.n) * shape.groups * tiling.split_co * tiling.split_px
        return task * (waves if tiling.parallel else alone) + LAUNCH_CYCLES * tiling.parallel

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        shape = ConvShape.of(workload)
        dtype = str(workload["dtype"])
        return PixelsNest(shape, dtype, target.vector_width(dtype), PixelTiling.of(config)).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    tiling, shape = PixelTiling.of(config), ConvShape.of(workload)
    ci, co, oh, ow = (int(size) for size in (shape.ci_each, shape.co_each, shape.oh, shape.ow))
    width, taps = target.vector_width("float32"), shape.down.size * shape.across.size
    steps = ceil(oh * ow / (tiling.nv * width)) if shape.is_pointwise else oh
    registers = tiling.mr * tiling.nv + tiling.nv + 1  # accumulators, pixels, one weight
    rows = min(tiling.rows or oh, ceil(oh / tiling.split_px))
    image = (
        0
        if shape.is_pointwise
        else ci
        * (rows * shape.down.stride + shape.down.reach)
        * (ow * shape.across.stride + shape.across.reach)
    )
    unrolled = tiling.mr * tiling.nv * tiling.cu * (taps if taps <= 9 else shape.across.size)
    return (
        registers <= target.vector_registers
        and (tiling.nv - 1) * width < oh * ow + shape.across.reach * oh
        and tiling.split_co <= ceil(co / tiling.mr)
        and tiling.split_px <= steps
        and tiling.split_co * tiling.split_px <= 2 * target.cores
        and not (tiling.pack_w and tiling.pack_x)
        and (rows == 1 or 4 * image <= max(target.l2_bytes, target.l3_bytes // 2))
        and unrolled <= 600  # beyond, compiling takes long and gains nothing
        and (tiling.parallel or tiling.split_co * tiling.split_px == 1)
    )


__all__ = ["Conv2DPixels", "is_legal"]
