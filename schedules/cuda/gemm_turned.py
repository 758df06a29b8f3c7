"""Products of 16 bits on Hopper, made as c^T = b^T a^T; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from tvmops.schedules.cuda.gemm_tiles import FEWER_SUMS, Tiles, sums_of
from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm
from tvmops.schedules.cuda.kernels.gemm_arrays import Form
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_LEAST_ROWS = 33  # of a: fewer are streamed
_APART = 1.27  # times as long memory takes, if tiles that read the same of b do so far from each other
_WIDTHS = tuple(range(48, 257, 16))


class TurnedGemm(WgmmaGemm):
    """`WgmmaGemm` of 64, 128, 192 or 256 columns of b by as many rows of a as a wgmma takes columns.

    A tile may have any multiple of 16 rows up to 256, so tiles can fill waves where those of multiples
    of 64 rows don't, or end with the rows of a. Columns of tiles of b that lies across k are better
    multiples of 64, for others begin within a line of memory.
    """

    name = "cuda.gemm_turned"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not super().covers(workload, target) or workload.is_generic or workload["batch"] != 1:
            return False
        (m,) = workload.dims("m")
        return m >= _LEAST_ROWS and workload["out_dtype"] != "float32"

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(turned(workload), target)
        (m,) = workload.dims("m")
        own = {
            "bn": Knob("bn", tuple(bn for bn in _WIDTHS if bn < 2 * m)),
            "split_k": Knob("split_k", (1,)),
        }
        knobs = (*(own.get(knob.name, knob) for knob in whole.knobs), Knob("chained", (1,)))

        def is_legal(config: Config) -> bool:
            """Leave registers for turning where three warpgroups have few, as compiling showed."""
            return whole.is_legal(config) and (
                config.number("consumers") < 3 or sums_of(config) <= FEWER_SUMS
            )

        return Space(self.name, knobs, is_legal)

    def choices(self, workload: Workload) -> list[Config]:
        return list(_CHOICES)

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return super().estimate(turned(workload), target, config)

    def apart(self, workload: Workload, tiles: Tiles) -> float:
        """Return the same of what are rows here: tiles of a row read the same of the caller's b."""
        (n,) = workload.dims("n")
        return _APART if tiles.abreast < min(math.ceil(n / tiles.bn), 4) else 1.0

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return super().features(turned(workload), target, config)

    def form_of(self, workload: Workload, config: Config) -> Form:
        form = super().form_of(workload, config)
        return replace(form, trans_a=not form.trans_b, trans_b=not form.trans_a, turned=True)


def turned(workload: Workload) -> Workload:
    """Return the product c^T = b^T a^T that is made in place of `workload`."""
    lies = {"trans_a": not workload["trans_b"], "trans_b": not workload["trans_a"]}
    return workload.replace(m=workload["n"], n=workload["m"], **lies)


_CHOICES = tuple(
    Config.of(
        bm=bm,
        bn=bn,
        bk=64,
        consumers=consumers,
        cluster=cluster,
        split_k=1,
        group=group,
        beside=1,
        chained=1,
    )
    for (bm, consumers), bn, cluster, group in itertools.product(
        ((64, 1), (128, 1), (128, 2), (192, 1), (192, 3), (256, 2)), _WIDTHS, (1, 2), (1, 2, 8)
    )
)
