"""Attention: out = softmax(scale * q k^T + mask) v, for each head."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

from tvmops.ops.base import Array, Exact, Op
from tvmops.ops.matmul import ROUNDING, UNIT_ROUNDOFF
from tvmops.signatures.attention import BHLD, BLHD, NO_MASK, THD
from tvmops.signatures.dtypes import decode, encode
from tvmops.workloads import Workload

SHARPNESS = 8.0  # of random queries: scores spread so far that some keys outweigh others by thousands


class Attention(Op):
    """Scaled dot-product attention over heads; several query heads may share a key and value head.

    Which keys a query sees. With `causal`, query i sees key j where j <= i + kv_len - q_len:
    the last query sees all keys (align=bottom-right: what decoding against a cache needs), or
    where j <= i (align=top-left, as PyTorch's `is_causal`). They differ only where q_len and
    kv_len do. A boolean mask is true where a key is seen; a float mask is added to the scores.

    With `lengths`, a sequence has only so many keys: no query sees those from `lengths[b]` on, and
    the last query sees the last of them where `causal` is bottom-right: `lengths[b]` stands for
    kv_len above. Keys and values may lie in pages of `page_size` rows, which `block_table` lists
    for each sequence (W. Kwon et al., PagedAttention, SOSP 2023).

    A query that sees no key, or whose scores are all -inf, has the result 0, as in PyTorch
    since 2.5. Where a score is NaN or +inf, the result is NaN. What k holds for keys that
    `lengths`, `causal` or a boolean mask exclude does not matter (a float mask of -inf is added to
    their scores, which must not be NaN); v must be finite there, since templates may multiply
    it by their weight, 0.

    Where q, k and v lie as (batch, length, heads, head_dim) they are read in place (layout=blhd).

    Sequences of unequal lengths may lie packed, one after the other (layout=thd), each as long as its
    offsets in `cu_seqlens_q` and `cu_seqlens_k` say. Those lengths stand for q_len and kv_len above, so
    that each sequence is one by itself; rows before the first offset and from the last on belong to none
    and are left alone. Offsets must not fall and must lie within the arrays, and no sequence be longer than
    q_len and kv_len say: nothing checks that, since it would take waiting for the device. Work is
    counted as of sequences of equal lengths.

    Scores, weights, their sum and the weighted sum of v are float32, accumulated block by block
    of keys with a running maximum (M. Milakov and N. Gimelshein, Online normalizer calculation
    for softmax, 2018; T. Dao et al., FlashAttention, NeurIPS 2022); no kernel holds all scores.

    The relative error of a weight is the absolute error of its score, and the result is a mean
    of v by these weights, so |v| <= 1 makes the result's error about twice that of a score. For
    random inputs a score sums head_dim products with Sum |q k| scale ~ 2 sqrt(head_dim); its
    worst error is head_dim u times that, u = 2**-24, and a few u for scaling and the exponential.
    Kernels are held to 4 (head_dim + 16) u, a fraction 1 / sqrt(head_dim) of the worst case and
    above 10 times what rounding at random reaches. With arrays of 16 bits, of unit roundoff r,
    weights may be rounded before they multiply v, and the result is: 2 r more. Where pairs of
    bfloat16 are multiplied by `vdpbf16ps` (template cpu.attention_dot) its denormals, below 2**-126
    (1.2e-38), count as zeros, in q, k, v, weights and sums: head_dim 2**-126 more of a score, nothing
    beside the above.
    """

    name = "attention"

    def expression(self, workload: Workload) -> list[Any]:
        from tvm import te, tirx  # here, so that flops and references need no compiler

        arrays = [te.placeholder(s.shape, s.dtype, name=s.name) for s in self.inputs(workload)]
        scale = tirx.Var("scale", "float32")
        q, k, v = arrays[:3]
        batch, heads, kv_heads = workload.dims("batch", "heads", "kv_heads")
        q_len, kv_len, head_dim = workload.dims("q_len", "kv_len", "head_dim")
        group = heads // kv_heads
        named = {array.op.name: array for array in arrays}
        unseen = tirx.const(-np.inf, "float32")
        d, j, r = (te.reduce_axis((0, n), name=x) for x, n in (("d", head_dim), ("j", kv_len), ("r", kv_len)))

        def exact(array: Any, b: Any, h: Any, row: Any, x: Any) -> Any:
            at = (b, row, h, x) if workload["layout"] == BLHD else (b, h, row, x)
            return array[at].astype("float32")

        def cached(array: Any, b: Any, h: Any, row: Any, x: Any) -> Any:
            (size,) = workload.dims("page_size")
            if not size:
                return exact(array, b, h, row, x)
            return exact(array, named["block_table"][b, row // size], h, row % size, x)

        def masked(b: Any, h: Any, i: Any, key: Any) -> Any:
            score = products[b, h, i, key] * scale
            length = named["lengths"][b] if workload["lengths"] else kv_len
            if workload["mask"] != NO_MASK:
                mask = named["mask"]
                at = [tirx.const(0, "int32") if n == 1 else x for n, x in zip(mask.shape, (b, h, i, key))]
                value = mask[tuple(at)]
                score = score + value if value.dtype == "float32" else tirx.Select(value != 0, score, unseen)
            if workload["causal"]:
                score = tirx.Select(key <= i + last_key(workload, length), score, unseen)
            return tirx.Select(key < length, score, unseen) if workload["lengths"] else score

        rows = (batch, heads, q_len)
        products = te.compute(
            (*rows, kv_len),
            lambda b, h, i, key: te.sum(exact(q, b, h, i, d) * cached(k, b, h // group, key, d), axis=d),
            name="products",
        )
        scores = te.compute((*rows, kv_len), masked, name="scores")
        most = te.compute(rows, lambda b, h, i: te.max(scores[b, h, i, j], axis=j), name="most")
        weights = te.compute(
            (*rows, kv_len),
            lambda b, h, i, key: tirx.Select(
                most[b, h, i] == unseen,
                tirx.const(0, "float32"),
                tirx.exp(scores[b, h, i, key] - most[b, h, i]),
            ),
            name="weights",
        )
        total = te.compute(rows, lambda b, h, i: te.sum(weights[b, h, i, r], axis=r), name="total")
        s = te.reduce_axis((0, kv_len), name="s")
        mixed = te.compute(
            (*rows, head_dim),
            lambda b, h, i, x: te.sum(weights[b, h, i, s] * cached(v, b, h // group, s, x), axis=s),
            name="mixed",
        )
        out = te.compute(
            (*rows, head_dim),
            lambda b, h, i, x: tirx.Select(
                total[b, h, i] == 0, tirx.const(0, "float32"), mixed[b, h, i, x] / total[b, h, i]
            ).astype(q.dtype),
            name="out",
        )
        return [*arrays, scale, out]

    def reference(self, workload: Workload, *inputs: Array) -> tuple[Exact, ...]:
        given = {spec.name: array for spec, array in zip(self.inputs(workload), inputs)}
        if workload["layout"] == THD:
            return self._packed_reference(workload, *inputs)
        q, k, v = (array.astype(np.float64) for array in inputs[:3])
        if workload["layout"] == BLHD:
            q, k, v = (array.swapaxes(1, 2) for array in (q, k, v))
        if "block_table" in given:
            k, v = (gathered(array, given["block_table"]) for array in (k, v))
        batch, heads, kv_heads = workload.dims("batch", "heads", "kv_heads")
        (scale,) = self.scalars(workload)
        out = np.empty(q.shape)
        for b in range(batch):
            length = int(given["lengths"][b]) if workload["lengths"] else k.shape[2]
            for h in range(heads):
                shared = h // (heads // kv_heads)
                with np.errstate(invalid="ignore", over="ignore"):
                    scores = scale * (q[b, h] @ k[b, shared, :length].T)
                    scores = _restrict(workload, scores, b, h, given.get("mask"))
                    out[b, h] = _softmax(scores) @ v[b, shared, :length]
        return (out,)

    def _packed_reference(
        self, workload: Workload, q: Array, k: Array, v: Array, cu_seqlens_q: Array, *of_keys: Array
    ) -> tuple[Exact, ...]:
        """Compute each sequence by itself."""
        out = np.empty(q.shape)
        for b in range(workload.dims("batch")[0]):
            rows = slice(*cu_seqlens_q[b : b + 2])
            keys, values = (packed_rows(array, of_keys, b) for array in (k, v))
            alone = packed_alone(workload, len(q[rows]), len(keys))
            arrays = [array.swapaxes(0, 1)[None] for array in (q[rows], keys, values)]
            out[rows] = self.reference(alone, *arrays)[0][0].swapaxes(0, 1)
        return (out,)

    def flops(self, workload: Workload) -> int:
        """Count a product and a sum for each element of q k^T and of the weighted sum of v."""
        if workload["layout"] == THD:
            batch, total_q, total_k, kv_len = workload.dims("batch", "total_q", "total_k", "kv_len")
            mean = total_k // batch if total_k else kv_len
            return batch * self.flops(packed_alone(workload, total_q // batch, mean))
        batch, heads, q_len = workload.dims("batch", "heads", "q_len")
        kv_len, head_dim = workload.dims("kv_len", "head_dim")
        pairs = q_len * kv_len
        if workload["causal"]:
            offset = last_key(workload)
            pairs = sum(min(max(i + offset + 1, 0), kv_len) for i in range(q_len))
        return 4 * batch * heads * pairs * head_dim

    def tolerance(self, workload: Workload) -> float:
        (head_dim,) = workload.dims("head_dim")
        return 4 * (head_dim + 16) * UNIT_ROUNDOFF + 2 * ROUNDING[str(workload["dtype"])]

    def scalars(self, workload: Workload) -> tuple[float, ...]:
        (head_dim,) = workload.dims("head_dim")
        return (float(np.float32(1 / sqrt(head_dim))),)

    def random_inputs(self, workload: Workload, seed: int) -> list[Array]:
        """Draw k and v uniformly from [-1, 1), q from a wider range; a mask excludes every fifth key."""
        q, k, v, *rest = super().random_inputs(workload, seed)
        dtype = str(workload["dtype"])
        sharper = encode(decode(q, dtype).astype(np.float32) * np.float32(SHARPNESS), dtype)
        if workload["layout"] == THD:
            return [sharper, k, v, *random_offsets(workload, seed)]
        masks = rest[:1] if workload["mask"] != NO_MASK else []
        rng = np.random.default_rng(seed + 2)
        whole = self.inputs(workload)[-1]
        tables = [_random_table(rng, workload, *whole.shape)] if whole.name == "block_table" else []
        batch, kv_len = workload.dims("batch", "kv_len")
        lengths = [rng.integers(0, kv_len + 1, batch, np.int32)] if workload["lengths"] else []
        excluded = [np.random.default_rng(seed + 1).random(mask.shape) < 0.2 for mask in masks]
        if workload["mask"] == "bool":
            masks = [np.where(out, 0, 1).astype(np.uint8) for out in excluded]
        else:
            masks = [np.where(out, np.float32(-np.inf), mask) for out, mask in zip(excluded, masks)]
        return [sharper, k, v, *masks, *lengths, *tables]


def last_key(workload: Workload, length: Any = None) -> Any:
    """Return the last key, of `length` or kv_len, that a causal mask lets query 0 see; below 0 if none."""
    q_len, kv_len = workload.dims("q_len", "kv_len")
    return (kv_len if length is None else length) - q_len if workload["align"] == "bottom-right" else 0


def packed_alone(workload: Workload, q_len: int, kv_len: int) -> Workload:
    """Return the workload of one of its packed sequences, of these lengths."""
    dense: dict[str, Any] = {"layout": BHLD, "total_q": 0, "total_k": 0, "lengths": False}
    return workload.replace(batch=1, q_len=q_len, kv_len=kv_len, pages=0, page_size=0, **dense)


def packed_rows(array: Any, of_keys: Sequence[Any], b: int) -> Any:
    """Return the keys, or values, of a sequence, by cu_seqlens_k or by lengths and block_table."""
    if len(of_keys) == 1:
        return array[int(of_keys[0][b]) : int(of_keys[0][b + 1])]
    lengths, table = of_keys
    length = int(lengths[b])
    pages = table[b][: -(-length // array.shape[1])]
    return array[pages].reshape(-1, *array.shape[2:])[:length]


def random_offsets(workload: Workload, seed: int) -> tuple[Array, ...]:
    """Draw where packed sequences begin: the same for queries and keys, where all may be alike.

    Where these read pages: how many keys each has, none fewer than queries, and which pages.
    """
    batch, *sizes = workload.dims("batch", "total_q", "q_len", "total_k", "kv_len")
    rng = np.random.default_rng(seed + 2)
    for_queries = _random_ends(rng, batch, *sizes[:2])
    if workload["page_size"] != 0:
        least = np.minimum(np.diff(for_queries), sizes[3])
        lengths = rng.integers(least, sizes[3], endpoint=True, dtype=np.int32)
        columns = -(-sizes[3] // workload.dims("page_size")[0])
        return for_queries, lengths, _random_table(rng, workload, batch, columns)
    return for_queries, for_queries if sizes[:2] == sizes[2:] else _random_ends(rng, batch, *sizes[2:])


def _random_ends(rng: np.random.Generator, batch: int, total: int, longest: int) -> Array:
    """Draw lengths from nothing to twice the mean, at most `longest`, of this total; return their ends."""
    shares = rng.random(batch)
    lengths = np.minimum((shares * (total / shares.sum())).astype(np.int64), longest)
    for b in range(batch):  # what is missing goes to the first that have room
        lengths[b] += min(total - int(lengths.sum()), longest - int(lengths[b]))
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def gathered(pool: Any, table: Any) -> Any:
    """Return the rows of each sequence from a pool of pages (pages, heads, page_size, head_dim)."""
    pages = pool[table]  # (sequence, page, heads, row, head_dim)
    return pages.swapaxes(1, 2).reshape(len(table), pool.shape[1], -1, pool.shape[3])


def _random_table(rng: np.random.Generator, workload: Workload, rows: int, columns: int) -> Array:
    """Draw pages, each at most once where there are enough."""
    (pages,) = workload.dims("pages")
    count = rows * columns
    order = rng.permutation(pages) if pages >= count else rng.integers(0, pages, count)
    return order[:count].astype(np.int32).reshape(rows, columns)


def _restrict(workload: Workload, scores: Exact, b: int, h: int, mask: Array | None = None) -> Exact:
    """Apply the masks to the scores of one head."""
    length = scores.shape[1]
    if mask is not None:
        batches, heads = mask.shape[:2]
        own = mask[b if batches > 1 else 0, h if heads > 1 else 0, :, :length]
        scores = scores + own if own.dtype == np.float32 else np.where(own, scores, -np.inf)
    if workload["causal"]:
        queries, keys = np.indices(scores.shape)
        scores = np.where(keys <= queries + last_key(workload, length), scores, -np.inf)
    return scores


def _softmax(scores: Exact) -> Exact:
    """Return the weights of each row; all 0 for a row of -inf."""
    most = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(most == -np.inf, 0.0, most))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total == 0.0, 1.0, total)
