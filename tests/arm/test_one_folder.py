"""One folder for machines of two architectures: it runs here, with features masked, and on an ARM CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from tests.arm.conftest import Answers
from tests.arm.emulated import Job
from tests.libraries import default_record, matmul, one_generic_kernel, write_log
from tvmops.library.export import export
from tvmops.machine import this_machine
from tvmops.manifest import Manifest
from tvmops.measure.problem import make_problem
from tvmops.runtime.load import load
from tvmops.targets import target

NAMES = ["neoverse-n1", "x86-64-v3", "x86-64-v4"]
WORK = matmul(33, 65, 17)  # tiles, and a rest in each dimension


@pytest.mark.skipif(bool(target("x86-64-v4").missing(this_machine())), reason="needs AVX-512")
def test_the_same_folder_runs_as_avx512_as_avx2_and_on_arm(
    emulate: Callable[[str, Job], Answers], tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log.jsonl", *(default_record(WORK, target(name)) for name in NAMES))
    with one_generic_kernel():
        folder = export(WORK, NAMES, [log], tmp_path / "library")
    runtimes = {variant.arch: variant.runtime for variant in Manifest.read(folder).variants}
    assert len(set(runtimes.values())) == 2, "each architecture has its own"
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((33, 17), "float32"), rng.standard_normal((17, 65), "float32")
    for mask, serves in {"": "x86-64-v4", "avx512*": "x86-64-v3"}.items():
        lib = load(folder, mask_features=[mask])
        assert lib.variants.taken["cpu"].target == serves
        assert np.abs(lib.matmul(a, b) - a.astype("float64") @ b).max() < 1e-5
    job = Job(
        run=(folder,), choose=(folder,), problems=((str(WORK), make_problem(WORK, tmp_path / "p", seed=0)),)
    )
    answers = emulate("neoverse-n1", job)
    assert [answer["chosen"] for answer in answers if "chosen" in answer] == [["neoverse-n1"]]
    checks = [(answer["tier"], answer["complaint"]) for answer in answers if "workload" in answer]
    assert checks == [("exact", "")]
