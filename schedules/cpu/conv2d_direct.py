"""What the templates of direct convolutions share: some knobs, and what their estimates count with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from tvmops.ops import op_of
from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.emit import ALL
from tvmops.space import Config, Knob
from tvmops.targets import Target
from tvmops.workloads import Workload

FMA_LATENCY = 4  # cycles, on each x86 and ARM core of the last decade
LAUNCH_CYCLES = 10_000  # to start threads and to wait for the last
_SMALL = 1_000_000  # operations; for fewer, starting threads costs more than it saves


_Own = TypeVar("_Own", bound="Tiling")


@dataclass(frozen=True)
class Tiling:
    """The knobs, as numbers."""

    mr: int
    nv: int
    cu: int
    rows: int
    pack_x: bool
    split_co: int
    split_px: int
    parallel: bool

    @classmethod
    def of(cls: type[_Own], config: Config) -> _Own:
        return cls(**config.as_dict())  # type: ignore[arg-type]


def is_parallel(workload: Workload) -> bool:
    """Say whether threads are worth their start, without any tuning."""
    return op_of(workload).flops(workload) >= _SMALL


def row_knob(shape: ConvShape) -> Knob:
    """Return the choices of `rows`, the rows of the output that share a copy of rows of x."""
    some = tuple(rows for rows in (1, 2, 4, 7, 8, 14, 16, 28, 56) if rows < int(shape.oh))
    return Knob("rows", (ALL,) if shape.is_pointwise else (*some, ALL))


def sharing_knobs(workload: Workload, target: Target) -> tuple[Knob, ...]:
    """Return the choices of how tasks share channels and pixels, and whether they run side by side."""
    splits = tuple(parts for parts in range(1, 2 * target.cores + 1) if 2 * target.cores % parts == 0)
    small = op_of(workload).flops(workload) < 4 * _SMALL
    return (
        Knob("split_co", splits),
        Knob("split_px", splits),
        Knob("parallel", (False, True) if small else (True,)),
    )
