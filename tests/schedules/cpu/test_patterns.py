"""Kernels built for a pattern of sizes, in whatever config a range may choose, are right at its shapes."""

from __future__ import annotations

import random

import pytest

from tvmops.measure.candidate import Candidate, Plan
from tvmops.measure.local import LocalMeasurer
from tvmops.schedules import templates_for
from tvmops.targets import target
from tvmops.workloads import Workload

# each with a shape that leaves rests in every tile, and one at the edge of the range
RANGES = {
    "matmul m=1..40 n=33 k=20": [{"m": 13}, {"m": 1}],
    "matmul m=1..40 n=33 k=20 dtype=bfloat16": [{"m": 13}, {"m": 1}],
    "attention batch=1..3 heads=4 kv_heads=2 q_len=1..40 kv_len=40 head_dim=20 causal=true": [
        {"batch": 2, "q_len": 13},
        {"batch": 1, "q_len": 1},
    ],
    "attention batch=1 heads=4 kv_heads=2 q_len=1 kv_len=1..300 head_dim=20": [{"kv_len": 77}, {"kv_len": 1}],
    "conv2d n=1..4 h=3..30 w=3..30 ci=20 co=24 kh=3 kw=3 padding=1": [
        {"n": 2, "h": 13, "w": 9},
        {"n": 1, "h": 3, "w": 3},
    ],
    "conv2d n=1..4 h=3..30 w=3..30 ci=20 co=24 kh=3 kw=3 padding=1 layout=NHWC": [
        {"n": 2, "h": 13, "w": 9},
        {"n": 1, "h": 3, "w": 3},
    ],
    "conv2d n=1..4 h=3..30 w=3..30 ci=20 co=24 kh=1 kw=1 layout=NHWC": [{"n": 2, "h": 13, "w": 9}],
    "conv2d n=1..4 h=3..30 w=3..30 ci=8 co=8 groups=8 kh=3 kw=3 stride=2 padding=1": [
        {"n": 2, "h": 13, "w": 9}
    ],
}


@pytest.mark.parametrize("text", RANGES)
def test_configs_of_a_range_are_right_at_its_shapes(text: str) -> None:
    here = target("native")
    ranged = Workload.parse(text)
    pattern, first = ranged.symbolic(), ranged.replace(**RANGES[text][0])
    candidates = []
    for template in templates_for(first, here):
        if not template.covers(pattern, here):
            continue
        space = template.symbolic_space(template.space(first, here), pattern)
        drawn = [space.sample(random.Random(seed)) for seed in range(2)]
        configs = dict.fromkeys(
            [template.default(first, here), *(each for each in drawn if each is not None)]
        )
        for sizes in RANGES[text]:
            shape = ranged.replace(**sizes)
            fitting = template.space(shape, here)
            candidates += [
                Candidate(pattern, here, template.path, config, shape)
                for config in configs
                if template.covers(shape, here) and (shape == first or config in fitting)
            ]
    assert candidates
    measurer = LocalMeasurer(here)
    try:
        outcomes = list(measurer.measure(candidates, Plan(samples=1)))
    finally:
        measurer.close()
    wrong = {str(c.config): o.detail for c, o in zip(candidates, outcomes) if o.status != "ok"}
    assert not wrong
