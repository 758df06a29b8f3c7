"""Convolutions of 16-bit types on Hopper, NCHW, with groups and epilogue; `kernels.conv_planes` says how."""

from __future__ import annotations

from tvm import IRModule

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cuda.conv_tiles import PANEL
from tvmops.schedules.cuda.conv_wgmma import WgmmaConv, tiles_of
from tvmops.schedules.cuda.kernels.channels_last import whole_vectors
from tvmops.schedules.cuda.kernels.conv_planes import (
    Copies,
    PlanesConvKernel,
    sees_single_pixels,
    workspace_function,
)
from tvmops.schedules.template import GenericKernel
from tvmops.signatures import ANY
from tvmops.signatures.windows import output_size
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_ALIGNED = 8  # elements: TMA takes rows of a multiple of 16 bytes
_START_SECONDS = 2.5e-6  # of a second kernel


class PlanesConv(WgmmaConv):
    """`WgmmaConv` on planes of pixels as they lie, or on copies of them."""

    name = "cuda.conv_planes"
    version = 1
    layout = "NCHW"

    def covers(self, workload: Workload, target: Target) -> bool:
        return workload.op == "conv2d" and super().covers(multiplied(workload), target)

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(multiplied(workload), target)
        knobs = (*whole.knobs, Knob("direct", (0, 1) if may_be_direct(workload) else (0,)))

        def is_legal(config: Config) -> bool:
            return whole.is_legal(config) and (not config["direct"] or config["depth"] == PANEL)

        return Space(self.name, knobs, is_legal)

    def symbolic_space(self, space: Space, pattern: Workload) -> Space:
        """Leave out what needs planes of whole vectors, where their size is not known."""
        if ANY not in (pattern["h"], pattern["w"]):
            return space
        return Space(
            space.template, space.knobs, lambda config: space.is_legal(config) and not config["direct"]
        )

    def choices(self, workload: Workload) -> list[Config]:
        plain = super().choices(multiplied(workload))
        return [Config.of(**config.as_dict(), direct=direct) for direct in (0, 1) for config in plain]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        (kernel,) = super().generic(workload, target)
        multiples = {} if workload["groups"] != 1 else {"co": _ALIGNED}
        return [GenericKernel({}, Config.of(**kernel.config.as_dict(), direct=0), multiples)]

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        """Guess the seconds: those of the product, and of reading and writing what is copied."""
        assert target.gpu is not None
        seen = multiplied(workload)
        seconds = super().estimate(seen, target, config)
        if config["direct"]:
            return seconds
        n, h, w, ci, co, kh, kw, groups = seen.dims("n", "h", "w", "ci", "co", "kh", "kw", "groups")
        copied = n * h * w * ci + (co * ci // groups * kh * kw if turns_weights(workload) else 0)
        return seconds + 4 * copied / target.gpu.bandwidth + _START_SECONDS

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return super().features(multiplied(workload), target, config)

    def kernel_workload(self, workload: Workload) -> Workload:
        """Return the workload with `*` for sizes, but for channels that let weights stay where they are."""
        general = super().kernel_workload(workload)
        if workload["groups"] != 1 or turns_weights(workload):
            return general
        return general.replace(ci=_ALIGNED)

    def build(self, workload: Workload, target: Target, config: Config) -> IRModule:
        tiles, dtype = tiles_of(workload, target, config), str(workload["dtype"])
        general = super().kernel_workload(workload)
        turns = turns_weights(workload)
        module = PlanesConvKernel(ConvShape.of(general), dtype, tiles, turns).module()
        if not tiles.direct:
            shape = ConvShape.of(general)
            module["main_workspace"] = workspace_function(shape, dtype, Copies.of(shape, turns))
        return module


def multiplied(workload: Workload) -> Workload:
    """Return the convolution that is computed of copies: pixels that no window sees are not among them."""
    if workload["groups"] == 1 and workload["ci"] != ANY:
        (ci,) = workload.dims("ci")
        workload = workload.replace(ci=whole_vectors(ci))
    if not sees_single_pixels(ConvShape.of(workload)) or ANY in (workload["h"], workload["w"]):
        return workload
    oh, ow = output_size(workload)
    return workload.replace(h=oh, w=ow, stride=(1, 1), dilation=(1, 1))


def may_be_direct(workload: Workload) -> bool:
    """Say whether TMA takes the planes as they lie, and each pixel of the output is one of the image."""
    pixels, (ci, groups) = output_size(workload), workload.dims("ci", "groups")
    is_pointwise = ConvShape.of(workload).is_pointwise
    return is_pointwise and pixels[0] * pixels[1] % _ALIGNED == 0 and ci // groups % _ALIGNED == 0


def turns_weights(workload: Workload) -> bool:
    """Say whether the weights are copied: 1x1 ones of whole vectors lie as they should."""
    ci, (kh, kw, groups) = workload["ci"], workload.dims("kh", "kw", "groups")
    return kh * kw > 1 or not isinstance(ci, int) or ci // groups % _ALIGNED != 0
