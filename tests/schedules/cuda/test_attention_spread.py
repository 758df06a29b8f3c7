from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import emulated, needs_emulator
from tests.schedules.cuda.test_attention_decode import attention, run
from tvmops.ops import op_of
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.attention_spread import SpreadAttention
from tvmops.schedules.cuda.kernels.attention_shares import PAD
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = SpreadAttention()
H200 = target("nvidia-h200")
SMALL = {"warps": 2, "keys": 16, "stages": 2, "ahead": 0, "early": 0}


@pytest.mark.parametrize(
    "heads, fields, clusters",
    [
        ((8, 1), {"kv_len": 65536}, 8),
        ((16, 2), {"kv_len": 65536}, 4),
        ((8, 1), {"kv_len": 65536, "batch": 2, "lengths": True}, 4),
        ((8, 1), {"kv_len": 2048}, 0),  # the second kernel takes longer than it saves
        ((8, 1), {"kv_len": 8192}, 8),
        ((32, 8), {"kv_len": 65536}, 0),  # a cluster a head is half of the machine
        ((8, 1), {"kv_len": "*"}, 0),
    ],
)
def test_few_heads_of_long_caches_are_spread(
    heads: tuple[int, int], fields: dict[str, object], clusters: int
) -> None:
    work = attention(heads=heads[0], kv_heads=heads[1], **fields)
    first, *_ = templates_for(work, H200)
    assert (first.name == TEMPLATE.name) is (clusters > 0)
    if clusters:
        config = TEMPLATE.default(work, H200)
        assert config in TEMPLATE.space(work, H200)
        assert (config["splits"], config["clusters"]) == (8, clusters)
    assert not TEMPLATE.covers(work, target("nvidia-a100"))


CASES = [
    (attention(heads=8, kv_heads=2), {"splits": 2, **SMALL, "clusters": 3}),
    (attention(heads=12, kv_heads=1, head_dim=80, dtype="float16"), {"splits": 4, **SMALL, "clusters": 2}),
    (
        attention(heads=4, kv_heads=2, head_dim=256, lengths=True, pages=40, page_size=16),
        {"splits": 2, **SMALL, "clusters": 2},
    ),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=["two heads", "a group of 12", "pages"])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_attention(self, work: Workload, knobs: dict[str, int], tmp_path: Path) -> None:
        config = Config.of(**knobs)
        exact = work.replace(batch=2, kv_len=150)  # some blocks have nothing
        cubin = compiled(TEMPLATE, work, H200, config)
        assert cubin.report.spilled_bytes == 0 and cubin.report.warnings == ()
        split, add = emulated(cubin, tmp_path, 0), emulated(cubin, tmp_path, 1)
        heads, head_dim = work.dims("heads", "head_dim")
        rows = 2 * heads * knobs["clusters"]

        def call(grid: int, arguments: Mapping[str, Any], cluster: int, shared_bytes: int) -> None:
            left = np.full((rows, head_dim + PAD), np.nan, np.float32)
            both = {**arguments, "workspace": left, "workspace_bytes": left.nbytes}
            split(grid * knobs["clusters"], both, cluster=cluster, shared_bytes=shared_bytes)
            assert not np.isnan(left).any()
            add(2 * heads, both)

        (scale,) = op_of(exact).scalars(exact)
        error, allowed = run(call, exact, config, scale)
        assert error <= allowed

    def test_it_says_what_it_leaves(self, work: Workload, knobs: dict[str, int], tmp_path: Path) -> None:
        module = TEMPLATE.build(work, H200, Config.of(**knobs))
        assert {name.name_hint for name in module.functions} == {"main", "main_workspace"}
