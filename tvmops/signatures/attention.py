"""The signature of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmops.errors import WorkloadError
from tvmops.signatures.base import Signature, TensorSpec
from tvmops.signatures.fields import Choice, Dim, Field, Flag

if TYPE_CHECKING:
    from tvmops.workloads import Workload

NO_MASK = "none"
MASK_DTYPES = {"bool": "uint8", "float32": "float32"}  # what a mask's elements are to a kernel
# The axes along which a mask differs: batch, head, query, key. It is broadcast along the others.
MASK_DIMS = ("k", "qk", "hk", "hqk", "bk", "bqk", "bhk", "bhqk")
MASK_SIZES = {"b": "batch", "h": "heads", "q": "q_len"}


BHLD, BLHD = "bhld", "blhd"  # batch, heads, length, head_dim; heads within each position


class Attention(Signature):
    """q (batch, heads, q_len, head_dim); k and v (batch, kv_heads, kv_len, head_dim); out like q.

    With layout=blhd lengths and heads of q, k and v have changed places, as a projection leaves
    them; out is the same. Query head h reads key and value head h // (heads / kv_heads).
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
        Field("layout", Choice((BHLD, BLHD)), BHLD),
        Field("dtype", Choice(("float32", "float16", "bfloat16")), "float32", shown=True),
    )

    def inputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        batch, heads, kv_heads = workload.dims("batch", "heads", "kv_heads")
        q_len, kv_len, head_dim = workload.dims("q_len", "kv_len", "head_dim")
        dtype = str(workload["dtype"])
        rows = {"q": (heads, q_len), "k": (kv_heads, kv_len), "v": (kv_heads, kv_len)}
        if workload["layout"] == BLHD:
            rows = {name: (length, count) for name, (count, length) in rows.items()}
        arrays = tuple(TensorSpec(name, (batch, *each, head_dim), dtype) for name, each in rows.items())
        if workload["mask"] == NO_MASK:
            return arrays
        dims = str(workload["mask_dims"])
        sizes = [*workload.dims(*MASK_SIZES.values()), kv_len]
        shape = tuple(size if letter in dims else 1 for letter, size in zip("bhqk", sizes))
        return (*arrays, TensorSpec("mask", shape, MASK_DTYPES[str(workload["mask"])]))

    def outputs(self, workload: Workload) -> tuple[TensorSpec, ...]:
        shape = workload.dims("batch", "heads", "q_len", "head_dim")
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
