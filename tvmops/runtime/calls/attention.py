"""Calls of attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import numpy as np

from tvmops.errors import CallError, CallTypeError
from tvmops.runtime.arrays import as_bytes, broadcast, dtype_of, is_dense, view
from tvmops.runtime.calls.base import Call, float_dtype, shape_of
from tvmops.signatures import SIGNATURES
from tvmops.signatures.attention import BHLD, BLHD, MASK_DTYPES, MASK_SIZES, THD
from tvmops.signatures.dtypes import BFLOAT16, decode
from tvmops.workloads import Workload

OP = "attention"
_ALIGNS = ("bottom-right", "top-left")


def call(
    q: Any,
    k: Any,
    v: Any,
    causal: bool = False,
    scale: float | None = None,
    mask: Any = None,
    align: str = "bottom-right",
    lengths: Any = None,
    block_table: Any = None,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
) -> Call:
    """Return the call that `Library.attention` makes of its arguments.

    Where q, k and v are views of (batch, length, heads, head_dim) they are taken as they lie; where
    a library has no kernel for that, the call's `otherwise` copies them.
    """
    q, k, v = (view(OP, name, array) for name, array in (("q", q), ("k", k), ("v", v)))
    packing = {
        "cu_seqlens_q": cu_seqlens_q,
        "max_seqlen_q": max_seqlen_q,
        "cu_seqlens_k": cu_seqlens_k,
        "max_seqlen_k": max_seqlen_k,
    }
    if any(each is not None for each in packing.values()):
        cache = {"lengths": lengths, "block_table": block_table}
        return _packed({"q": q, "k": k, "v": v}, packing, cache, mask, causal, align, scale)
    batch, heads, q_len, head_dim = shape_of(OP, "q", q, 4)
    outer, kv_heads, rows, _ = shape_of(OP, "k", k, 4)
    inputs: dict[str, Any] = {"q": q, "k": k, "v": v}
    of_cache, kv_len = _cache(inputs, batch, outer, rows, lengths, block_table)
    of_kv = (outer if block_table is not None else batch, kv_heads, rows, head_dim)
    _check(OP, "k", k.shape, of_kv)
    _check(OP, "v", v.shape, of_kv)
    _check_heads(k, heads, kv_heads)
    _check_align(align)
    dtype = float_dtype(q)
    fields: dict[str, Any] = {
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "q_len": q_len,
        "kv_len": kv_len,
        "head_dim": head_dim,
        "causal": bool(causal),
        "align": align if causal and (q_len != kv_len or of_cache) else "bottom-right",
        "dtype": dtype,
        **of_cache,
    }
    if mask is not None:
        inputs["mask"], of_mask = _mask(_widened(mask, dtype), (batch, heads, q_len, kv_len))
        if min(batch, heads, q_len, kv_len) > 0:
            fields.update(of_mask)

    def made(arrays: dict[str, Any], layout: str, otherwise: Callable[[], Call] | None) -> Call:
        shape = (batch, heads, q_len, head_dim)
        given = {**inputs, **arrays}
        return Call.of(OP, given, (_scale(scale, head_dim),), (shape,), otherwise, layout=layout, **fields)

    turned = {name: inputs[name].swapaxes(1, 2) for name in "qkv"}
    if not all(is_dense(inputs[name]) for name in "qkv") and all(map(is_dense, turned.values())):
        copied = None if block_table is not None else lambda: made({}, BHLD, None)  # a pool is too large
        return made(turned, BLHD, copied)
    return made({}, BHLD, None)


def _packed(
    inputs: dict[str, Any],
    packing: dict[str, Any],
    cache: dict[str, Any],
    mask: Any,
    causal: bool,
    align: str,
    scale: float | None,
) -> Call:
    """Return the call on sequences that lie one after the other, or whose keys lie in pages."""
    _check_packing(packing, cache, mask)
    total_q, heads, head_dim = shape_of(OP, "q", inputs["q"], 3)
    inputs["cu_seqlens_q"] = view(OP, "cu_seqlens_q", packing["cu_seqlens_q"])
    (ends,) = shape_of(OP, "cu_seqlens_q", inputs["cu_seqlens_q"], 1)
    if ends < 2:
        expected = "at least 2 offsets, one more than there are sequences"
        raise CallError(op=OP, argument="cu_seqlens_q", value=f"of {ends}", expected=expected)
    of_keys = _pool if cache["block_table"] is not None else _packed_keys
    kv_heads, fields = of_keys(inputs, packing, cache, ends - 1, head_dim)
    _check_heads(inputs["k"], heads, kv_heads)
    _check_align(align)
    return Call.of(
        OP,
        inputs,
        (_scale(scale, head_dim),),
        batch=ends - 1,
        heads=heads,
        kv_heads=kv_heads,
        q_len=_bound("max_seqlen_q", packing["max_seqlen_q"], total_q, ends - 1),
        head_dim=head_dim,
        causal=bool(causal),
        align=align if causal else "bottom-right",
        layout=THD,
        total_q=total_q,
        dtype=float_dtype(inputs["q"]),
        **fields,
    )


def _check_packing(packing: dict[str, Any], cache: dict[str, Any], mask: Any) -> None:
    """Refuse what goes with no packed queries, and what is missing beside them."""
    paged = cache["block_table"] is not None
    with_pages = {"cu_seqlens_k": not paged, "max_seqlen_k": not paged, "lengths": paged, "mask": False}
    wanted = {"cu_seqlens_q": True, "max_seqlen_q": True, **with_pages}
    others = "a block_table" if paged else "packed keys"
    for name, is_wanted in wanted.items():
        value = {**packing, **cache, "mask": mask}[name]
        if (value is not None) != is_wanted:
            expected = f"{'given' if is_wanted else 'None'} beside packed queries and {others}"
            given = "None" if value is None else "given"
            raise CallError(op=OP, argument=name, value=given, expected=expected)


def _packed_keys(
    inputs: dict[str, Any], packing: dict[str, Any], cache: dict[str, Any], sequences: int, head_dim: int
) -> tuple[int, dict[str, Any]]:
    """Add what tells packed keys apart to the inputs; return how many heads they have, and their fields."""
    total_k, kv_heads, _ = shape_of(OP, "k", inputs["k"], 3)
    for name in "kv":
        _check(OP, name, inputs[name].shape, (total_k, kv_heads, head_dim))
    inputs["cu_seqlens_k"] = view(OP, "cu_seqlens_k", packing["cu_seqlens_k"])
    kv_len = _bound("max_seqlen_k", packing["max_seqlen_k"], total_k, sequences)
    return kv_heads, {"kv_len": kv_len, "total_k": total_k}


def _pool(
    inputs: dict[str, Any], packing: dict[str, Any], cache: dict[str, Any], sequences: int, head_dim: int
) -> tuple[int, dict[str, Any]]:
    """Add lengths and block_table to the inputs, and pools as they lie; return heads and fields."""
    pages, kv_heads, page_size, _ = shape_of(OP, "k", inputs["k"], 4)
    for name in "kv":
        _check(OP, name, inputs[name].shape, (pages, kv_heads, page_size, head_dim))
        inputs[name] = inputs[name].swapaxes(1, 2)
        if not is_dense(inputs[name]):
            expected = "a view of dense (pages, page_size, kv_heads, head_dim) beside packed queries"
            raise CallError(op=OP, argument=name, value="of other strides", expected=expected)
    fields, kv_len = _cache(inputs, sequences, pages, page_size, **cache)
    return kv_heads, {**fields, "kv_len": kv_len}


def _bound(name: str, value: Any, total: int, sequences: int) -> int:
    """Return a bound of the lengths: none is longer than all together, some as long as the mean."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        expected = "how many rows the longest sequence has, an int of the host"
        raise CallTypeError(op=OP, argument=name, value=repr(value), expected=expected)
    return min(max(value, -(-total // sequences)), total)


def _check_heads(k: Any, heads: int, kv_heads: int) -> None:
    if heads % kv_heads if kv_heads else heads:
        expected = f"a number of heads that divides the {heads} of q"
        raise CallError(op=OP, argument="k", value=f"of shape {tuple(k.shape)}", expected=expected)


def _check_align(align: str) -> None:
    if align not in _ALIGNS:
        raise CallError(op=OP, argument="align", value=repr(align), expected=" or ".join(map(repr, _ALIGNS)))


def _cache(
    inputs: dict[str, Any], batch: int, outer: int, rows: int, lengths: Any, block_table: Any
) -> tuple[dict[str, Any], int]:
    """Add `lengths` and `block_table` to the inputs; return their fields, and how many keys there may be."""
    if lengths is None:
        if block_table is not None:
            expected = "the lengths of the sequences, as there is a block_table"
            raise CallError(op=OP, argument="lengths", value="None", expected=expected)
        return {}, rows
    inputs["lengths"] = view(OP, "lengths", lengths)
    if block_table is None:
        return {"lengths": True}, rows
    table = view(OP, "block_table", block_table)
    _check(OP, "block_table", table.shape[:1], (batch,))
    columns = shape_of(OP, "block_table", table, 2)[1]
    inputs["block_table"] = table
    return {"lengths": True, "pages": outer, "page_size": rows}, columns * rows


def arguments(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of `Library.attention` that make it `workload` on these arrays."""
    specs = SIGNATURES[OP].inputs(workload)
    given = {spec.name: array for spec, array in zip(specs, inputs)}
    if workload["mask"] == "bool":
        given["mask"] = given["mask"].view("bool")
    if workload["layout"] == THD:
        given["max_seqlen_q"] = workload["q_len"]
        if workload["page_size"] == 0:
            given["max_seqlen_k"] = workload["kv_len"]
        else:
            given.update({name: given[name].swapaxes(1, 2) for name in "kv"})
    if workload["layout"] == BLHD:
        given.update({name: given[name].swapaxes(1, 2) for name in "qkv"})
    return {**given, "causal": workload["causal"], "align": workload["align"]}


def _check(op: str, name: str, shape: Any, expected: tuple[int, ...]) -> None:
    if tuple(shape) != expected:
        raise CallError(op=op, argument=name, value=f"of shape {tuple(shape)}", expected=f"shape {expected}")


def _scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return 1 / sqrt(max(head_dim, 1))
    try:
        return float(scale)
    except (TypeError, ValueError):
        raise CallTypeError(op=OP, argument="scale", value=repr(scale), expected="a number") from None


def _widened(mask: Any, dtype: str) -> Any:
    """Return a mask of bfloat16, as one may have beside a q of that, as float32."""
    mask = view(OP, "mask", mask)
    if dtype != BFLOAT16 or float_dtype(mask) != BFLOAT16:
        return mask
    return decode(mask, BFLOAT16) if isinstance(mask, np.ndarray) else mask.float()


def _mask(mask: Any, scores: tuple[int, ...]) -> tuple[Any, dict[str, str]]:
    """Return `mask` with four dimensions, each 1 or that of the scores, and its fields."""
    dtype = dtype_of(mask)
    kind = "bool" if dtype == "uint8" else dtype
    if kind not in MASK_DTYPES:
        expected = "dtype bool (true where a key is seen) or float32 (added to the scores)"
        raise CallTypeError(op=OP, argument="mask", value=f"of dtype {dtype}", expected=expected)
    given = tuple(mask.shape)
    shape = (1,) * (4 - len(given)) + given
    if len(given) > 4 or any(size not in (1, whole) for size, whole in zip(shape, scores)):
        expected = f"a shape that broadcasts to {scores}"
        raise CallError(op=OP, argument="mask", value=f"of shape {given}", expected=expected)
    mask = mask.reshape(shape)
    mask = broadcast(mask.reshape(shape), (*shape[:3], scores[3]))
    if dtype == "bool":
        mask = as_bytes(mask)
    dims = "".join(letter for letter, size in zip(MASK_SIZES, shape) if size != 1)
    return mask, {"mask": kind, "mask_dims": f"{dims}k"}
