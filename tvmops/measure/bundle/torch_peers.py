"""What PyTorch offers for an op on a GPU: its libraries, each under a name of its own.

A peer is called as a kernel is. What it can't write in place it leaves in memory of its own,
which costs it nothing in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvmops.measure.bundle.device import Call
from tvmops.measure.bundle.torch_weights import unpacked
from tvmops.signatures import SIGNATURES
from tvmops.signatures.attention import NO_MASK, THD
from tvmops.signatures.matmul import TF32
from tvmops.signatures.matmul_fp8 import ROWS
from tvmops.signatures.pool2d import GLOBAL, MAX
from tvmops.signatures.windows import sizes
from tvmops.workloads import Workload


@contextmanager
def precision_of(torch: Any, workload: Workload) -> Iterator[None]:
    """Have PyTorch keep as many bits of float32 factors as `workload` asks for."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = workload.op == "matmul" and workload["precision"] == TF32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _matmul(torch: Any, workload: Workload) -> dict[str, Call]:
    if workload["bias"] or workload["residual"] or workload["activation"] != "none":
        return {}

    def matmul(a: Any, b: Any, c: Any) -> None:
        left, right = (a.mT if workload["trans_a"] else a), (b.mT if workload["trans_b"] else b)
        with precision_of(torch, workload):
            torch.matmul(left, right, out=c)

    return {f"torch {torch.__version__} matmul{', allow_tf32' * (workload['precision'] == TF32)}": matmul}


def _matmul_fp8(torch: Any, workload: Workload) -> dict[str, Call]:
    kind, result = (getattr(torch, str(workload[field])) for field in ("dtype", "out_dtype"))
    by_rows = workload["scales"] == ROWS

    def through(fast: bool) -> Call:
        def matmul(a: Any, b: Any, a_scale: Any, b_scale: Any, c: Any) -> None:
            scales = (a_scale[:, None], b_scale[None]) if by_rows else (a_scale, b_scale)
            torch._scaled_mm(
                a.view(kind), b.view(kind).T, *scales, out_dtype=result, use_fast_accum=fast, out=c
            )

        return matmul

    name = f"torch {torch.__version__} _scaled_mm"
    return {name: through(False), f"{name}, fast": through(True)}


def _matmul_int8(torch: Any, workload: Workload) -> dict[str, Call]:
    if workload["out_dtype"] != "int32" or workload["dtype"] != "int8":
        return {}

    def matmul(a: Any, b: Any, *more: Any) -> None:
        torch._int_mm(a, b.mT if workload["trans_b"] else b, out=more[-1])

    return {f"torch {torch.__version__} _int_mm, without zero points": matmul}


def _attention(torch: Any, workload: Workload) -> dict[str, Call]:
    q_len, kv_len, heads, kv_heads = workload.dims("q_len", "kv_len", "heads", "kv_heads")
    causal = bool(workload["causal"]) and q_len > 1
    if workload["layout"] == THD:
        return _packed_attention(torch, workload)
    if workload["mask"] != NO_MASK or workload["lengths"]:
        return {}
    if causal and q_len != kv_len:
        aligned = workload["align"] == "bottom-right" and q_len < kv_len
        return _lower_right_attention(torch, workload) if aligned else {}
    from torch.nn.attention import SDPBackend, sdpa_kernel

    attend = torch.nn.functional.scaled_dot_product_attention
    backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}

    def through(backend: Any, folded: bool) -> Call:
        def call(q: Any, k: Any, v: Any, scale: float, out: Any) -> None:
            if folded:  # heads that share keys as queries of one head
                q = q.reshape(q.shape[0], kv_heads, -1, q.shape[3])
            with sdpa_kernel(backend):
                attend(q, k, v, scale=scale, is_causal=causal, enable_gqa=not folded and heads != kv_heads)

        return call

    calls = {name: through(backend, False) for name, backend in backends.items()}
    if not causal and q_len < kv_len and heads != kv_heads:
        calls |= {f"{name}, heads folded": through(backend, True) for name, backend in backends.items()}
    return {f"torch {torch.__version__} {name}": call for name, call in calls.items()}


def _lower_right_attention(torch: Any, workload: Workload) -> dict[str, Call]:
    """FlashAttention, which PyTorch calls where a mask says by its type that the last query sees all keys."""
    from torch.nn.attention.bias import causal_lower_right

    mask = causal_lower_right(*workload.dims("q_len", "kv_len"))
    grouped = workload["heads"] != workload["kv_heads"]

    def flash(q: Any, k: Any, v: Any, scale: float, out: Any) -> tuple[Any]:
        attend = torch.nn.functional.scaled_dot_product_attention
        return (attend(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped),)

    return {f"torch {torch.__version__} flash, lower right": flash}


def _packed_attention(torch: Any, workload: Workload) -> dict[str, Call]:
    """What is behind `varlen_attn` and behind attention of nested tensors."""
    q_len, kv_len = workload.dims("q_len", "kv_len")
    causal = bool(workload["causal"])
    if workload["align"] != "bottom-right" or workload["page_size"] != 0:
        return {}

    def flash(q: Any, k: Any, v: Any, of_q: Any, of_k: Any, scale: float, out: Any) -> tuple[Any]:
        attend = torch.ops.aten._flash_attention_forward
        return (attend(q, k, v, of_q, of_k, q_len, kv_len, 0.0, causal, False, scale=scale)[0],)

    def cudnn(q: Any, k: Any, v: Any, of_q: Any, of_k: Any, scale: float, out: Any) -> tuple[Any]:
        attend = torch.ops.aten._cudnn_attention_forward
        return (attend(q, k, v, None, of_q, of_k, q_len, kv_len, False, 0.0, causal, False, scale=scale)[0],)

    calls: dict[str, Call] = {f"torch {torch.__version__} flash, packed": flash}
    alike = (workload["total_q"], q_len) == (workload["total_k"], kv_len)
    if alike or not causal:  # else it aligns them otherwise
        calls[f"torch {torch.__version__} cudnn, packed"] = cudnn
    return calls


def _weight_only(torch: Any, workload: Workload) -> dict[str, Call]:
    if workload["bias"] or workload["activation"] != "none":
        return {}
    floats: dict[int, Any] = {}  # the weights that packed ones stand for, by where those lie

    def matmul(x: Any, w: Any, c: Any) -> None:
        if w.data_ptr() not in floats:
            floats[w.data_ptr()] = unpacked(torch, workload, w).to(x.dtype)
        torch.matmul(x, floats[w.data_ptr()].mT, out=c)

    return {f"torch {torch.__version__} matmul of {workload['dtype']} weights": matmul}


def _pool2d(torch: Any, workload: Workload) -> dict[str, Call]:
    if workload["kernel"] == GLOBAL:
        return {}
    top, left, *ends = sizes(workload, "padding")
    is_max = workload["kind"] == MAX
    if [top, left] != ends:
        return {}
    functional, window = torch.nn.functional, (sizes(workload, "kernel"), sizes(workload, "stride"))
    ceil_mode, last = bool(workload["ceil_mode"]), workload["layout"] == "NHWC"

    def pool(x: Any, y: Any) -> tuple[Any]:
        seen = x.permute(0, 3, 1, 2) if last else x
        if is_max:
            made = functional.max_pool2d(seen, *window, (top, left), sizes(workload, "dilation"), ceil_mode)
        else:
            counts = bool(workload["count_include_pad"])
            made = functional.avg_pool2d(seen, *window, (top, left), ceil_mode, counts)
        return (made.permute(0, 2, 3, 1) if last else made,)

    return {f"torch {torch.__version__} {workload['kind']}_pool2d": pool}


def _softmax(torch: Any, workload: Workload) -> dict[str, Call]:
    if workload["mask_rows"] != 0 or workload["scaled"] or workload["log"]:
        return {}

    def softmax(x: Any, out: Any) -> None:
        torch.softmax(x, 1, out=out)

    return {f"torch {torch.__version__} softmax": softmax, "copy": lambda x, out: out.copy_(x)}


def _norm(torch: Any, workload: Workload) -> dict[str, Call]:
    if workload["residual"]:
        return {}
    weighted, biased, centred = workload["weight"], workload["bias"], workload.op == "layer_norm"
    if biased and not centred:
        return {}

    def norm(x: Any, *more: Any) -> None:
        *factors, eps, _ = more
        weight = factors.pop(0) if weighted else None
        if centred:
            torch.nn.functional.layer_norm(x, x.shape[-1:], weight, *factors, eps=eps)
        else:
            torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps=eps)

    return {
        f"torch {torch.__version__} {workload.op}": norm,
        "copy": lambda x, *more: more[-1].copy_(x),
    }


def _conv2d(torch: Any, workload: Workload) -> dict[str, Call]:
    """cuDNN's fastest kernel, in both layouts; what follows the sum apart, or fused where PyTorch can.

    What lies NHWC is there in the other layout beforehand. What lies NCHW is turned in the call, there and
    back, but for the weights, as who has such images must.
    """
    top, left, *ends = sizes(workload, "padding")
    after = {"none": None, "relu": torch.relu_}
    if [top, left] != ends or workload["activation"] not in after:
        return {}
    attributes = {
        "stride": sizes(workload, "stride"),
        "padding": (top, left),
        "dilation": sizes(workload, "dilation"),
        "groups": workload["groups"],
    }
    last, activate = workload["layout"] == "NHWC", after[str(workload["activation"])]
    names = [spec.name for spec in SIGNATURES["conv2d"].inputs(workload)]
    copies: dict[int, Any] = {}  # inputs in the other layout, by where they lie

    def given(arrays: tuple[Any, ...], as_given: bool) -> dict[str, Any]:
        """Return the inputs, images and weights as PyTorch numbers their dimensions."""
        found = {}
        for name, array in zip(names, arrays):
            image = array.ndim == 4
            seen = array.permute(0, 3, 1, 2) if image and last else array
            if image and not as_given:
                other = torch.contiguous_format if last else torch.channels_last
                if not last and name != "w":
                    seen = seen.contiguous(memory_format=other)
                elif array.data_ptr() not in copies:
                    copies[array.data_ptr()] = seen.contiguous(memory_format=other)
                seen = copies.get(array.data_ptr(), seen)
            found[name] = seen
        return found

    def turn_back(y: Any, as_given: bool) -> None:
        if not last and not as_given:
            y.contiguous()

    def through(as_given: bool) -> Call:
        def convolve(*arrays: Any) -> None:
            inputs = given(arrays, as_given)
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                y = torch.nn.functional.conv2d(inputs["x"], inputs["w"], inputs.get("bias"), **attributes)
            if "residual" in inputs:
                y += inputs["residual"]
            if activate:
                activate(y)
            turn_back(y, as_given)

        return convolve

    def fused(as_given: bool) -> Call:
        def convolve(*arrays: Any) -> None:
            inputs = given(arrays, as_given)
            x, w, ends = inputs["x"], inputs["w"], (inputs.get("bias"), *attributes.values())
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                if "residual" in inputs:
                    y = torch.cudnn_convolution_add_relu(x, w, inputs["residual"], 1.0, *ends)
                else:
                    y = torch.cudnn_convolution_relu(x, w, *ends)
            turn_back(y, as_given)

        return convolve

    name, layouts = f"torch {torch.__version__} conv2d", {"NHWC": last, "NCHW": not last}
    calls = {f"{name} {layout}": through(as_given) for layout, as_given in layouts.items()}
    for layout in ("NHWC",) if last else layouts:
        if activate:
            calls[f"{name} {layout}, fused"] = fused(layouts[layout])
    return calls


PEERS: dict[str, Callable[[Any, Workload], dict[str, Call]]] = {
    "conv2d": _conv2d,
    "matmul": _matmul,
    "matmul_fp8": _matmul_fp8,
    "matmul_int8": _matmul_int8,
    "matmul_weight_only": _weight_only,
    "attention": _attention,
    "pool2d": _pool2d,
    "softmax": _softmax,
    "layer_norm": _norm,
    "rms_norm": _norm,
}
