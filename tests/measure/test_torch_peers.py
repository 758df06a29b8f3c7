"""Peers compute the op that they are compared for: here on a CPU."""

from __future__ import annotations

import numpy as np
import pytest

from tvmops.measure.bundle.torch_peers import PEERS
from tvmops.ops import op_of
from tvmops.workloads import Workload

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    "text",
    [
        "pool2d n=2 h=9 w=7 c=6 kernel=3x2 stride=2x1 padding=1 ceil_mode=true",
        "pool2d n=2 h=9 w=7 c=6 kernel=3 dilation=2 layout=NHWC",
        "pool2d n=2 h=9 w=7 c=6 kernel=3x2 kind=average padding=1 count_include_pad=false layout=NHWC",
        "softmax rows=5 cols=9",
        "softmax rows=5 cols=9 inner=4 axis=middle",
    ],
)
def test_what_they_compute(text: str) -> None:
    work = Workload.parse(text)
    op = op_of(work)
    (x,), (spec,) = op.random_inputs(work, seed=0), op.outputs(work)
    (exact,) = op.reference(work, x)
    peers = {name: peer for name, peer in PEERS[work.op](torch, work).items() if name != "copy"}
    assert len(peers) == 1
    for peer in peers.values():
        out = torch.full(spec.shape, torch.nan)
        made = peer(torch.from_numpy(x), out)
        found = made[0] if isinstance(made, tuple) else out
        np.testing.assert_allclose(found.numpy(), exact, rtol=0, atol=op.tolerance(work))


@pytest.mark.parametrize(
    "text",
    [
        "pool2d n=2 h=9 w=7 c=6 kernel=global",
        "pool2d n=2 h=9 w=7 c=6 kernel=3 padding=1x0x0x1",
        "attention batch=2 heads=4 kv_heads=2 q_len=3 kv_len=8 head_dim=8 layout=thd lengths=true pages=9 "
        "page_size=4 total_q=5",
        "attention batch=2 heads=4 kv_heads=2 q_len=3 kv_len=8 head_dim=8 causal=true align=top-left "
        "layout=thd total_q=5 total_k=9",
    ],
)
def test_what_pytorch_has_not(text: str) -> None:
    work = Workload.parse(text)
    assert PEERS[work.op](torch, work) == {}


def test_the_last_query_sees_all_keys() -> None:
    work = Workload.parse("attention batch=2 heads=4 kv_heads=2 q_len=3 kv_len=8 head_dim=8 causal=true")
    op = op_of(work)
    inputs = op.random_inputs(work, seed=0)
    (peer,) = PEERS[work.op](torch, work).values()
    (found,) = peer(*map(torch.from_numpy, inputs), *op.scalars(work), torch.empty(0))
    np.testing.assert_allclose(found.numpy(), op.reference(work, *inputs)[0], rtol=0, atol=op.tolerance(work))
