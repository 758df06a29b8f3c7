"""Which functions are made of schedule blocks: those of sketch search, not those of templates."""

from __future__ import annotations

from tvm import s_tir, tirx


def has_blocks(function: tirx.PrimFunc) -> bool:
    """True if `function` is made of schedule blocks: it ends with the one at their root."""
    body = function.body
    last = body.seq[-1] if isinstance(body, tirx.SeqStmt) else body
    return isinstance(last, s_tir.SBlockRealize)
