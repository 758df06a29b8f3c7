"""What a bundle lets `torch.compile` work on computes the op: here without being compiled, on a CPU."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from tvmops.measure.bundle import torch_compiled
from tvmops.measure.bundle.device import decoded
from tvmops.measure.bundle.torch_compiled import FUNCTIONS, compiled_peers
from tvmops.ops import op_of
from tvmops.workloads import Workload

torch = pytest.importorskip("torch")


def tensors(work: Workload) -> tuple[list[Any], tuple[Any, ...]]:
    op = op_of(work)
    inputs = op.random_inputs(work, seed=0)
    exact = op.reference(work, *decoded(op, work, inputs))
    return [
        torch.from_numpy(array).view(torch.bfloat16) if spec.dtype == "bfloat16" else torch.from_numpy(array)
        for array, spec in zip(inputs, op.inputs(work))
    ], exact


@pytest.mark.parametrize(
    "text",
    [
        "matmul m=5 n=7 k=9 trans_a=true trans_b=true",
        "matmul m=5 n=7 k=9 batch=3 shared=b bias=true activation=gelu_tanh",
        "matmul m=5 n=7 k=9 residual=true activation=silu",
        "matmul_fp8 m=16 n=32 k=16 out_dtype=float32",
        "matmul_int8 m=24 n=16 k=32 dtype=int8 trans_b=true",
        "matmul_int8 m=24 n=16 k=32 b_zero_points=tensor out_dtype=float32 bias=true activation=relu",
        "matmul_int8 m=24 n=16 k=32 out_dtype=int8 scales=channel b_zero_points=channel",
        "matmul_weight_only m=3 n=32 k=64 group=32 bits=4",
        "matmul_weight_only m=3 n=32 k=64 group=32 bits=8 zero_points=true bias=true activation=relu",
        "softmax rows=5 cols=9",
        "softmax rows=5 cols=9 log=true",
        "softmax rows=5 cols=9 inner=4 axis=middle",
        "layer_norm rows=5 cols=9 weight=true bias=true residual=true",
        "rms_norm rows=5 cols=9 weight=true",
        "conv2d n=2 h=7 w=5 ci=4 co=6 kh=3 kw=3 padding=1 stride=2 groups=2 bias=true activation=relu6",
        "conv2d n=1 h=7 w=5 ci=3 co=4 kh=3 kw=3 layout=NHWC residual=true activation=hardswish padding=1",
        "attention batch=2 heads=4 kv_heads=2 q_len=16 kv_len=16 head_dim=16 causal=true",
        "attention batch=2 heads=4 kv_heads=4 q_len=1 kv_len=40 head_dim=16",
    ],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_functions_compute_their_ops(text: str) -> None:
    work = Workload.parse(text)
    inputs, exact = tensors(work)
    found = FUNCTIONS[work.op](torch, work)
    assert found is not None
    function, prepare = found
    made = function(*prepare(inputs))
    for result, right in zip(made if isinstance(made, tuple) else (made,), exact):
        assert tuple(result.shape) == right.shape
        np.testing.assert_allclose(result.float().numpy(), right, rtol=0, atol=op_of(work).tolerance(work))


@pytest.mark.parametrize(
    "text",
    [
        "matmul m=5 n=7 k=9 dtype=bfloat16 out_dtype=float32",  # PyTorch would round in between
        "softmax rows=5 cols=9 scaled=true",
        "conv2d n=2 h=7 w=5 ci=4 co=6 kh=3 kw=3 padding=1x0x2x3",
        "attention batch=2 heads=4 kv_heads=2 q_len=16 kv_len=16 head_dim=16 lengths=true",
        "pool2d n=1 h=5 w=5 c=3 kernel=3",
    ],
)
def test_what_it_is_not_asked_for(text: str) -> None:
    assert compiled_peers(torch, Workload.parse(text), 1.0) == {}


def test_what_takes_too_long_to_compile_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_slowly(*inputs: Any) -> Any:
        time.sleep(60)

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_slowly)
    monkeypatch.setattr(torch_compiled.importlib.util, "find_spec", lambda name: object())
    work = Workload.parse("softmax rows=5 cols=9")
    (call,) = compiled_peers(torch, work, 0.05).values()
    with pytest.raises(TimeoutError, match=r"more than 0\.05 s"):
        call(*tensors(work)[0], torch.empty(5, 9))


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_compiled.importlib.util, "find_spec", lambda name: None)
    work = Workload.parse("softmax rows=5 cols=9")
    ((name, call),) = compiled_peers(torch, work, 1.0).items()
    assert name == f"torch {torch.__version__} compile"
    with pytest.raises(RuntimeError, match="needs triton"):
        call(*tensors(work)[0], torch.empty(5, 9))
