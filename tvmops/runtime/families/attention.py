"""Attention, as a method."""

from __future__ import annotations

from typing import Any

from tvmops.runtime.families.base import Family


class Attention(Family):
    """Attention."""

    def attention(
        self,
        q: Any,
        k: Any,
        v: Any,
        causal: bool = False,
        scale: float | None = None,
        mask: Any = None,
        align: str = "bottom-right",
        out: Any = None,
        lengths: Any = None,
        block_table: Any = None,
        cu_seqlens_q: Any = None,
        cu_seqlens_k: Any = None,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
    ) -> Any:
        """Return softmax(scale * q @ k.T + mask) @ v for each head.

        Parameters
        ----------
        q
            Array of shape (batch, heads, q_len, head_dim), float32 or bfloat16; computed in float32.
            CPUs that multiply pairs of bfloat16 may take numbers of that below 2**-126 (1.2e-38,
            denormal ones) for zeros.
        k, v
            Arrays of shape (batch, kv_heads, kv_len, head_dim); kv_heads divides heads, and
            as many neighbouring heads of q share a head of k and v. Where q, k and v are all views
            of (batch, length, heads, head_dim), a library with kernels for `layout=blhd` reads them
            in place; otherwise they are copied.
        causal
            Let a query see no later key: query i sees key j where j <= i + kv_len - q_len.
        scale
            1 / sqrt(head_dim) by default.
        mask
            Bool, true where a key is seen; or float32, added to the scores (beside a q of bfloat16
            one of that, too, which is copied). Of a shape that broadcasts to (batch, heads, q_len,
            kv_len). May be given together with `causal`.
        align
            "bottom-right": as above, the last query sees all keys. "top-left": query i sees key
            j where j <= i, as PyTorch's `is_causal`. They differ where q_len is not kv_len.
        out
            Where to write the result, of the shape of q: dense, not overlapping an input.
            Without it a new array is made.
        lengths
            int32 of shape (batch): how many keys each sequence has, from 0 to kv_len; those after them
            are not seen, and take no part in how `causal` aligns; v must be finite there (pages may hold
            anything). Kernels for CUDA alone.
        block_table
            int32 of shape (batch, columns). k and v are then pools of pages, of shape (pages, kv_heads,
            page_size, head_dim), or views of (pages, page_size, kv_heads, head_dim), and row
            `block_table[b, j // page_size]` of them holds key j of sequence b. Needs `lengths`.

        cu_seqlens_q, cu_seqlens_k
            int32 of shape (sequences + 1). Sequences are then packed, each as long as it is: q of shape
            (total_q, heads, head_dim), k and v of (total_k, kv_heads, head_dim), the result like q; sequence
            b is rows `cu_seqlens_q[b]` to `cu_seqlens_q[b + 1]` of q and likewise of k and v. `causal`
            aligns each sequence by itself. No `mask` goes with them. With a `block_table`, `lengths` and
            pools of pages stand for `cu_seqlens_k` and packed k and v; pools must then be views of (pages,
            page_size, kv_heads, head_dim). The offsets must not fall, nor point beyond the arrays:
            nothing checks that, as it would take waiting for the device. Kernels for CUDA alone.
        max_seqlen_q, max_seqlen_k
            Bounds of the lengths of packed sequences, ints that are known without looking at the device.

        A query that sees no key has the result 0. Rows of packed sequences beyond the last are left alone.

        Raises
        ------
        CallError, CallTypeError
            An argument does not fit; the message names it.
        """
        arrays = (q, k, v, mask, lengths, block_table, cu_seqlens_q, cu_seqlens_k)
        bounds = (max_seqlen_q, max_seqlen_k)
        packing = (cu_seqlens_q, cu_seqlens_k, *bounds)
        arguments = (q, k, v, causal, scale, mask, align, lengths, block_table, *packing)
        return self._call("attention", arrays, (causal, scale, align, *bounds), arguments, (out,))[0]
