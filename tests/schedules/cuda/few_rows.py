"""What tests of wgmma products of few rows share: workloads, random configs, emulated runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.schedules.cuda.compiled import compiled
from tests.schedules.cuda.emulated import TensorMap
from tests.schedules.cuda.products import Launch, blocks_of, error_here
from tvmops.ops import op_of
from tvmops.schedules import Template
from tvmops.schedules.cuda.gemm_swapped import tiles_of
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload, workload

H200 = target("nvidia-h200")
Boxes = Callable[[Workload, Any, Any, Any], dict[str, TensorMap]]  # of a product, its tiles, a and b
ROWS = (1, 7, 16, 30)  # of random products: one, odd, a whole tile, two


def matmul(m: int, n: int, k: int, **fields: object) -> Workload:
    return workload("matmul", m=m, n=n, k=k, **{"dtype": "bfloat16", **fields})


def default_is_legal(template: Template, shape: tuple[int, int, int]) -> bool:
    """Say whether `template` has its default in its space, however b lies."""
    works = [matmul(*shape, trans_b=trans) for trans in (False, True)]
    return all(template.default(work, H200) in template.space(work, H200) for work in works)


def drawn(template: Template, work: Workload, rng: random.Random) -> Config:
    knobs = template.space(work, H200).sample(rng)
    assert knobs is not None
    return knobs


def error_of(
    template: Template, work: Workload, knobs: Config, folder: Path, boxes: Boxes = lambda *_: {}
) -> float:
    """Return the largest error of an emulated run amid guards, as a share of what is allowed."""
    cubin, tiles = compiled(template, work, H200, knobs), tiles_of(knobs)
    a, b, *_ = op_of(work).random_inputs(work, seed=1)  # kept: boxes know where they lie
    blocks = blocks_of(work, tiles.rows, tiles.bn) * tiles.splits
    launch = Launch(blocks, tiles.splits, tiles.shared_bytes)
    return error_here(cubin, work, launch, folder, boxes(work, tiles, a, b)) / op_of(work).tolerance(work)
