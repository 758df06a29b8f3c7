"""The signature of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmops.errors import WorkloadError
from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.fields import Choice, Dim, Field, Flag, text_of

if TYPE_CHECKING:
    from tvmops.workloads import Workload

NO_MASK = "none"
MASK_DTYPES = {"bool": "uint8", "float32": "float32"}  # what a mask's elements are to a kernel
# The axes along which a mask differs: batch, head, query, key. It is broadcast along the others.
MASK_DIMS = ("k", "qk", "hk", "hqk", "bk", "bqk", "bhk", "bhqk")
MASK_SIZES = {"b": "batch", "h": "heads", "q": "q_len"}


# batch, heads, length, head_dim; heads within each position; all tokens, heads, head_dim
BHLD, BLHD, THD = "bhld", "blhd", "thd"


class Attention(Signature):
    """q (batch, heads, q_len, head_dim); k and v (batch, kv_heads, kv_len, head_dim); out like q.

    With layout=blhd lengths and heads of q, k and v have changed places, as a projection leaves
    them; out is the same. Query head h reads key and value head h // (heads / kv_heads).

    With layout=thd sequences are packed: those of q, and those of k and v, follow each other without
    gaps, q and out (total_q, heads, head_dim), k and v (total_k, kv_heads, head_dim). Sequence b is
    the rows from cu_seqlens_q[b] to cu_seqlens_q[b + 1] of q, and those of k and v that cu_seqlens_k
    names likewise, both (batch + 1); q_len and kv_len bound the lengths.

    With `lengths`, the array of that name (batch) says how many of the kv_len keys there are. With
    a `page_size`, k and v are pools of `pages` (pages, kv_heads, page_size, head_dim), or with
    layout=blhd (pages, page_size, kv_heads, head_dim), and block_table (batch, kv_len / page_size,
    rounded up) names those of each sequence, in order. Queries that read pages may be packed: then there
    are no total_k and cu_seqlens_k, and pages lie as with layout=blhd.
    """

    fields = (
        Field("batch", Dim(varies=True)),
        Field("heads", Dim()),
        Field("kv_heads", Dim()),
        Field("q_len", Dim(varies=True)),
        Field("kv_len", Dim(varies=True)),
        Field("head_dim", Dim(fixed=True)),
        Field("causal", Flag(), False),
        Field("align", Choice(("bottom-right", "top-left")), "bottom-right"),
        Field("mask", Choice((NO_MASK, *MASK_DTYPES)), NO_MASK),
        Field("mask_dims", Choice(MASK_DIMS), "qk"),
        Field("layout", Choice((BHLD, BLHD, THD)), BHLD),
        Field("lengths", Flag(), False),
        Field("pages", Dim(low=0, varies=True), 0),
        Field("page_size", Dim(low=0, fixed=True), 0),
        Field("total_q", Dim(low=0, varies=True), 0),
        Field("total_k", Dim(low=0, varies=True), 0),
        Field("dtype", Choice(("float32", "float16", "bfloat16")), "float32", shown=True),
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        batch, heads, kv_heads = workload.dims("batch", "heads", "kv_heads")
        q_len, kv_len, head_dim = workload.dims("q_len", "kv_len", "head_dim")
        dtype = str(workload["dtype"])
        if workload["layout"] == THD:
            return _packed_inputs(workload)
        pages, page_size = workload.dims("pages", "page_size")
        of_kv = (pages, kv_heads, page_size) if page_size else (batch, kv_heads, kv_len)
        arrays = [
            TensorSpec(name, (*_in_memory(workload, *each), head_dim), dtype)
            for name, each in (("q", (batch, heads, q_len)), ("k", of_kv), ("v", of_kv))
        ]
        if workload["mask"] != NO_MASK:
            arrays.append(self._mask(workload))
        if workload["lengths"]:
            arrays.append(TensorSpec("lengths", (batch,), "int32"))
        if page_size:
            arrays.append(TensorSpec("block_table", (batch, -(-kv_len // page_size)), "int32"))
        return tuple(arrays)

    def _mask(self, workload: Workload) -> TensorSpec:
        dims = str(workload["mask_dims"])
        sizes = workload.dims(*MASK_SIZES.values(), "kv_len")
        shape = tuple(size if letter in dims else 1 for letter, size in zip("bhqk", sizes))
        return TensorSpec("mask", shape, MASK_DTYPES[str(workload["mask"])])

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        names = ("total_q", "heads") if workload["layout"] == THD else ("batch", "heads", "q_len")
        shape = workload.dims(*names, "head_dim")
        return (TensorSpec("out", shape, str(workload["dtype"])),)

    def scalars(self, workload: Workload) -> tuple[str, ...]:
        return ("scale",)

    def check(self, workload: Workload) -> None:
        """Refuse heads that can't share; and what could be said in two ways, so that one is canonical."""
        heads, kv_heads = workload["heads"], workload["kv_heads"]
        if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
            expected = f"a divisor of heads, {heads}"
            raise WorkloadError(op=workload.op, field="kv_heads", value=kv_heads, expected=expected)
        if workload["align"] != "bottom-right" and not workload["causal"]:
            expected = "'bottom-right', as causal is false"
            raise WorkloadError(op=workload.op, field="align", value=workload["align"], expected=expected)
        if (workload["pages"] == 0) != (workload["page_size"] == 0):
            expected = "0 without pages, and not 0 with them"
            raise WorkloadError(
                op=workload.op, field="page_size", value=workload["page_size"], expected=expected
            )
        if workload["page_size"] != 0 and not workload["lengths"]:
            expected = "true, as there are pages"
            raise WorkloadError(op=workload.op, field="lengths", value=False, expected=expected)
        self._check_totals(workload)
        self._check_mask(workload)

    def _check_totals(self, workload: Workload) -> None:
        if workload["layout"] != THD:
            for name in ("total_q", "total_k"):
                if workload[name] != 0:
                    expected = f"0 where the layout is not {THD}"
                    raise WorkloadError(op=workload.op, field=name, value=workload[name], expected=expected)
            return
        paged = workload["page_size"] != 0
        for name, plain in (("lengths", paged), ("mask", NO_MASK), *((("total_k", 0),) if paged else ())):
            if workload[name] != plain:
                expected = f"{text_of(plain)}, as the layout is {THD} {'with' if paged else 'without'} pages"
                raise WorkloadError(op=workload.op, field=name, value=workload[name], expected=expected)
        for name, bound in (("total_q", "q_len"), *(() if paged else (("total_k", "kv_len"),))):
            total, most = workload[name], _product(workload["batch"], workload[bound])
            if total == 0 or (isinstance(total, int) and most is not None and total > most):
                expected = f"1 to batch times {bound}, as the layout is {THD}"
                raise WorkloadError(op=workload.op, field=name, value=total, expected=expected)

    def _check_mask(self, workload: Workload) -> None:
        dims = str(workload["mask_dims"])
        if workload["mask"] == NO_MASK:
            if dims != "qk":
                expected = "'qk', as there is no mask"
                raise WorkloadError(op=workload.op, field="mask_dims", value=dims, expected=expected)
            return
        for letter, name in MASK_SIZES.items():
            if letter in dims and workload[name] == 1:
                expected = f"no '{letter}', as {name} is 1"
                raise WorkloadError(op=workload.op, field="mask_dims", value=dims, expected=expected)


def _packed_inputs(workload: Workload) -> tuple[TensorSpec, ...]:
    batch, heads, kv_heads, head_dim = workload.dims("batch", "heads", "kv_heads", "head_dim")
    total_q, total_k, pages, page_size = workload.dims("total_q", "total_k", "pages", "page_size")
    dtype = str(workload["dtype"])
    rows = (pages, page_size) if page_size else (total_k,)
    arrays = (
        TensorSpec("q", (total_q, heads, head_dim), dtype),
        *(TensorSpec(name, (*rows, kv_heads, head_dim), dtype) for name in "kv"),
        TensorSpec("cu_seqlens_q", (batch + 1,), "int32"),
    )
    if not page_size:
        return (*arrays, TensorSpec("cu_seqlens_k", (batch + 1,), "int32"))
    columns = -(-workload.dims("kv_len")[0] // page_size)
    return (
        *arrays,
        TensorSpec("lengths", (batch,), "int32"),
        TensorSpec("block_table", (batch, columns), "int32"),
    )


def _product(a: object, b: object) -> int | None:
    return a * b if isinstance(a, int) and isinstance(b, int) else None


def _in_memory(workload: Workload, outer: int, heads: int, rows: int) -> tuple[int, int, int]:
    """Return the sizes of a batch, or of pages, of rows of each head, as they follow each other."""
    return (outer, rows, heads) if workload["layout"] == BLHD else (outer, heads, rows)
