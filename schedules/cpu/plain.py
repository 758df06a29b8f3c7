"""A schedule for any tensor expression: outer loops run in parallel, the innermost in vectors."""

from __future__ import annotations

from tvm import IRModule, s_tir, tirx

_VECTORS = 4  # accumulated side by side: enough to hide a good part of the latency of one


def plain_schedule(module: IRModule, lanes: int) -> s_tir.Schedule:
    """Return `module` with each block of `main` spread over cores and vectors of `lanes`.

    A block that these steps do not fit stays as it is.
    """
    schedule = s_tir.Schedule(module)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        attempt = schedule.copy()
        try:
            _spread(attempt, block, lanes)
        except s_tir.ScheduleError:
            continue
        schedule = attempt
    return schedule


def _spread(schedule: s_tir.Schedule, block: s_tir.schedule.SBlockRV, lanes: int) -> None:
    """Vectors of the last axis innermost, sums around them, all other axes one parallel loop."""
    sums = [axis.iter_type == tirx.IterVar.CommReduce for axis in schedule.get(block).iter_vars]
    if all(sums):
        return
    copy = schedule.cache_write(block, 0, "global") if any(sums) else None
    loops = schedule.get_loops(block)
    *outer, last = [loop for loop, is_sum in zip(loops, sums) if not is_sum]
    inner = [loop for loop, is_sum in zip(loops, sums) if is_sum]
    chunk, vector = schedule.split(last, [None, _divisor(int(schedule.get(last).extent), _VECTORS * lanes)])
    schedule.reorder(*outer, chunk, *inner, vector)
    task = schedule.fuse(*outer, chunk)
    schedule.parallel(task)
    schedule.vectorize(vector)
    if copy is not None:  # accumulators of a task, in registers
        schedule.reverse_compute_at(copy, task)
        schedule.vectorize(schedule.get_loops(copy)[-1])
        schedule.decompose_reduction(block, inner[0])


def _divisor(extent: int, most: int) -> int:
    """Return the largest divisor of `extent` up to `most`."""
    return max(size for size in range(1, min(extent, most) + 1) if extent % size == 0)
