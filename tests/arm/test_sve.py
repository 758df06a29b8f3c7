"""SVE: what the compiler makes of it is right at every length of vectors; code for one is refused at another.

Code for a fixed length raises no signal elsewhere: its results are wrong.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from tests.arm.emulated import Job
from tests.arm.test_libraries import DISASSEMBLER, Emulate
from tests.arm.workloads import library_for, others_for, tuned_for
from tests.libraries import default_record, one_generic_kernel, write_log
from tvmops.library.export import export
from tvmops.measure.problem import make_problem
from tvmops.targets import target
from tvmops.workloads import Workload

PREDICATE = re.compile(r"\tptrue\t|\twhilelo\t")  # instructions of SVE that each of its loops begins with


def cpu(bits: int) -> str:
    """Return qemu's name of a CPU whose vectors of SVE have `bits` bits."""
    lengths = ",".join(f"sve{each}={'on' if each <= bits else 'off'}" for each in (128, 256, 512))
    return f"max,sme=off,{lengths}"


@pytest.mark.skipif(
    shutil.which(DISASSEMBLER) is None, reason="needs binutils for ARM; scripts/arm-environment"
)
@pytest.mark.parametrize("name, bits", [("neoverse-v1", 128), ("neoverse-v2", 512)])
def test_every_op_is_right_at_a_length_that_its_target_does_not_have(
    name: str, bits: int, emulate: Emulate, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    library = library_for(name, tmp_path_factory)
    (module,) = library.glob(f"{name}-*.so")
    command = [DISASSEMBLER, "--disassemble", str(module)]
    assert PREDICATE.search(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    work = [*tuned_for(name), *others_for(name)]
    problems = tuple((str(w), make_problem(w, tmp_path / str(i), seed=i)) for i, w in enumerate(work))
    answers = emulate(cpu(bits), Job(run=(library,), problems=problems))
    (features,) = (answer["machine"] for answer in answers if "machine" in answer)
    assert f"sve{bits}" in features
    checks = [answer for answer in answers if "workload" in answer]
    assert [(check["workload"], check["complaint"]) for check in checks] == [(str(w), "") for w in work]


def test_code_for_one_length_is_refused_at_another(emulate: Emulate, tmp_path: Path) -> None:
    work = Workload.parse("matmul m=8 n=8 k=16")
    scalable = target("neoverse-v2")
    fixed = replace(scalable, needs=(*scalable.needs, "sve256"))
    log = write_log(tmp_path / "log.jsonl", default_record(work, fixed))
    with one_generic_kernel():
        library = export(work, fixed, [log], tmp_path / "library")
    problems = ((str(work), make_problem(work, tmp_path / "problem", seed=0)),)
    for bits in (128, 512):
        answers = emulate(cpu(bits), Job(refuse=(library,)))
        (refusal,) = (answer for answer in answers if "refused" in answer)
        message = refusal["message"]
        assert not refusal["mapped"], "none of its code can run"
        assert "lacks" in message and "sve256" in message
        assert f"sve{bits}" not in message
    answers = emulate(cpu(256), Job(run=(library,), problems=problems))
    assert [answer["complaint"] for answer in answers if "workload" in answer] == [""]
    assert [answer["mapped"] for answer in answers if "called" in answer] == [True]
