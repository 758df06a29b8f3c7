"""PyTorch on integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tvmops.machine import physical_cores
from tvmops.report.peers.base import Call, MakeCall, reporting
from tvmops.report.peers.integers import Grouped, Integers
from tvmops.workloads import Workload


def matmul_int8(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """`_int_mm` for sums; oneDNN's linear, as its compiler calls it, for the rest, with a constant b.

    For rows of int8 oneDNN has nothing but its reference, a thousand times slower: linear gets them
    as uint8, as PyTorch itself quantises what weights of int8 are to multiply.
    """
    if workload["activation"] != "none":
        return None
    torch.set_num_threads(physical_cores())
    given, out = Integers.of(workload, inputs), torch.from_numpy(outputs[0])
    a, b = torch.from_numpy(given.a), torch.from_numpy(given.b)
    if workload["out_dtype"] == "int32":
        return _sums(given, a, b, out)
    if not given.is_constant:
        return None
    weight = torch.ops.onednn.qlinear_prepack(b.T.contiguous(), None)
    scales, zeros = torch.from_numpy(given.b_scales), torch.zeros(b.shape[1], dtype=torch.int32)
    bias = None if given.bias is None else torch.from_numpy(given.bias)
    rows, zero_point = _unsigned(a, given.a_zero_point)
    left = rows, given.a_scale, zero_point
    right = weight, scales, zeros, bias
    result = given.out_scale, given.out_zero_point, out.dtype

    def compute() -> torch.Tensor:
        with torch.inference_mode():
            made: torch.Tensor = torch.ops.onednn.qlinear_pointwise(*left, *right, *result, "none", [], "")
            return made

    return reporting(compute, out.copy_)


def _unsigned(a: torch.Tensor, zero_point: int) -> tuple[torch.Tensor, int]:
    """Return `a` and its zero point as uint8, 128 more where they are int8."""
    if a.dtype == torch.uint8:
        return a, zero_point
    return (a.int() + 128).to(torch.uint8), zero_point + 128


def _sums(given: Integers, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Call:
    """Return a call that takes the zero point off again, which `_int_mm` does not have."""
    offset = b.sum(0, dtype=torch.int32) * given.a_zero_point if given.is_constant else None

    def call() -> torch.Tensor:
        with torch.inference_mode():
            off = b.sum(0, dtype=torch.int32) * given.a_zero_point if offset is None else offset
            torch._int_mm(a, b, out=out)
            return out.sub_(off)

    return call


def matmul_weight_only(workload: Workload, inputs: Sequence[Any], outputs: Sequence[Any]) -> Call | None:
    """`_weight_int4pack_mm_for_cpu`, in float32; it has no form for 8 bits of x."""
    x, packed = inputs
    if workload["bits"] != "4" or workload["x_bits"] == "8":
        return None
    weights = Grouped.of(workload, packed)
    n, k = workload.dims("n", "k")
    if weights is None or weights.group not in (32, 64, 128, 256) or n % 16 or k % 2:
        return None
    torch.set_num_threads(physical_cores())
    scales, zeros = torch.from_numpy(weights.scales.copy()), torch.from_numpy(weights.zero_points)
    w = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(weights.offsets).int(), 2)
    # it computes (q - 8) * scale + zero
    affine = torch.stack([scales, (8.0 - zeros) * scales], 2).transpose(0, 1).contiguous()
    rows, out = torch.from_numpy(x), torch.from_numpy(outputs[0])

    def compute() -> torch.Tensor:
        with torch.inference_mode():
            made: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, w, weights.group, affine)
            return made

    return reporting(compute, out.copy_)


CALLS: dict[str, MakeCall] = {"matmul_int8": matmul_int8, "matmul_weight_only": matmul_weight_only}
