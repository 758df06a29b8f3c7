"""What `torch.compile` makes of an op on a GPU, with all of its tuning: a peer that takes long to make.

The functions are written as a user of PyTorch would. Each is compiled when it is first called, on
the very shapes of its workload, and keeps what it returns in memory of its own.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from tvmops.measure.bundle.device import Call
from tvmops.measure.bundle.torch_peers import precision_of
from tvmops.measure.bundle.torch_weights import in_rows
from tvmops.ops import op_of
from tvmops.signatures import SIGNATURES
from tvmops.signatures.attention import BHLD, NO_MASK
from tvmops.signatures.layouts import PLAIN
from tvmops.signatures.matmul_fp8 import ROWS
from tvmops.signatures.windows import sizes
from tvmops.workloads import Workload

MODE = "max-autotune-no-cudagraphs"  # calls are captured in graphs of ours

Tensors: TypeAlias = Sequence[Any]
Function: TypeAlias = Callable[..., Any]  # of a workload's inputs; returns a tensor, or several
Prepare: TypeAlias = Callable[[Tensors], Tensors]  # makes of inputs what a function takes; is not timed


def compiled_peers(torch: Any, workload: Workload, seconds: float) -> dict[str, Call]:
    """Return what `torch.compile` offers for `workload`: one peer or none, made in at most `seconds`."""
    make = FUNCTIONS.get(workload.op)
    found = make(torch, workload) if make else None
    if found is None:
        return {}
    function, prepare = found
    torch._dynamo.reset()  # it gives up on a function that it compiled for too many shapes
    from torch._inductor import config, select_algorithm

    select_algorithm.PRINT_AUTOTUNE = config.max_autotune_report_choices_stats = False
    logging.getLogger(select_algorithm.__name__).setLevel(logging.CRITICAL)  # choices that don't fit are many
    compiled = torch.compile(function, mode=MODE, fullgraph=True, dynamic=False)
    count = len(op_of(workload).inputs(workload))
    prepared: dict[tuple[int, ...], Tensors] = {}  # by where the inputs lie

    def call(*arguments: Any) -> tuple[Any, ...]:
        if not prepared and importlib.util.find_spec("triton") is None:
            raise RuntimeError("torch.compile needs triton, which is not here")
        inputs = arguments[:count]
        key = tuple(tensor.data_ptr() for tensor in inputs)
        if key not in prepared:
            taken = prepare(inputs)
            with _at_most(seconds), precision_of(torch, workload):
                made = compiled(*taken)
            prepared[key] = taken
        else:
            with precision_of(torch, workload):
                made = compiled(*prepared[key])
        return made if isinstance(made, tuple) else (made,)

    return {f"torch {torch.__version__} compile": call}


def choose_alone(lock: Path) -> None:
    """Have inductor time what it chooses from only while no other process that locks `lock` does."""
    from torch._inductor.runtime.benchmarking import benchmarker

    measure = benchmarker.benchmark_gpu
    file = lock.open("w")

    @functools.wraps(measure)
    def alone(*arguments: Any, **options: Any) -> Any:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            return measure(*arguments, **options)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)

    benchmarker.benchmark_gpu = alone


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"compiling took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _as_they_are(inputs: Tensors) -> Tensors:
    return inputs


def _activation(torch: Any, name: str) -> Function:
    functional = torch.nn.functional
    made: dict[str, Function] = {
        "none": lambda x: x,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    }
    return made.get(name) or getattr(functional, name)


def _matmul(torch: Any, workload: Workload) -> tuple[Function, Prepare] | None:
    if workload["packed"] != PLAIN or workload["out_dtype"] != "same":
        return None
    activation = _activation(torch, str(workload["activation"]))
    trans_a, trans_b = workload["trans_a"], workload["trans_b"]

    def matmul(a: Any, b: Any, *more: Any) -> Any:
        c = torch.matmul(a.mT if trans_a else a, b.mT if trans_b else b)
        for term in more:
            c = c + term
        return activation(c)

    return matmul, _as_they_are


def _matmul_fp8(torch: Any, workload: Workload) -> tuple[Function, Prepare]:
    kind, result = (getattr(torch, str(workload[field])) for field in ("dtype", "out_dtype"))
    by_rows = workload["scales"] == ROWS

    def prepare(inputs: Tensors) -> Tensors:
        a, b, a_scale, b_scale = inputs
        scales = (a_scale[:, None], b_scale[None]) if by_rows else (a_scale.reshape(()), b_scale.reshape(()))
        return a.view(kind), b.view(kind).T, *scales

    def matmul(a: Any, b: Any, a_scale: Any, b_scale: Any) -> Any:
        return torch._scaled_mm(a, b, a_scale, b_scale, out_dtype=result, use_fast_accum=True)

    return matmul, prepare


def _matmul_int8(torch: Any, workload: Workload) -> tuple[Function, Prepare] | None:
    """Sums of products, what zero points and scales make of them behind; sums of b's columns are known."""
    if workload["packed"] != PLAIN:
        return None
    values = dict(zip(SIGNATURES[workload.op].scalars(workload), op_of(workload).scalars(workload)))
    names = [spec.name for spec in SIGNATURES[workload.op].inputs(workload)][2:]
    activation, out = (
        _activation(torch, str(workload["activation"])),
        getattr(torch, str(workload["out_dtype"])),
    )
    shift = 128 if workload["dtype"] == "uint8" else 0
    a_zero, trans_b = int(values["a_zero_point"]) - shift, workload["trans_b"]
    (k,) = workload.dims("k")

    def prepare(inputs: Tensors) -> Tensors:
        a, b, *more = inputs
        b = b.mT if trans_b else b
        return a, b, b.sum(0, dtype=torch.int32), *more

    def matmul(a: Any, b: Any, b_sums: Any, *more: Any) -> Any:
        given = dict(zip(names, more))
        a = (a ^ shift).view(torch.int8) if shift else a
        c = torch._int_mm(a, b) - a_zero * b_sums
        zeros = given.get("b_zero_points", int(values.get("b_zero_point", 0)))
        if workload["b_zero_points"] != "none":
            c = c - (a.sum(1, dtype=torch.int32)[:, None] - k * a_zero) * zeros
        if out == torch.int32:
            return c
        y = activation(c * (values["scale"] * given.get("b_scales", 1.0)) + given.get("bias", 0.0))
        if out == torch.float32:
            return y
        limits = torch.iinfo(out)
        y = torch.round(y / values["out_scale"]) + values["out_zero_point"]
        return y.clamp(limits.min, limits.max).to(out)

    return matmul, prepare


def _weight_only(torch: Any, workload: Workload) -> tuple[Function, Prepare]:
    bits, activation = str(workload["bits"]), _activation(torch, str(workload["activation"]))
    n, k = workload.dims("n", "k")

    def prepare(inputs: Tensors) -> Tensors:
        x, w, *bias = inputs
        return x, *in_rows(torch, workload, w), *bias

    def matmul(x: Any, w: Any, scales: Any, zeros: Any, *bias: Any) -> Any:
        if bits == "4":
            w = torch.stack((w & 15, w >> 4), dim=-1)
        weights = (w.reshape(n, len(scales[0]), -1).to(x.dtype) - zeros[..., None]) * scales[..., None]
        c = x @ weights.reshape(n, -1)[:, :k].T
        return activation(c + bias[0] if bias else c)

    return matmul, prepare


def _softmax(torch: Any, workload: Workload) -> tuple[Function, Prepare] | None:
    if workload["mask_rows"] != 0 or workload["scaled"]:
        return None
    function = torch.log_softmax if workload["log"] else torch.softmax
    return (lambda x: function(x, 1)), _as_they_are


def _norm(torch: Any, workload: Workload) -> tuple[Function, Prepare] | None:
    functional, centred = torch.nn.functional, workload.op == "layer_norm"
    names = [spec.name for spec in SIGNATURES[workload.op].inputs(workload)]
    (eps,) = op_of(workload).scalars(workload)
    if "bias" in names and not centred:
        return None

    def norm(*inputs: Any) -> Any:
        given = dict(zip(names, inputs))
        x = given["x"] + given["residual"] if "residual" in given else given["x"]
        weight = given.get("weight")
        if centred:
            y = functional.layer_norm(x, x.shape[-1:], weight, given.get("bias"), eps=eps)
        else:
            y = functional.rms_norm(x, x.shape[-1:], weight, eps=eps)
        return (y, x) if "residual" in given else y

    return norm, _as_they_are


def _conv2d(torch: Any, workload: Workload) -> tuple[Function, Prepare] | None:
    top, left, *ends = sizes(workload, "padding")
    if [top, left] != ends or workload["packed"] != PLAIN:
        return None
    stride, dilation, groups = sizes(workload, "stride"), sizes(workload, "dilation"), workload["groups"]
    last, activation = workload["layout"] == "NHWC", _activation(torch, str(workload["activation"]))
    names = [spec.name for spec in SIGNATURES["conv2d"].inputs(workload)]

    def prepare(inputs: Tensors) -> Tensors:
        return [array.permute(0, 3, 1, 2) if array.ndim == 4 and last else array for array in inputs]

    def convolve(*inputs: Any) -> Any:
        given = dict(zip(names, inputs))
        y = torch.nn.functional.conv2d(
            given["x"], given["w"], given.get("bias"), stride, (top, left), dilation, groups
        )
        y = activation(y + given["residual"] if "residual" in given else y)
        return y.permute(0, 2, 3, 1) if last else y

    return convolve, prepare


def _attention(torch: Any, workload: Workload) -> tuple[Function, Prepare] | None:
    q_len, kv_len, heads, kv_heads = workload.dims("q_len", "kv_len", "heads", "kv_heads")
    causal = bool(workload["causal"]) and q_len > 1
    plain = workload["mask"] == NO_MASK and not workload["lengths"] and workload["page_size"] == 0
    if not plain or workload["layout"] != BHLD or (causal and q_len != kv_len):
        return None
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    (scale,) = op_of(workload).scalars(workload)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seen = create_block_mask(_earlier, None, None, q_len, kv_len, device=device) if causal else None

    def attend(q: Any, k: Any, v: Any) -> Any:
        return flex_attention(q, k, v, block_mask=seen, scale=scale, enable_gqa=heads != kv_heads)

    return attend, _as_they_are


def _earlier(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return query >= key


FUNCTIONS: dict[str, Callable[[Any, Workload], tuple[Function, Prepare] | None]] = {
    "attention": _attention,
    "conv2d": _conv2d,
    "layer_norm": _norm,
    "matmul": _matmul,
    "matmul_fp8": _matmul_fp8,
    "matmul_int8": _matmul_int8,
    "matmul_weight_only": _weight_only,
    "rms_norm": _norm,
    "softmax": _softmax,
}
