"""Libraries for ARM CPUs, run under emulation on CPUs that have what they need, and on others."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from tests.arm.conftest import Answers
from tests.arm.emulated import Job
from tests.arm.workloads import library_for, others_for, tuned_for
from tests.libraries import default_record, write_log
from tvmops.errors import LibraryTargetError
from tvmops.library.export import export
from tvmops.measure.model.emulator import CPUS
from tvmops.measure.problem import make_problem
from tvmops.runtime.load import load
from tvmops.targets import target
from tvmops.workloads import Workload

Emulate = Callable[[str, Job], Answers]

DISASSEMBLER = "aarch64-linux-gnu-objdump"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of libraries of 8-bit products, one for each of some targets, and one for all of those."""
    folder, work = tmp_path_factory.mktemp("small"), Workload.parse("matmul_int8 m=8 n=8 k=16 dtype=int8")
    names = ["cortex-a53", "neoverse-n1", "neoverse-v2", "apple-m4"]
    log = write_log(folder / "log.jsonl", *(default_record(work, target(name)) for name in names))
    for name in names:
        export(work, name, [log], folder / name)
    export(work, names, [log], folder / "several")
    return folder


@pytest.mark.parametrize("name", CPUS)
def test_every_op_is_right(
    name: str, emulate: Emulate, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tuned, other = tuned_for(name), others_for(name)
    work = [*tuned, *other]
    problems = tuple((str(w), make_problem(w, tmp_path / str(i), seed=i)) for i, w in enumerate(work))
    answers = emulate(CPUS[name], Job(run=(library_for(name, tmp_path_factory),), problems=problems))
    checks = [answer for answer in answers if "workload" in answer]
    assert [(check["workload"], check["complaint"]) for check in checks] == [(str(w), "") for w in work]
    assert [check["tier"] for check in checks] == ["exact"] * len(tuned) + ["generic"] * len(other)
    (call,) = (answer for answer in answers if "called" in answer)
    assert call["error"] < 1e-5


@pytest.mark.parametrize(
    "cpu, chosen, refused",
    [
        ("cortex-a72", "cortex-a53", {"neoverse-n1": "asimddp", "neoverse-v2": "sve2", "apple-m4": "i8mm"}),
        ("neoverse-n1", "neoverse-n1", {"neoverse-v2": "sve2", "apple-m4": "i8mm"}),
        ("apple-m4", "apple-m4", {"neoverse-v2": "sve2"}),
        ("neoverse-v2", "neoverse-v2", {}),
    ],
)
def test_what_a_cpu_lacks_is_refused_and_of_several_the_best_is_taken(
    cpu: str, chosen: str, refused: dict[str, str], emulate: Emulate, small: Path
) -> None:
    alone = tuple(small / name for name in refused)
    answers = emulate(CPUS[cpu], Job(refuse=alone, choose=(small / "several",)))
    messages = {answer["refused"]: answer["message"] for answer in answers if "refused" in answer}
    assert messages.keys() == refused.keys()
    for name, feature in refused.items():
        assert feature in messages[name] and "lacks" in messages[name]
    assert [answer["chosen"] for answer in answers if "chosen" in answer] == [[chosen]]


@pytest.mark.skipif(
    shutil.which(DISASSEMBLER) is None, reason="needs binutils for ARM; scripts/arm-environment"
)
@pytest.mark.parametrize(
    "name, instructions",
    [
        ("cortex-a53", set()),
        ("neoverse-n1", {"sdot"}),
        ("apple-m4", {"sdot", "smmla"}),
        ("neoverse-v2", {"sdot", "smmla"}),
    ],
)
def test_the_code_of_a_tier_has_its_instructions(name: str, instructions: set[str], small: Path) -> None:
    (library,) = (small / name).glob(f"{name}-*.so")
    command = [DISASSEMBLER, "--disassemble", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = set(re.findall(r"\t(sdot|smmla|udot|usdot|usmmla)\t", text))
    assert found == instructions


def test_another_architecture_is_refused(small: Path) -> None:
    with pytest.raises(LibraryTargetError, match="architecture aarch64"):
        load(small / "several")
