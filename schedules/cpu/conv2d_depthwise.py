"""Depthwise conv2d: each channel by itself, in registers, straight from x to y.

    task            tasks                  channels' images (NCHW) or bands of rows (NHWC)
      tile          rows x columns         of y: pixels (NHWC), or vectors of pixels (NCHW)
        row of x    read once for all rows of the tile that it is under

Vectors hold neighbours in a row (NCHW) or neighbouring channels (NHWC). Nothing is copied:
tiles at the edges of the image read zeros by masks.
"""

from __future__ import annotations

from math import ceil

from tvm import IRModule

from tvmops.ops import op_of
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.conv2d_depthwise_channels import ChannelsNest
from tvmops.schedules.cpu.conv2d_depthwise_nest import DepthwiseNest, Tiling
from tvmops.schedules.cpu.conv2d_depthwise_rows import RowsNest
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.windows import windows
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_SMALL = 500_000  # operations; for fewer, starting threads costs more than it saves
_MOST_PLACES = 25  # in a kernel: each is unrolled


class Conv2DDepthwise(Template):
    name = "cpu.conv2d.depthwise"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if (
            workload.op != "conv2d"
            or target.kind != "cpu"
            or workload["dtype"] != "float32"
            or workload["groups"] == 1
        ):
            return False
        down, across = windows(workload)
        alone = (ANY, workload["groups"])
        return (
            workload["ci"] in alone
            and workload["co"] in alone
            and down.size * across.size <= _MOST_PLACES
            and (across.stride <= 2 or workload["layout"] == "NHWC")
        )

    def space(self, workload: Workload, target: Target) -> Space:
        shape = ConvShape.of(workload)
        knobs = (
            Knob("rows", tuple(rows for rows in (1, 2, 3, 4, 5, 7) if rows <= int(shape.oh))),
            Knob("columns", (1, 2, 3, 4, 5, 6, 7)),
            Knob("tasks", (1, *(target.cores * times for times in (1, 2, 4) if target.cores * times > 1))),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        shape = ConvShape.of(workload)
        oh, ow = int(shape.oh), int(shape.ow)
        last, width = shape.channels_last, target.vector_width("float32")
        rows = min(oh, (2 if oh % 2 == 0 else 1) if last else (4 if oh % 4 == 0 else 2))
        columns = min(ow, 4) if last else (2 if ow >= 2 * width else 1)
        units = int(shape.n) * (ceil(oh / rows) if last else shape.groups)
        parallel = op_of(workload).flops(workload) >= _SMALL and units >= target.cores
        return Config.of(rows=rows, columns=columns, tasks=target.cores if parallel else 1)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        (groups,) = workload.dims("groups")
        config = Config.of(rows=2, columns=2 if workload["layout"] == "NHWC" else 1, tasks=target.cores)
        return [GenericKernel({"ci": (groups, groups), "co": (groups, groups)}, config)]

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        (groups,) = workload.dims("groups")
        shape = ConvShape.of(workload.replace(ci=groups, co=groups))
        dtype = str(workload["dtype"])
        nest: type[DepthwiseNest] = ChannelsNest if shape.channels_last else RowsNest
        return nest(shape, dtype, target.vector_width(dtype), Tiling.of(config)).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    tiling, shape = Tiling.of(config), ConvShape.of(workload)
    n, oh, ow = int(shape.n), int(shape.oh), int(shape.ow)
    last, width = shape.channels_last, target.vector_width("float32")
    columns = ow if last else ceil(ow / width)
    units = n * (ceil(oh / tiling.rows) if last else shape.groups)
    places = shape.down.size * shape.across.size
    return (
        tiling.rows * tiling.columns + 4 <= target.vector_registers
        and tiling.columns <= columns
        and tiling.tasks <= max(1, units)
        and tiling.rows * tiling.columns * places <= 300  # beyond, compiling takes long and gains nothing
    )


__all__ = ["Conv2DDepthwise", "is_legal"]
