"""Products of 16 bits with some rows on Hopper, as c^T = b^T a^T; `kernels.gemm_wgmma` says how."""

from __future__ import annotations

import math
from dataclasses import replace

from tvmops.schedules.cuda.gemm_wgmma import WgmmaGemm
from tvmops.schedules.cuda.kernels.gemm_arrays import Form
from tvmops.schedules.template import GenericKernel
from tvmops.space import Config, Knob, Space
from tvmops.targets import Target
from tvmops.workloads import Workload

_LEAST_ROWS, _MOST_ROWS = 33, 512  # of a
_WIDEST = 256  # columns of a wgmma


class TurnedGemm(WgmmaGemm):
    """`WgmmaGemm` of columns of b by all rows of a, or some: each byte of b is read once.

    A tile has 64 or 128 columns of b, and as many rows of a as a wgmma takes columns: of 8 to 256
    any multiple of 8. Blocks of a cluster share k, for tiles are few.
    """

    name = "cuda.gemm_turned"
    version = 1

    def covers(self, workload: Workload, target: Target) -> bool:
        if not super().covers(workload, target) or workload.is_generic or workload["batch"] != 1:
            return False
        (m,) = workload.dims("m")
        return _LEAST_ROWS <= m <= _MOST_ROWS and not workload["out_dtype"] == "float32"

    def space(self, workload: Workload, target: Target) -> Space:
        whole = super().space(_turned(workload), target)
        own = {"bn": Knob("bn", _widths(workload)), "split_k": Knob("split_k", (2, 3, 4, 5, 6, 7, 8))}
        knobs = tuple(own.get(knob.name, knob) for knob in whole.knobs)
        return Space(
            self.name,
            (*knobs, Knob("chained", (1, 4))),
            lambda c: c["bm"] != 256 and whole.is_legal(c),
        )

    def choices(self, workload: Workload) -> list[Config]:
        return [
            Config.of(
                bm=bm,
                bn=bn,
                bk=64,
                consumers=bm // 64,
                cluster=1,
                split_k=parts,
                group=1,
                beside=1,
                chained=1,
            )
            for bm in (64, 128)
            for bn in _widths(workload)
            for parts in (2, 3, 5, 7)
        ]

    def generic(self, workload: Workload, target: Target) -> list[GenericKernel]:
        return []

    def estimate(self, workload: Workload, target: Target, config: Config) -> float:
        return super().estimate(_turned(workload), target, config)

    def features(self, workload: Workload, target: Target, config: Config) -> dict[str, float]:
        return super().features(_turned(workload), target, config)

    def form_of(self, workload: Workload, config: Config) -> Form:
        form = super().form_of(workload, config)
        return replace(form, trans_a=not form.trans_b, trans_b=not form.trans_a, turned=True)


def _turned(workload: Workload) -> Workload:
    """Return the product c^T = b^T a^T that is made in place of `workload`."""
    lies = {"trans_a": not workload["trans_b"], "trans_b": not workload["trans_a"]}
    return workload.replace(m=workload["n"], n=workload["m"], **lies)


def _widths(workload: Workload) -> tuple[int, ...]:
    """Return the rows of a of a tile: all of them, or equal parts."""
    (m,) = workload.dims("m")
    fewest = math.ceil(m / _WIDEST)
    return tuple(sorted({math.ceil(math.ceil(m / parts) / 8) * 8 for parts in (fewest, 2 * fewest)}))
