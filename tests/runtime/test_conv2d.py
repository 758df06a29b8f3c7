"""Conv2d through an exported library: each layout and activation, tuned and generic kernels."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

import tvmops
from tests.runtime.conftest import LIBRARY
from tvmops.ops import op_of
from tvmops.runtime.calls import CALL_ARGUMENTS
from tvmops.signatures.activations import ACTIVATIONS
from tvmops.workloads import Workload

pytestmark = pytest.mark.skipif(LIBRARY in os.environ, reason="exports a library of its own")

BASE = "n=1 h=9 w=9 ci=4 co=8 kh=3 kw=3 padding=1 bias=true"
WORK = [
    *(f"{BASE} activation={activation}" for activation in ACTIVATIONS),
    f"{BASE} layout=NHWC residual=true activation=relu",
    "n=1 h=9 w=9 ci=8 co=8 kh=3 kw=3 padding=1 stride=2 groups=8",
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tvmops.Library:
    from tests.libraries import default_record, write_log
    from tvmops.library.export import export

    folder, where = tmp_path_factory.mktemp("conv2d"), tvmops.target("native")
    work = [Workload.parse(f"conv2d {text}") for text in WORK]
    log = write_log(folder / "log.jsonl", *(default_record(each, where) for each in work))
    return tvmops.load(export(work, where, [log], Path(folder / "library")))


@pytest.mark.parametrize("text", WORK)
def test_tuned_and_generic_kernels_answer(library: tvmops.Library, text: str) -> None:
    tuned = Workload.parse(f"conv2d {text}")
    for work in (tuned, tuned.replace(n=2, h=12, w=21)):
        op = op_of(work)
        inputs = op.random_inputs(work, seed=2)
        arguments = CALL_ARGUMENTS["conv2d"](work, inputs)
        tier = "exact" if work == tuned else "generic"
        assert library.explain(str(work)).tier == tier
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = library.conv2d(**arguments)
            out = np.full_like(result, np.nan)
            assert library.conv2d(**arguments, out=out) is out
        assert np.abs(result - op.reference(work, *inputs)[0]).max() <= op.tolerance(work)
        assert np.array_equal(result, out)


def test_other_channels_are_answered(library: tvmops.Library) -> None:
    work = Workload.parse(f"conv2d {BASE}").replace(ci=5, co=3)
    assert library.explain(str(work)).tier == "generic"


def test_depthwise_has_a_generic_kernel_of_its_own(library: tvmops.Library) -> None:
    answer = library.explain(f"conv2d {WORK[-1]}".replace("h=9", "h=11"))
    assert answer.kernel.template.startswith("cpu.conv2d.depthwise")
