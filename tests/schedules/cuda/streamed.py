"""Run a kernel of `stream` here, amid guards, and say how wrong it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import emulated
from tvmops.ops import op_of
from tvmops.schedules.cuda.streaming import StreamTemplate, tiles_of
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

H100 = target("nvidia-h100")
_GUARD = 64  # elements


def error_of(template: StreamTemplate, work: Workload, knobs: Config, folder: Path) -> float:
    """Return the largest error, as a share of what is allowed."""
    cubin = compiled(template, work, H100, knobs)
    assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
    form = template.stream(work).form
    op, dtype, tiles = op_of(work), str(work["dtype"]), tiles_of(knobs)
    inputs, specs = op.random_inputs(work, seed=1), op.inputs(work)
    (right,) = op.reference(work, *(decode(a, s.dtype) for a, s in zip(inputs, specs)))
    m, n, k = work.dims("m", "n", "k")
    memory = np.full(right.size + 2 * _GUARD, 0xFFFF, np.uint16).view(inputs[0].dtype)  # NaN
    arguments: dict[str, object] = dict(zip((spec.name for spec in specs), inputs))
    arguments |= {"c": memory[_GUARD:-_GUARD].reshape(right.shape), "m": m, "n": n, "k": k}
    columns = form.columns * tiles.spans * tiles.warps_n
    grid = -(-m // tiles.rows) * -(-n // columns) * tiles.splits
    shared = form.shared_bytes(tiles)
    emulated(cubin, folder)(grid, arguments, cluster=tiles.splits, shared_bytes=shared)
    bits = memory.view(np.uint16)
    assert (bits[:_GUARD] == 0xFFFF).all() and (bits[-_GUARD:] == 0xFFFF).all()
    found = decode(memory[_GUARD:-_GUARD].reshape(right.shape), dtype).astype(np.float64)
    return float(np.abs(found - right).max() / op.tolerance(work))
