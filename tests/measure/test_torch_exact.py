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
