"""A library with a range: exact, then bucket, then generic; and what it says of each."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tvmops
from tests.libraries import default_record, matmul, write_log
from tvmops.errors import ArgumentError, NoRecordError
from tvmops.library.export import export
from tvmops.manifest import Manifest
from tvmops.records import Record
from tvmops.schedules.cpu.gemm import CpuGemm
from tvmops.suites import read_suite
from tvmops.targets import Target, target
from tvmops.workloads import Workload

RANGED = Workload.parse("matmul m=1..40 n=33 k=19")  # n leaves a rest in any vector, k in any unrolled loop
EXACT = matmul(7, 33, 19)
SECONDS = {1: (1e-6, 3e-6), 9: (3e-6, 2e-6), 40: (9e-6, 8.8e-6)}  # of the two kernels


def record(here: Target, m: int, mr: int, seconds: float) -> Record:
    config = CpuGemm().default(matmul(40, 33, 19), here).replace(mr=mr, split_m=1, split_n=1)
    return default_record(
        matmul(m, 33, 19),
        here,
        workload=str(RANGED.symbolic()),
        shape=str(matmul(m, 33, 19)),
        config=config.as_dict(),
        seconds=(seconds,),
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = target("native")
    records = [record(here, m, mr, s) for m, both in SECONDS.items() for mr, s in zip((2, 5), both)]
    exact = default_record(EXACT, here)
    return write_log(tmp_path_factory.mktemp("log") / "log.jsonl", exact, *records)


@pytest.fixture(scope="module")
def library(log: Path) -> tvmops.Library:
    return tvmops.load(export([RANGED, EXACT], "native", [log], log.parent / "library"))


def test_every_size_of_the_range_is_right(library: tvmops.Library) -> None:
    """Also where the last tile has any number of rows less than a whole one."""
    rng = np.random.default_rng(0)
    b = rng.random((19, 33), dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of them is a miss
        for m in range(1, 41):
            a = rng.random((m, 19), dtype="float32")
            out = np.full((m + 1, 33), np.nan, "float32")
            library.matmul(a, b, out=out[:m])
            np.testing.assert_allclose(out[:m], a.astype("float64") @ b, atol=4 * 20 * 2**-24)
            assert np.isnan(out[m]).all()
    assert library.misses() == {}


def test_each_tier_explains_itself(library: tvmops.Library) -> None:
    exact = library.explain(str(EXACT))
    assert (exact.tier, exact.seconds, exact.loss) == ("exact", 2e-6, None)
    near_nine = library.explain(str(matmul(17, 33, 19)))
    assert (near_nine.tier, near_nine.at, near_nine.seconds) == ("bucket", "m=9", 2e-6)
    assert near_nine.kernel.config["mr"] == 5
    assert "0.0% against the fastest kernel, at m=9" in str(near_nine)
    assert library.explain(str(matmul(2, 33, 19))).kernel.config["mr"] == 2
    beyond = library.explain(str(matmul(41, 33, 19)))
    assert beyond.tier == "generic"
    assert any(str(RANGED) in reason for reason in beyond.refused)
    assert "refused      no kernel was built for this very shape" in str(beyond)


def test_more_regret_needs_fewer_kernels(log: Path, library: tvmops.Library) -> None:
    (bucket,) = library.manifest.variants[0].buckets
    assert (len(bucket.kernels), bucket.samples["m"]) == (2, (1, 9, 40))
    manifest = Manifest.read(export(RANGED, "native", [log], log.parent / "lazy", regret=0.5))
    (lazy,) = manifest.variants[0].buckets
    assert len(lazy.kernels) == 1
    assert lazy.losses == pytest.approx((0.0, 0.5, 9 / 8.8 - 1))


def test_only_the_last_comparison_of_a_shape_counts(log: Path, tmp_path: Path) -> None:
    here = target("native")
    turned = [record(here, 9, mr, s) for mr, s in ((2, 1e-6), (5, 4e-6))]
    finals = [replace(each, stage="final", rank=rank) for rank, each in enumerate(turned)]
    both = tmp_path / "both.jsonl"
    both.write_bytes(log.read_bytes() + write_log(tmp_path / "finals.jsonl", *finals).read_bytes())
    manifest = Manifest.read(export(RANGED, "native", [both], tmp_path / "library"))
    (bucket,) = manifest.variants[0].buckets
    assert len(bucket.kernels) == 1, "the first kernel wins at 9, too, and loses 2% at 40"


def test_what_generic_kernels_answered_is_saved_as_a_suite(library: tvmops.Library, tmp_path: Path) -> None:
    lib = tvmops.load(library.path)
    with pytest.warns(UserWarning, match="was not tuned"):
        for _ in range(3):
            lib.matmul(np.ones((50, 19), "float32"), np.ones((19, 33), "float32"))
    lib.save_misses(tmp_path / "misses")
    assert read_suite(tmp_path / "misses") == {matmul(50, 33, 19): 3.0}


def test_refusals(log: Path, tmp_path: Path) -> None:
    with pytest.raises(NoRecordError, match=r"m=1\.\.40 n=34"):
        export(Workload.parse("matmul m=1..40 n=34 k=19"), "native", [log], tmp_path / "none")
    with pytest.raises(ArgumentError, match="argument 'regret' is -1"):
        export(RANGED, "native", [log], tmp_path / "none", regret=-1)
