"""Features of the code that a config becomes, for a cost model: what its loops hold, and how often.

After T. Chen et al., Learning to Optimize Tensor Programs, NeurIPS 2018, section 3.1. Counts are
of vector operations, weighted by the extents of the loops around them; plain counts say how
large the code is, which decides whether it fits the instruction cache and the register file.
"""

from __future__ import annotations

from math import log2
from typing import Any

import tvm_ffi
from tvm import IRModule, tirx

_UNKNOWN = 8.0  # iterations of a loop whose extent is no number
_RARELY = 0.1  # how often the second side of a branch is taken: it is the edge of a shape


def code_features(module: IRModule) -> dict[str, float]:
    """Return logarithms of what is counted in the function `main` of `module`."""
    counts = dict.fromkeys(_NAMES, 0.0)
    _count(module["main"].body, 1.0, counts)
    return {f"code_{name}": log2(1 + counts[name]) for name in _NAMES}


_NAMES = (
    *("loads", "stores", "products"),  # as often as they run
    *("load_sites", "store_sites", "product_sites"),  # in the code
    *("branches", "loops", "iterations", "tasks"),
)


def _count(statement: Any, weight: float, counts: dict[str, float]) -> None:
    """Add what `statement`, which runs `weight` times, holds."""
    if isinstance(statement, tirx.SeqStmt):
        for each in statement.seq:
            _count(each, weight, counts)
    elif isinstance(statement, tirx.For):
        extent = float(statement.extent.value) if isinstance(statement.extent, tirx.IntImm) else _UNKNOWN
        counts["loops"] += 1
        counts["iterations"] += weight * extent
        if statement.kind == tirx.ForKind.PARALLEL:
            counts["tasks"] += extent
        _count(statement.body, weight * extent, counts)
    elif isinstance(statement, tirx.IfThenElse):
        counts["branches"] += 1
        _count(statement.then_case, weight, counts)
        if statement.else_case is not None:
            _count(statement.else_case, weight * _RARELY, counts)
    elif isinstance(statement, tirx.BufferStore | tirx.Evaluate):
        counts["store_sites"] += 1
        counts["stores"] += weight
        _count_expressions(statement, weight, counts)
    elif getattr(statement, "body", None) is not None:
        _count(statement.body, weight, counts)


def _count_expressions(statement: Any, weight: float, counts: dict[str, float]) -> None:
    def note(node: Any) -> None:
        if type(node).__name__ == "TensorLoad":  # `tirx.BufferLoad` makes these, and is no class
            kind = "load"
        elif isinstance(node, tirx.Mul) and "float" in str(node.ty):  # not of an index
            kind = "product"
        else:
            return
        counts[f"{kind}_sites"] += 1
        counts[f"{kind}s"] += weight

    tvm_ffi.structural_walk(statement, note, order="pre")
