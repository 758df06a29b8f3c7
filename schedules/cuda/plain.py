"""A schedule for any tensor expression on a GPU: a block a row of the result, its elements by threads."""

from __future__ import annotations

from typing import TypeAlias

from tvm import IRModule, s_tir, tirx

_THREADS = 256  # of a block, at most
_WARP = 32

Block: TypeAlias = s_tir.schedule.SBlockRV
Loop: TypeAlias = s_tir.schedule.LoopRV


def plain_schedule(module: IRModule) -> s_tir.Schedule:
    """Return `module` as one kernel, whose intermediate results stay on the multiprocessor.

    What all elements of a row need, such as the sum of its exponentials, the threads of a block
    compute together; a thread computes what it alone needs.
    """
    schedule = s_tir.Schedule(module)
    _inline(schedule)
    *stages, result = schedule.get_child_blocks(schedule.get_sblock("root"))
    copy = schedule.cache_write(result, 0, "local") if any(_sums(schedule, result)) else None
    (*outer, last), inner = _loops(schedule, result)
    width = min(_THREADS, -(-int(schedule.get(last).extent) // _WARP) * _WARP)
    along = _left_out(schedule, stages, result)
    rows = [loop for index, loop in enumerate(outer) if index not in along]
    row = schedule.add_unit_loop(outer[0] if outer else last) if not rows else rows[0]
    chunk, thread = schedule.split(last, [None, width])
    schedule.reorder(row, *rows[1:], chunk, thread, *(outer[index] for index in along), *inner)
    row = schedule.fuse(row, *rows[1:])
    schedule.bind(row, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    if copy is not None:  # a sum grows in a register
        schedule.reverse_compute_at(copy, thread)
    for stage in reversed(stages):
        schedule.compute_at(stage, row, preserve_unit_loops=True)
        elements, sums = _loops(schedule, stage)
        if all(int(schedule.get(element).extent) == 1 for element in elements):
            schedule.set_scope(stage, 0, "shared")
            _, part = schedule.split(schedule.fuse(*sums), [None, width])
            schedule.bind(part, "threadIdx.x")
        else:
            schedule.set_scope(stage, 0, "local")
            schedule.compute_at(stage, thread, preserve_unit_loops=True)
    return schedule


def _left_out(schedule: s_tir.Schedule, stages: list[Block], result: Block) -> list[int]:
    """Return the axes of the result, but the last, along which all it reads of earlier stages is the same.

    A thread takes all elements along these, lest it computes the same again for each.
    """
    made = [schedule.get(stage).writes[0].source for stage in stages]
    axes = schedule.get(result).iter_vars
    reads = [
        read for read in schedule.get(result).reads if any(read.source.same_as(source) for source in made)
    ]
    used = [step.min for read in reads for step in read.region]
    *outer, _ = [axis for axis, is_sum in zip(axes, _sums(schedule, result)) if not is_sum]
    return [
        index
        for index, axis in enumerate(outer)
        if reads and not any(axis.var.same_as(each) for each in used)
    ]


def _inline(schedule: s_tir.Schedule) -> None:
    """Compute where it is needed what is no sum."""
    *stages, _ = schedule.get_child_blocks(schedule.get_sblock("root"))
    for stage in stages:
        if not any(_sums(schedule, stage)):
            schedule.compute_inline(stage)


def _sums(schedule: s_tir.Schedule, block: Block) -> list[bool]:
    """Say of each axis of `block` whether it is summed along."""
    return [axis.iter_type == tirx.IterVar.CommReduce for axis in schedule.get(block).iter_vars]


def _loops(schedule: s_tir.Schedule, block: Block) -> tuple[list[Loop], list[Loop]]:
    """Return the innermost loops around `block`, one an axis: over its elements, and over sums."""
    sums = _sums(schedule, block)
    loops = schedule.get_loops(block)[-len(sums) :]
    return (
        [loop for loop, is_sum in zip(loops, sums) if not is_sum],
        [loop for loop, is_sum in zip(loops, sums) if is_sum],
    )
