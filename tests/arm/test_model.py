"""The model of a core: it gives exact numbers, the same ones every time, and those that were promised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from tvmops.errors import ArgumentError
from tvmops.library.export import export
from tvmops.manifest import Manifest
from tvmops.measure.candidate import Candidate, Outcome, Plan
from tvmops.measure.model.emulator import folder
from tvmops.measure.model.measurer import ModelMeasurer
from tvmops.records import read_log
from tvmops.schedules import templates_for
from tvmops.schedules.cpu.winograd import Winograd4
from tvmops.space import Config
from tvmops.targets import target
from tvmops.tuner.session import tune
from tvmops.workloads import Workload

needs_emulation = pytest.mark.skipif(
    not (folder() / "python").is_file(), reason="needs an emulated ARM Python; scripts/arm-environment"
)
SGEMM = "matmul m=256 n=256 k=256"
SOFTMAX = "softmax rows=64 cols=1024"
INT8 = "matmul_int8 m=256 n=256 k=256 dtype=int8 packed=words"
CONV = "conv2d n=1 h=28 w=28 ci=128 co=128 kh=3 kw=3 padding=1"
# Few instructions and few cycles; b is packed, which counts.
BLOCKS: dict[str, int | str | bool] = {"mr": 4, "nv": 4, "kc": 0, "nc": 1, "mc": 0, "ku": 8}
SPLITS = {"split_m": 1, "split_n": 1, "split_k": 1}
SGEMM_CONFIG = {**BLOCKS, "pack_a": False, "pack_b": True, **SPLITS}
PACKED = f"{SGEMM} packed=panels"
PACKED_CONFIG = {**SGEMM_CONFIG, "pack_b": False}
_FEW = 16  # lines of the stack and of the descriptions of arrays


@contextmanager
def model_of(name: str) -> Iterator[Callable[[str, str, dict[str, int | str | bool]], Outcome]]:
    """A function that counts a config: its workload, its template or "", its knobs or none."""
    with closing(ModelMeasurer(target(name), builders=1)) as measurer:

        def count(text: str, path: str, knobs: dict[str, int | str | bool]) -> Outcome:
            workload = Workload.parse(text)
            usual = templates_for(workload, measurer.target)[0]
            config = Config.of(**knobs) if knobs else usual.default(workload, measurer.target)
            candidate = Candidate(workload, measurer.target, path or usual.path, config)
            (outcome,) = measurer.measure([candidate], Plan())
            return outcome

        yield count


def test_a_target_without_a_model_is_refused() -> None:
    with pytest.raises(ArgumentError, match="one that can be modelled: cortex-a53"):
        ModelMeasurer(target("x86-64-v3"))
    with pytest.raises(ArgumentError, match="expected one of local, model, fleet"):
        tune(Workload.parse(SGEMM), measure="guess")


@needs_emulation
def test_the_counts_of_n1_stay_what_they_are_and_failures_cost_themselves_alone() -> None:
    fault = "tests.tuner.faulty_templates:Faulty"
    with model_of("neoverse-n1") as count:
        sgemm, softmax = count(SGEMM, "", SGEMM_CONFIG), count(SOFTMAX, "", {})
        packed = count(PACKED, "", PACKED_CONFIG)
        small = "matmul m=8 n=8 k=8"
        crash = count(small, fault, {"fault": "wild store", "burden": 1})
        wrong = count(small, fault, {"fault": "one wrong value", "burden": 1})
    with model_of("neoverse-n1") as count:  # another process, another folder
        again = count(SGEMM, "", SGEMM_CONFIG)
    assert (again.cycles, again.counts["instructions"]) == (sgemm.cycles, sgemm.counts["instructions"])
    assert (crash.status, wrong.status) == ("crash", "wrong")
    assert crash.cycles is wrong.cycles is None

    macs, elements = 256**3, 64 * 1024
    holds(sgemm, instructions=5_185_976, cycles=2_150_564)
    assert sgemm.cycles and macs / sgemm.cycles >= 7.66  # OpenBLAS 0.3.31
    assert sgemm.counts["instructions"] / macs <= 0.352  # the same
    holds(packed, instructions=5_123_242, cycles=2_126_094)
    assert packed.cycles and macs / packed.cycles >= 7.84  # MLAS
    holds(softmax, instructions=461_550, cycles=209_334)
    assert softmax.counts["instructions"] / elements <= 8.2  # MLAS


@needs_emulation
def test_the_counts_of_8_bit_products_and_of_winograd_on_n1_stay_what_they_are() -> None:
    knobs = Winograd4().default(Workload.parse(CONV), replace(target("neoverse-n1"), cores=1)).as_dict()
    with model_of("neoverse-n1") as count:
        int8, winograd = count(INT8, "", {}), count(CONV, Winograd4().path, knobs)
    holds(int8, instructions=1_461_878, cycles=568_615)
    assert int8.cycles and 256**3 / int8.cycles >= 28.5  # MLAS
    holds(winograd, instructions=13_477_603, cycles=4_963_574)
    direct = 28 * 28 * 128 * 128 * 9 / 8  # cycles, were there nothing but multiply-adds: 8 of each
    assert winograd.cycles and 1.5 * winograd.cycles <= direct


@needs_emulation
def test_the_counts_of_v2_stay_what_they_are() -> None:
    with model_of("neoverse-v2") as count:
        sgemm, int8 = count(SGEMM, "", SGEMM_CONFIG), count(INT8, "", {})
    holds(sgemm, instructions=5_185_976, cycles=1_069_330)
    assert sgemm.cycles and 256**3 / sgemm.cycles >= 15.16  # OpenBLAS 0.3.31
    assert sgemm.counts["instructions"] / 256**3 <= 0.352  # the same
    holds(int8, instructions=882_513, cycles=154_350)
    assert int8.cycles and 256**3 / int8.cycles >= 89  # MLAS


@needs_emulation
def test_misses_are_those_that_can_be_counted_by_hand_whatever_ran_before() -> None:
    """Each line of x and out once: 4096 floats are 256 lines each; rows of 1024 floats stay in the cache."""
    relu, softmax = "activation size=4096 activation=relu", "softmax rows=8 cols=1024"
    found = []
    for before in ((), ("softmax rows=3 cols=77", "matmul m=33 n=17 k=55")):
        with model_of("neoverse-n1") as count:
            for each in before:
                count(each, "", {})
            found.append([count(text, "", {}).counts for text in (relu, softmax)])
    for lines, counts in zip((2 * 256, 2 * 8 * 64), zip(*found)):
        for level in ("l1_misses", "l2_misses"):
            assert all(each[level] - lines in range(_FEW) for each in counts)


def holds(outcome: Outcome, instructions: int, cycles: int) -> None:
    """Check that neither number has grown by more than a hundredth; less of either is welcome."""
    assert outcome.status == "ok" and outcome.kind == "modelled" and outcome.seconds == ()
    assert outcome.counts["instructions"] <= 1.01 * instructions
    assert outcome.cycles is not None and outcome.cycles <= 1.01 * cycles


@needs_emulation
def test_tuning_for_a_core_that_is_not_here(tmp_path: Path) -> None:
    work, log = Workload.parse("softmax rows=4 cols=64"), tmp_path / "log.jsonl"
    winner = tune(work, "neoverse-v2", log, trials=6, measure="model")[work]
    records = read_log(log)
    assert {record.kind for record in records} == {"modelled"}
    assert not any(record.seconds for record in records)
    assert winner.cycles == min(record.cycles for record in records if record.cycles is not None)
    assert "neoverse-v2" in winner.machine

    assert tune(work, "neoverse-v2", log, trials=6, measure="model")[work] == winner
    assert read_log(log) == records  # it was all known
    export(work, "neoverse-v2", [log], tmp_path / "library")
    manifest = (tmp_path / "library/manifest.json").read_text()
    assert '"seconds": null' in manifest and "on model of one neoverse-v2" in manifest
    (kernel,) = (k for k in Manifest.read(tmp_path / "library").variants[0].kernels if k.record)
    assert kernel.modelled == {"cycles": winner.cycles, **winner.counts}
    assert {"instructions", "l1_misses", "l2_misses"} <= winner.counts.keys()
