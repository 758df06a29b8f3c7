"""Exact results in float64 by PyTorch on the device, where NumPy's would take minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tvmops.measure.bundle.torch_weights import draw_packed, unpacked
from tvmops.ops import op_of
from tvmops.ops.attention import SHARPNESS, gathered, last_key, packed_alone, packed_rows, random_offsets
from tvmops.signatures import SIGNATURES
from tvmops.signatures.attention import BLHD, NO_MASK, THD
from tvmops.signatures.windows import sizes
from tvmops.workloads import Workload

Exact: TypeAlias = Callable[[Any, Workload, Sequence[Any]], "Sequence[Any] | None"]

_SCORES = 1 << 28  # held at once: 2 GB


def _matmul(torch: Any, workload: Workload, inputs: Sequence[Any]) -> Sequence[Any] | None:
    if workload["activation"] != "none" or workload["packed"] != "none":
        return None
    a, b, *more = (tensor.double() for tensor in inputs)
    product = (a.mT if workload["trans_a"] else a) @ (b.mT if workload["trans_b"] else b)
    for term in more:
        product += term
    return (product,)


def _conv2d(torch: Any, workload: Workload, inputs: Sequence[Any]) -> Sequence[Any] | None:
    after = {"none": lambda y: y, "relu": torch.relu_}
    if workload["activation"] not in after or workload["packed"] != "none":
        return None
    names = [spec.name for spec in op_of(workload).inputs(workload)]
    last = workload["layout"] == "NHWC"
    given = {
        name: array.permute(0, 3, 1, 2) if last and array.ndim == 4 else array
        for name, array in zip(names, (tensor.double() for tensor in inputs))
    }
    top, left, bottom, right = sizes(workload, "padding")
    padded = torch.nn.functional.pad(given["x"], (left, right, top, bottom))
    y = torch.nn.functional.conv2d(
        padded,
        given["w"],
        given.get("bias"),
        stride=sizes(workload, "stride"),
        dilation=sizes(workload, "dilation"),
        groups=workload["groups"],
    )
    if "residual" in given:
        y += given["residual"]
    y = after[str(workload["activation"])](y)
    return (y.permute(0, 2, 3, 1).contiguous() if last else y,)


def _matmul_fp8(torch: Any, workload: Workload, inputs: Sequence[Any]) -> Sequence[Any]:
    kind = getattr(torch, str(workload["dtype"]))
    a, b = (tensor.view(kind).float().double() for tensor in inputs[:2])
    a_scale, b_scale = (tensor.double() for tensor in inputs[2:])
    product = a @ b.T
    product *= a_scale[:, None]
    product *= b_scale
    return (product,)


def _matmul_int8(torch: Any, workload: Workload, inputs: Sequence[Any]) -> Sequence[Any] | None:
    if workload["out_dtype"] != "int32" or workload["packed"] != "none":
        return None
    op = op_of(workload)
    given = {spec.name: tensor.double() for spec, tensor in zip(op.inputs(workload), inputs)}
    scalars = dict(zip(SIGNATURES[workload.op].scalars(workload), op.scalars(workload)))
    b = given["b"].mT if workload["trans_b"] else given["b"]
    zeros = given.get("b_zero_points", scalars.get("b_zero_point", 0.0))
    return ((given["a"] - scalars["a_zero_point"]) @ (b - zeros),)  # exact: below 2**53


def _weight_only(torch: Any, workload: Workload, inputs: Sequence[Any]) -> Sequence[Any] | None:
    if workload["activation"] != "none":
        return None
    x, w, *bias = inputs
    product = x.double() @ unpacked(torch, workload, w).double().mT
    for each in bias:
        product += each.double()
    return (product,)


def _attention(torch: Any, workload: Workload, inputs: Sequence[Any]) -> Sequence[Any] | None:
    if workload["mask"] != NO_MASK:
        return None
    q, k, v, *more = inputs
    if workload["layout"] == THD:
        return _packed_attention(torch, workload, q, k, v, *more)
    if workload["layout"] == BLHD:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    if workload["page_size"] != 0:
        k, v = (gathered(tensor, more[1].long()) for tensor in (k, v))
    batch, heads, q_len, _ = q.shape
    kv_len, group = k.shape[2], heads // k.shape[1]
    (scale,) = op_of(workload).scalars(workload)
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    keys = torch.arange(kv_len, device=q.device)
    rows = max(1, _SCORES // max(kv_len, 1))
    for b in range(batch):
        length = int(more[0][b]) if workload["lengths"] else kv_len
        for h in range(heads):
            key, value = k[b, h // group].double(), v[b, h // group].double()
            for begin in range(0, q_len, rows):
                scores = scale * (q[b, h, begin : begin + rows].double() @ key.T)
                if workload["causal"]:
                    queries = torch.arange(begin, begin + len(scores), device=q.device)
                    unseen = keys[None] > queries[:, None] + last_key(workload, length)
                    scores.masked_fill_(unseen, float("-inf"))
                scores[:, length:] = float("-inf")
                weights = torch.softmax(scores, -1).nan_to_num_(nan=0.0)  # 0 for a query that sees no key
                out[b, h, begin : begin + rows] = weights @ value
    return (out,)


def _packed_attention(
    torch: Any, workload: Workload, q: Any, k: Any, v: Any, cu_seqlens_q: Any, *of_keys: Any
) -> Sequence[Any]:
    """Compute each sequence by itself."""
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    ends = cu_seqlens_q.tolist()
    for b in range(len(ends) - 1):
        rows = slice(ends[b], ends[b + 1])
        keys, values = (packed_rows(array, of_keys, b) for array in (k, v))
        alone = packed_alone(workload, len(q[rows]), len(keys))
        arrays = [array.transpose(0, 1)[None] for array in (q[rows], keys, values)]
        found = _attention(torch, alone, arrays)
        assert found is not None
        out[rows] = found[0][0].transpose(0, 1)
    return (out,)


def _packed_offsets(torch: Any, workload: Workload, generator: Any) -> dict[str, Any]:
    if workload["layout"] != THD:
        return {}
    names = [spec.name for spec in op_of(workload).inputs(workload)[3:]]
    drawn = random_offsets(workload, generator.initial_seed())
    return {name: torch.from_numpy(each).cuda() for name, each in zip(names, drawn)}


def _softmax(torch: Any, workload: Workload, inputs: Sequence[Any]) -> Sequence[Any] | None:
    if workload["mask_rows"] != 0 or workload["scaled"]:
        return None
    exact = inputs[0].double()
    return (torch.log_softmax(exact, 1) if workload["log"] else torch.softmax(exact, 1),)


def _norm(torch: Any, workload: Workload, inputs: Sequence[Any]) -> Sequence[Any]:
    op = op_of(workload)
    given = {spec.name: tensor.double() for spec, tensor in zip(op.inputs(workload), inputs)}
    x = given["x"] + given["residual"] if "residual" in given else given["x"]
    off = x - x.mean(-1, keepdim=True) if workload.op == "layer_norm" else x
    out = off / (off.square().mean(-1, keepdim=True) + op.scalars(workload)[0]).sqrt()
    out = out * given.get("weight", 1.0) + given.get("bias", 0.0)
    return (out, x) if "residual" in given else (out,)


def _sharp_queries(workload: Workload) -> dict[str, float] | None:
    drawn = workload["mask"] != NO_MASK or (workload["lengths"] and workload["layout"] != THD)
    return None if drawn else {"q": SHARPNESS}


# By op: the exact results, or None where NumPy must compute them; by what factors the inputs
# are wider than [-1, 1), or None where the op must draw them; and inputs of their own kind, by
# name, where they can be drawn on the device.
EXACT: dict[str, Exact] = {
    "conv2d": _conv2d,
    "matmul": _matmul,
    "matmul_fp8": _matmul_fp8,
    "matmul_int8": _matmul_int8,
    "matmul_weight_only": _weight_only,
    "attention": _attention,
    "softmax": _softmax,
    "layer_norm": _norm,
    "rms_norm": _norm,
}
SCALES: dict[str, Callable[[Workload], dict[str, float] | None]] = {
    "attention": _sharp_queries,
    "conv2d": lambda workload: {} if workload["packed"] == "none" else None,
}
DRAWN: dict[str, Callable[[Any, Workload, Any], dict[str, Any]]] = {
    "attention": _packed_offsets,
    "matmul_weight_only": draw_packed,
}
