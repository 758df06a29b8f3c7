"""What a kernel of attention is called with, as buffers and extents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmops.schedules.cpu.emit import Extent, refuse_overlap
from tvmops.schedules.cpu.floats import argument
from tvmops.signatures.attention import BHLD, BLHD, MASK_DTYPES, MASK_SIZES, NO_MASK
from tvmops.workloads import Workload

F32 = "float32"
UNSEEN = float("-inf")  # the score of a key that a query does not see
FEW_QUERIES = 8  # of a head, as there are while text is generated
LOWEST = -3.4028234663852886e38  # the least maximum: finite, so that UNSEEN minus it is -inf


@dataclass(frozen=True)
class Problem:
    """The buffers and extents of one call; extents may be symbolic, but for head_dim."""

    q: Any
    k: Any
    v: Any
    layout: str
    mask: Any | None  # of shape (batch or 1, heads or 1, q_len or 1, kv_len); None without one
    mask_dims: str  # the letters of its dimensions that are not 1
    scale: tirx.Expr
    out: Any
    batch: Extent
    heads: Extent
    group: Extent  # query heads that share a key and value head
    q_len: Extent
    kv_len: Extent
    head_dim: int
    last_key: Extent | None  # that query 0 sees; None without a causal mask
    period: int | None = None  # queries of each of the heads that were joined under such a mask

    @classmethod
    def declare(cls, workload: Workload) -> Problem:
        """Declare the arguments of a function that is being written, and refuse those that overlap."""
        names = ("batch", "heads", "kv_heads", "q_len", "kv_len")
        extents = {name: _extent(workload, name) for name in names}
        (head_dim,) = workload.dims("head_dim")
        kind, mask_dims = str(workload["mask"]), str(workload["mask_dims"])
        handles = {name: T.arg(name, T.handle()) for name in ("q", "k", "v")}
        if kind != NO_MASK:
            handles["mask"] = T.arg("mask", T.handle())
        scale, out = T.arg("scale", T.float32()), T.arg("out", T.handle())
        of_q = tuple(extents[name] for name in ("batch", "heads", "q_len"))
        of_kv = tuple(extents[name] for name in ("batch", "kv_heads", "kv_len"))
        dtype = str(workload["dtype"])
        layout = str(workload["layout"])
        inputs = {
            name: argument(handles[name], (*_in_memory(layout, *shape), head_dim), dtype)
            for name, shape in (("q", of_q), ("k", of_kv), ("v", of_kv))
        }
        if kind != NO_MASK:
            shape = tuple(extents[name] if x in mask_dims else 1 for x, name in MASK_SIZES.items())
            inputs["mask"] = argument(handles["mask"], (*shape, extents["kv_len"]), MASK_DTYPES[kind])
        output = argument(out, (*of_q, head_dim), dtype)
        refuse_overlap(output, inputs)
        last_key: Extent | None = None
        if workload["causal"]:
            last_key = extents["kv_len"] - extents["q_len"] if workload["align"] == "bottom-right" else 0
        return cls(
            q=inputs["q"],
            k=inputs["k"],
            v=inputs["v"],
            layout=layout,
            mask=inputs.get("mask"),
            mask_dims=mask_dims,
            scale=scale,
            out=output,
            batch=extents["batch"],
            heads=extents["heads"],
            group=extents["heads"] // extents["kv_heads"],
            q_len=extents["q_len"],
            kv_len=extents["kv_len"],
            head_dim=head_dim,
            last_key=last_key,
        )

    def joined(self) -> Problem:
        """Return it with the queries of heads that share k and v as those of one head; see `joined`."""
        heads, q_len = self.heads // self.group, self.q_len * self.group
        period = None if self.last_key is None else self.q_len
        shape = (self.batch, heads, q_len, self.head_dim)

        def seen(buffer: Any) -> Any:
            return T.decl_buffer(shape, buffer.dtype, data=buffer.data, align=buffer.data_alignment)

        return replace(
            self, q=seen(self.q), out=seen(self.out), heads=heads, group=1, q_len=q_len, period=period
        )

    @property
    def is_wide(self) -> bool:
        """True if elements of q, k and v are what is computed with."""
        return bool(self.k.dtype == F32)

    def at(self, batch: Extent, head: Extent, row: Extent) -> list[Extent]:
        """Return the indices, but for that along head_dim, of a query, or of a key and its value."""
        return list(_in_memory(self.layout, batch, head, row))

    def mask_at(self, batch: Extent, head: Extent, query: Extent) -> list[Extent]:
        """Return the indices, but for the key's, of a query's elements of the mask."""
        return [at if x in self.mask_dims else 0 for x, at in zip(MASK_SIZES, (batch, head, query))]


def can_join(workload: Workload) -> bool:
    """Say whether queries of the heads that share k and v see much the same, and lie in one piece.

    Under a causal mask those of a few positions do; tiles that hold all heads of many positions
    would look at keys that most of them do not see.
    """
    known = all(isinstance(workload[name], int) for name in ("heads", "kv_heads", "q_len"))
    if not known or workload["heads"] == workload["kv_heads"]:
        return False
    alike = not workload["causal"] or workload.dims("q_len")[0] <= FEW_QUERIES
    return alike and workload["mask"] == NO_MASK and workload["layout"] == BHLD


def joined(workload: Workload) -> Workload:
    """Return `workload` with such queries as those of one head, which fill vectors sooner."""
    if not can_join(workload):
        return workload
    heads, kv_heads, q_len = workload.dims("heads", "kv_heads", "q_len")
    return workload.replace(heads=kv_heads, q_len=heads // kv_heads * q_len)


def _in_memory(layout: str, batch: Extent, head: Extent, row: Extent) -> tuple[Extent, ...]:
    return (batch, row, head) if layout == BLHD else (batch, head, row)


def _extent(workload: Workload, name: str) -> Extent:
    value = workload[name]
    return value if isinstance(value, int) else tirx.Var(name, "int32")
