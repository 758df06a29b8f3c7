from __future__ import annotations

from pathlib import Path

import pytest

from tests.schedules.cuda.emulated import needs_emulator
from tests.schedules.cuda.test_rows import check_here, norm, softmax
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.split_rows import SplitRows
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

TEMPLATE = SplitRows()
H200 = target("nvidia-h200")


@pytest.mark.parametrize(
    "work, machine, covered",
    [
        (softmax(cols=128256), "nvidia-h200", True),
        (softmax(cols=50257, dtype="float16"), "nvidia-h100", True),  # element by element
        (norm(cols=128256), "nvidia-h200", True),
        (softmax(cols=4096), "nvidia-h200", False),  # a block suffices
        (softmax(cols=2_000_000), "nvidia-h200", False),  # more than the registers of a cluster hold
        (softmax(cols=128256), "rtx-4090", False),  # no clusters
        (softmax(cols="*"), "nvidia-h200", False),
    ],
)
def test_what_it_covers(work: Workload, machine: str, covered: bool) -> None:
    assert TEMPLATE.covers(work, target(machine)) is covered


@pytest.mark.parametrize("rows", [1, 16, 4096, "*"])
@pytest.mark.parametrize("cols", [8192, 50257, 128256])
def test_the_default_is_legal(rows: int | str, cols: int) -> None:
    work = softmax(rows=rows, cols=cols)
    assert TEMPLATE.default(work, H200) in TEMPLATE.space(work, H200)


def test_it_comes_first_where_no_block_holds_a_row() -> None:
    names = [template.name for template in templates_for(softmax(cols=128256), H200)]
    assert names == ["cuda.split_rows", "sketch"]


def config(threads: int, splits: int) -> Config:
    return Config.of(threads=threads, rows=1, stream=True, resident=0, keep=False, splits=splits)


CASES = [
    (softmax(cols=8200, rows=3), config(128, 2)),
    (softmax(cols=8197, dtype="float16", scaled=True, mask_rows=1, rows=2), config(256, 8)),  # odd
    (norm(cols=8192, bias=True, residual=True, rows=2), config(128, 8)),
    (norm("rms_norm", cols=9000, dtype="float32", rows=2), config(256, 4)),
]


@pytest.mark.parametrize("work, knobs", CASES, ids=[f"{work} {knobs}" for work, knobs in CASES])
class TestRunHere:
    pytestmark = needs_emulator

    def test_it_computes_the_op(self, work: Workload, knobs: Config, tmp_path: Path) -> None:
        check_here(TEMPLATE, work, knobs, tmp_path)
