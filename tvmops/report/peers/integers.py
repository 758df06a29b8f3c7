"""What peers make of integer operands: the plain integers, scales and zero points behind our layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmops.ops import op_of
from tvmops.signatures import SIGNATURES
from tvmops.signatures.layouts import PLAIN, layout_of
from tvmops.signatures.matmul_weight_only import groups_of
from tvmops.workloads import Workload


@dataclass(frozen=True)
class Integers:
    """Operands of matmul_int8; scales of those that are rescaled, 1 where there are none."""

    a: Any
    b: Any  # (k, n)
    is_constant: bool  # b
    a_zero_point: int
    a_scale: float
    b_scales: Any  # (n,)
    bias: Any | None
    out_scale: float
    out_zero_point: int

    @classmethod
    def of(cls, workload: Workload, inputs: Sequence[Any]) -> Integers:
        given = dict(zip((spec.name for spec in SIGNATURES[workload.op].inputs(workload)), inputs))
        names = SIGNATURES[workload.op].scalars(workload)
        scalars = dict(zip(names, op_of(workload).scalars(workload)))
        b, is_constant = given["b"], workload["packed"] != PLAIN
        if is_constant:
            b = np.ascontiguousarray(layout_of(workload).unpack(b, *workload.dims("k", "n")))
        return cls(
            given["a"],
            b,
            is_constant,
            int(scalars["a_zero_point"]),
            scalars.get("scale", 1.0),
            given.get("b_scales", np.ones(b.shape[1], np.float32)),
            given.get("bias"),
            scalars.get("out_scale", 1.0),
            int(scalars.get("out_zero_point", 0)),
        )


@dataclass(frozen=True)
class Grouped:
    """Weights alone: unsigned integers (n, k), scales and zero points (n, groups) of uint8."""

    offsets: Any
    scales: Any
    zero_points: Any
    bits: int
    group: int

    @classmethod
    def of(cls, workload: Workload, packed: Any) -> Grouped | None:
        """Return what `packed` holds; None where a group goes beyond k, which no peer has."""
        n, k = workload.dims("n", "k")
        layout = groups_of(workload)
        if k % layout.group:
            return None
        offsets, scales, zeros = layout.parts(packed, n)
        return cls(offsets, scales, zeros.astype(np.uint8), layout.bits, layout.group)


def nibbles(values: Any) -> Any:
    """Return pairs of neighbours as one byte, the first in the low bits; the last stays alone."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    return values[..., ::2] | values[..., 1::2] << 4
