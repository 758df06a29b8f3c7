"""Depthwise convolutions on any GPU, NHWC; `kernels.conv_depthwise` says how."""

from __future__ import annotations

import math

from tvm import DataType, IRModule

from tvmops.ops import op_of
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.kernels.conv_depthwise import DepthwiseKernel, DepthwiseTiles
from tvmops.schedules.cuda.row_memory import parts_of, vector_width
from tvmops.schedules.template import GenericKernel, Template
from tvmops.signatures import ANY
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.windows import output_size, windows
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_MOST_TAPS = 121  # beyond, weights take memory that several blocks want
_MOST_VALUES = 96  # of a thread: sums, and the weights of a row of the kernel
_LEAST_CHANNELS = 32  # that neighbouring threads read side by side
_WANTED_BLOCKS = 4  # a multiprocessor, so that reads overlap
_BFLOAT16_FROM = 80
_LARGE = 256  # rows and columns of images that a generic kernel is chosen for


class DepthwiseConv(Template):
    name = "cuda.conv_depthwise"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if workload.op != "conv2d" or target.gpu is None or workload["layout"] != "NHWC":
            return False
        groups, (kh, kw) = workload["groups"], workload.dims("kh", "kw")
        return (
            groups != 1
            and all(workload[channels] in (ANY, groups) for channels in ("ci", "co"))
            and kh * kw <= _MOST_TAPS
            and workload["packed"] == PLAIN
            and (workload["dtype"] != "bfloat16" or target.gpu.compute >= _BFLOAT16_FROM)
        )

    def space(self, workload: Workload, target: Target) -> Space:
        knobs = (
            Knob("pixels", (1, 2, 3, 4, 6, 8)),
            Knob("vectors", (1, 2, 4, 8, 16, 32)),
            Knob("threads", (64, 128, 256)),
            Knob("repeats", (1, 2, 4, 8)),
        )
        return Space(self.name, knobs, lambda config: is_legal(config, workload, target))

    def default(self, workload: Workload, target: Target) -> Config:
        return min(self.space(workload, target), key=lambda config: self.estimate(workload, target, config))

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        sample = _depthwise(workload).replace(n=8, h=_LARGE, w=_LARGE)
        channels = int(workload["groups"])  # type: ignore[arg-type]
        return [
            GenericKernel(dict.fromkeys(("ci", "co"), (channels, channels)), self.default(sample, target))
        ]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: what goes through the L1, over its share of the bandwidth."""
        assert target.gpu is not None
        tiles, (kh, kw) = tiles_of(workload, config), workload.dims("kh", "kw")
        seen = _columns_seen(workload, tiles)
        oh, ow = output_size(workload)
        n, channels = workload.dims("n", "co")
        width = tiles.vectors * tiles.width
        filled = channels / (math.ceil(channels / width) * width)
        filled *= ow / (math.ceil(ow / tiles.pixels) * tiles.pixels)
        outputs = n * oh * ow * channels / filled
        item = int(DataType(str(workload["dtype"])).itemsize)
        reads = outputs * item * kh * seen / tiles.pixels
        turned = 16 * kh * kw / (tiles.threads // tiles.vectors * tiles.repeats * tiles.pixels)
        threads = outputs / tiles.pixels / tiles.width / tiles.repeats
        busy = min(1.0, threads / (target.cores * _WANTED_BLOCKS * 256))
        moved = op_of(workload).nbytes(workload) + 0.15 * reads + outputs * turned / 64
        return moved / (target.gpu.bandwidth * math.sqrt(busy)) + 2e-6

    def kernel_workload(self, workload: Workload) -> Workload:
        return _depthwise(workload).replace(**dict.fromkeys(("n", "h", "w"), ANY))

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        shape = ConvShape.of(self.kernel_workload(workload))
        return DepthwiseKernel(shape, str(workload["dtype"]), tiles_of(workload, config)).module()


def is_legal(config: Config, workload: Workload, target: Target) -> bool:
    """Say whether `config` fits the machine; the only statement of the template's limits."""
    tiles = tiles_of(workload, config)
    channels, kw = workload.dims("co", "kw")
    dtype, (_, ow) = str(workload["dtype"]), output_size(workload)
    seen = _columns_seen(workload, tiles)
    return (
        (tiles.pixels + kw) * tiles.width + seen * parts_of(dtype, tiles.width) <= _MOST_VALUES
        and min(channels, _LEAST_CHANNELS) <= tiles.vectors * tiles.width < 2 * channels + tiles.width
        and tiles.pixels <= ow
        and tiles.vectors * tiles.width * _taps(workload) <= 8192  # elements of shared memory
    )


def tiles_of(workload: Workload, config: Config) -> DepthwiseTiles:
    (channels,) = workload.dims("groups")
    knobs = {name: int(value) for name, value in config.items}
    return DepthwiseTiles(**knobs, width=vector_width(str(workload["dtype"]), channels))


def _depthwise(workload: Workload) -> Workload:
    """Return `workload` with as many channels as groups, where they are not known."""
    return workload.replace(ci=workload["groups"], co=workload["groups"])


def _columns_seen(workload: Workload, tiles: DepthwiseTiles) -> int:
    """Count the columns of the image that a thread reads of a row."""
    _, across = windows(workload)
    return len(
        {p * across.stride + j * across.dilation for p in range(tiles.pixels) for j in range(across.size)}
    )


def _taps(workload: Workload) -> int:
    kh, kw = workload.dims("kh", "kw")
    return kh * kw
