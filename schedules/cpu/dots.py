"""Which instructions for products of words a target has, the one for many rows first."""

from __future__ import annotations

from tvmops.schedules.cpu.dot import Dot
from tvmops.schedules.cpu.dot_arm import Bfdot, Bfmmla, Sdot, Smmla
from tvmops.schedules.cpu.dot_plain import Floats, Singles
from tvmops.schedules.cpu.dot_x86 import Bfloat16, Pairs, Vnni
from tvmops.signatures.dtypes import BFLOAT16
from tvmops.targets import Target
from tvmops.workloads import Workload


def integer_dots(target: Target) -> tuple[Dot, ...]:
    """Return how `target` can multiply words of four integers."""
    has = set(target.needs)
    if {"avx512_vnni", "avx512vl"} <= has:
        return (Vnni(),)
    if target.arch == "x86_64":
        return (Pairs(),)
    arm: tuple[tuple[str, Dot], ...] = (("i8mm", Smmla()), ("asimddp", Sdot()))
    return tuple(dot for feature, dot in arm if feature in has) or (Singles(),)


def bfloat16_dots(target: Target) -> tuple[Dot, ...]:
    """Return how `target` can multiply words of two bfloat16."""
    if "avx512_bf16" in target.needs and target.vector_bits == 512:
        return (Bfloat16(),)
    return (Bfmmla(), Bfdot()) if "bf16" in target.needs else (Floats(),)


def products_at_once(workload: Workload, target: Target) -> float:
    """Return how many products a lane of the best instruction for `workload` makes; of float32 it is one."""
    fields = dict(workload.items)
    if workload.op == "matmul_int8" or fields.get("x_bits") == "8":
        dots, each = integer_dots(target), 4
    elif workload.op in ("matmul", "attention") and fields["dtype"] == BFLOAT16:
        dots, each = bfloat16_dots(target), 2
    else:
        return 1.0
    return max(each * dot.side / dot.parts for dot in dots)
