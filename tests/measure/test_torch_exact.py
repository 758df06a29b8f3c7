"""What a bundle checks candidates against, on a CPU: PyTorch's float64 results are NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from tvmops.measure.bundle.torch_exact import EXACT
from tvmops.ops import op_of
from tvmops.workloads import Workload

torch = pytest.importorskip("torch")
PROMPT = "attention batch=3 heads=4 kv_heads=2 q_len=5 kv_len=40 head_dim=16"
DECODE = "attention batch=3 heads=4 kv_heads=2 q_len=1 kv_len=40 head_dim=16"


@pytest.mark.parametrize(
    "text",
    [
        f"{PROMPT} causal=true",
        f"{PROMPT} layout=blhd",
        f"{PROMPT} causal=true lengths=true",
        f"{PROMPT} causal=true align=top-left lengths=true",
        f"{DECODE} lengths=true pages=20 page_size=8",
        f"{DECODE} layout=blhd lengths=true pages=20 page_size=8",
        f"{PROMPT} layout=thd total_q=11 total_k=70",
        f"{PROMPT} causal=true layout=thd total_q=11 total_k=70",
        f"{PROMPT} causal=true layout=thd lengths=true pages=20 page_size=8 total_q=11",
    ],
)
def test_attention(text: str) -> None:
    work = Workload.parse(text)
    op = op_of(work)
    inputs = op.random_inputs(work, seed=0)
    (expected,) = op.reference(work, *inputs)
    found = EXACT["attention"](torch, work, [torch.from_numpy(array) for array in inputs])
    assert found is not None
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "text",
    [
        "n=2 h=9 w=11 ci=4 co=6 kh=3 kw=2 stride=2x1 padding=1x0x2x3 dilation=1x2 groups=2 layout=NHWC",
        "n=1 h=7 w=5 ci=3 co=4 kh=3 kw=3 padding=1 activation=relu residual=true",
    ],
)
def test_convolutions(text: str) -> None:
    work = Workload.parse(f"conv2d {text} dtype=float16")
    op = op_of(work)
    inputs = op.random_inputs(work, seed=3)
    (right,) = op.reference(work, *inputs)
    found = EXACT["conv2d"](torch, work, [torch.from_numpy(array) for array in inputs])
    assert found is not None
    np.testing.assert_allclose(found[0].numpy(), right, rtol=1e-12, atol=1e-12)


def test_what_pytorch_is_not_asked_for() -> None:
    work = Workload.parse("conv2d n=1 h=7 w=5 ci=3 co=4 kh=3 kw=3 dtype=float16 activation=silu")
    assert EXACT["conv2d"](torch, work, []) is None
