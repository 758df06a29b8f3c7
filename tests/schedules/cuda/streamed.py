"""Run a kernel of `stream` here, amid guards, and say how wrong it is."""

from __future__ import annotations

from pathlib import Path

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules.cuda.streaming import StreamTemplate, tiles_of
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

H100 = target("nvidia-h100")


def error_of(template: StreamTemplate, work: Workload, knobs: Config, folder: Path) -> float:
    """Return the largest error, as a share of what is allowed."""
    cubin = compiled(template, work, H100, knobs)
    form, tiles = template.stream(work).form, tiles_of(knobs)
    blocks = blocks_of(work, tiles.rows, form.columns * tiles.spans * tiles.warps_n) * tiles.splits
    launch = Launch(blocks, tiles.splits, form.shared_bytes(tiles))
    return error_here(cubin, work, launch, folder) / op_of(work).tolerance(work)
