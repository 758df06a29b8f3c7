"""What the CUDA templates of attention share: which workloads are theirs, their sizes for kernels."""

from __future__ import annotations

from tvmops.schedules.cuda.extents import extent
from tvmops.schedules.cuda.kernels.attention_tiles import Heads
from tvmops.signatures.attention import MASK_DTYPES, THD
from tvmops.targets import Gpu, Target
from tvmops.workloads import Workload

DTYPES = ("float16", "bfloat16")
_MOST_COLUMNS = 256


def is_plain(workload: Workload, multiple: int) -> bool:
    """True for an attention of 16 bits, of a head_dim that these kernels take."""
    if workload.op != "attention" or workload["dtype"] not in DTYPES:
        return False
    (head_dim,) = workload.dims("head_dim")
    return head_dim % multiple == 0 and head_dim <= _MOST_COLUMNS


def gpu_of(target: Target) -> Gpu:
    assert target.gpu is not None
    return target.gpu


def sizes_of(workload: Workload) -> Heads:
    """Return the sizes of `workload`; those that are `*` become variables."""
    names = ("batch", "heads", "kv_heads", "q_len", "kv_len")
    batch, heads, kv_heads, q_len, kv_len = (extent(workload, name) for name in names)
    return Heads(
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=workload.dims("head_dim")[0],
        causal=bool(workload["causal"]),
        below_right=workload["align"] == "bottom-right",
        dtype=str(workload["dtype"]),
        lengths=bool(workload["lengths"]) or workload["layout"] == THD,
        mask=MASK_DTYPES.get(str(workload["mask"]), ""),
        mask_dims=str(workload["mask_dims"]),
    )
