"""What a blocking of a Winograd convolution costs: an estimate in cycles of one core."""

from __future__ import annotations

from math import ceil

from tvmops.schedules.cpu.conv2d import ConvShape
from tvmops.schedules.cpu.winograd_grid import Grid
from tvmops.schedules.cpu.winograd_nest import Blocking
from tvmops.signatures.winograd import CHANNELS
from tvmops.targets import Target
from tvmops.workloads import Workload

_FMA_LATENCY = 4  # cycles, on each x86 and ARM core of the last decade
_L2_BYTES_A_CYCLE = 32
_L3_BYTES_A_CYCLE = 10
_MEMORY_BYTES_A_CYCLE = 4
_LAUNCH_CYCLES = 10_000  # to start threads and to wait for the last

# Cycles a vector of channels of one tile, for a transform: its arithmetic, loads and stores.
_TRANSFORM_CYCLES = {2: 70, 4: 170, 6: 330}


def cost(workload: Workload, target: Target, m: int, blocking: Blocking) -> float:
    """Estimate the cycles of `blocking`."""
    grid = Grid.of(ConvShape.of(workload), m, blocking.rows, blocking.columns)
    blocks = int(grid.blocks)
    ci, co = workload.dims("ci", "co")
    width = target.vector_width("float32")
    places = (m + 2) ** 2
    cores = target.cores if blocking.parallel else 1
    panels = ceil(co / (blocking.nb * CHANNELS))
    groups = ceil(panels / (blocking.panels or panels))
    vectors = ceil(ci / width)
    tiles = blocks * grid.tiles
    image = _TRANSFORM_CYCLES[m] * tiles * vectors
    result = _TRANSFORM_CYCLES[m] * tiles * ceil(co / width)
    products = blocks * places * panels * _panel(target, blocking, grid, ci, co, places)
    if not blocking.shared:
        busiest = (image + products + result) * _share(blocks, cores)
    else:
        busiest = image * _share(blocks * vectors, cores)
        busiest += (products + result) * _share(blocks * groups, cores)
    return busiest + blocking.parallel * (1 + blocking.shared) * _LAUNCH_CYCLES


def _share(tasks: int, cores: int) -> float:
    """Return the part of `tasks` that the busiest core does."""
    return ceil(tasks / cores) / tasks


def _panel(target: Target, blocking: Blocking, grid: Grid, ci: int, co: int, places: int) -> float:
    """Return the cycles of multiplying a block of tiles by one panel of the weights of one place."""
    vectors = blocking.nb * CHANNELS // target.vector_width("float32")
    multiplies, loads = blocking.mr * vectors, blocking.mr + vectors
    step = max(multiplies, loads, _FMA_LATENCY) + 1 / blocking.ku
    compute = ceil(grid.tiles / blocking.mr) * (ci * step + 3 * multiplies + 10)
    weights = 4 * places * ci * co
    nearest = target.l2_bytes - 8 * places * grid.tiles * ci
    rate = (
        _L2_BYTES_A_CYCLE
        if weights < nearest
        else _L3_BYTES_A_CYCLE
        if weights < target.l3_bytes * 0.7
        else _MEMORY_BYTES_A_CYCLE
    )
    read = 4 * ci * blocking.nb * CHANNELS / rate
    return max(compute, read) + 0.2 * min(compute, read)
