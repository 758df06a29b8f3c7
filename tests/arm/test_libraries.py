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
from tests.libraries import default_record, write_log
from tvmops.errors import LibraryTargetError
from tvmops.library.export import export
from tvmops.measure.model.emulator import CPUS
from tvmops.measure.problem import make_problem
from tvmops.runtime.load import load
from tvmops.targets import target
from tvmops.workloads import Workload

Emulate = Callable[[str, Job], Answers]

PLAIN = "matmul m=33 n=65 k=17"  # tiles, and a rest in each dimension
TUNED = [
    PLAIN,
    "matmul m=20 n=33 k=17 trans_a=true trans_b=true bias=true activation=gelu batch=3",
    "matmul m=17 n=33 k=31 dtype=bfloat16",
    "matmul m=3 n=33 k=31 dtype=bfloat16 packed=words",
    "matmul m=5 n=9 k=19 dtype=bfloat16 trans_a=true trans_b=true batch=2 activation=silu bias=true",
    "matmul_int8 m=17 n=33 k=31",
    "matmul_int8 m=7 n=33 k=29 dtype=int8 packed=words",
    "matmul_int8 m=3 n=33 k=37 dtype=int8 packed=words b_zero_points=channel",
    "matmul_int8 m=9 n=17 k=30 trans_b=true b_zero_points=tensor out_dtype=int8 bias=true",
    "matmul_weight_only m=3 n=64 k=64",
    "matmul_weight_only m=1 n=33 k=40 group=32 bits=8",
    "matmul_weight_only m=5 n=33 k=64 group=32 bits=8 zero_points=true dtype=bfloat16",
    "conv2d n=1 h=9 w=11 ci=8 co=16 kh=3 kw=3 padding=1",
    "conv2d n=1 h=9 w=11 ci=16 co=16 kh=3 kw=3 padding=1 groups=16",
    "conv2d n=1 h=9 w=11 ci=8 co=16 kh=3 kw=3 padding=1 layout=NHWC stride=2 bias=true activation=relu",
    "conv2d n=1 h=11 w=9 ci=8 co=12 kh=3 kw=3 dilation=2 groups=2",
    "pool2d n=1 h=9 w=11 c=5 kernel=3 stride=2 padding=1",
    "pool2d n=1 h=7 w=7 c=9 kernel=7 kind=average layout=NHWC",
    "softmax rows=5 cols=33",
    "softmax rows=5 cols=33 dtype=bfloat16",
    "softmax rows=3 cols=7 inner=5 axis=middle",
    "layer_norm rows=5 cols=33",
    "layer_norm rows=5 cols=33 dtype=bfloat16 residual=true",
    "rms_norm rows=5 cols=33",
    "attention batch=1 heads=2 kv_heads=2 q_len=33 kv_len=33 head_dim=32",
    "attention batch=1 heads=2 kv_heads=2 q_len=1 kv_len=65 head_dim=32",
    "attention batch=1 heads=4 kv_heads=2 q_len=17 kv_len=17 head_dim=32 causal=true dtype=bfloat16",
    "activation size=1001 activation=tanh",
    "activation size=1001 activation=gelu dtype=bfloat16",
]
FORMS = [  # other templates, and other forms of what those above do
    "matmul m=17 n=40 k=31 packed=panels bias=true activation=relu residual=true",
    "matmul m=2 n=40 k=33 trans_b=true",
    "matmul m=2 n=300 k=200",
    "matmul m=9 n=33 k=21 trans_a=true activation=tanh",
    "conv2d n=1 h=9 w=11 ci=8 co=20 kh=3 kw=3 padding=1 packed=panels-nchw residual=true",
    "conv2d n=1 h=9 w=11 ci=8 co=20 kh=3 kw=3 padding=1 layout=NHWC packed=panels-nhwc activation=silu",
    "conv2d n=1 h=9 w=11 ci=8 co=20 kh=3 kw=3 padding=1 packed=winograd2",
    "conv2d n=1 h=9 w=11 ci=32 co=20 kh=3 kw=3 padding=1 layout=NHWC packed=winograd4 bias=true",
    "conv2d n=1 h=9 w=11 ci=16 co=16 kh=3 kw=3 groups=16 layout=NHWC stride=2 activation=relu6",
    "conv2d n=1 h=6 w=7 ci=16 co=20 kh=1 kw=1 activation=hardswish",
    "pool2d n=1 h=9 w=11 c=5 kernel=2 stride=2 kind=average",
    "softmax rows=5 cols=33 log=true",
    "softmax rows=4 cols=33 scaled=true mask_rows=2",
    "layer_norm rows=5 cols=33 weight=true bias=true residual=true",
    "rms_norm rows=5 cols=33 weight=true residual=true dtype=bfloat16",
    "attention batch=1 heads=4 kv_heads=2 q_len=1 kv_len=65 head_dim=64",
    "attention batch=2 heads=4 kv_heads=1 q_len=3 kv_len=70 head_dim=80 causal=true dtype=bfloat16",
    "attention batch=1 heads=2 kv_heads=2 q_len=19 kv_len=21 head_dim=32 mask=bool",
    "activation size=1001 activation=silu",
    "activation size=1001 activation=gelu_tanh",
]
OTHER = [  # the generic kernels answer
    "matmul m=5 n=7 k=9",
    "matmul m=9 n=31 k=7 dtype=bfloat16",
    "matmul m=2 n=31 k=7 dtype=bfloat16 packed=words",
    "matmul_int8 m=5 n=9 k=13",
    "matmul_int8 m=2 n=9 k=13 dtype=int8 packed=words",
    "matmul_weight_only m=2 n=32 k=32",
    "conv2d n=2 h=7 w=9 ci=5 co=7 kh=3 kw=3 padding=1",
    "softmax rows=3 cols=101",
    "layer_norm rows=3 cols=101",
    "attention batch=1 heads=2 kv_heads=2 q_len=17 kv_len=29 head_dim=32",
    "activation size=77 activation=tanh",
]
DISASSEMBLER = "aarch64-linux-gnu-objdump"
WHOLE = ("cortex-a53", "neoverse-n1", "neoverse-v1", "neoverse-v2", "apple-m4")  # one of each set of features
EVERY_FORM = ("cortex-a53", "neoverse-v2")  # the least and the most of them


def exported(folder: Path, name: str, texts: list[str]) -> Path:
    work, machine = [Workload.parse(text) for text in texts], target(name)
    log = write_log(folder / f"{name}.jsonl", *(default_record(each, machine) for each in work))
    return export(work, machine, [log], folder / name)


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
def test_every_op_is_right(name: str, emulate: Emulate, tmp_path: Path) -> None:
    tuned, other = (TUNED, OTHER) if name in WHOLE else ([PLAIN], OTHER[:1])
    if name in EVERY_FORM:
        tuned = [*tuned, *FORMS]
    work = [Workload.parse(text) for text in (*tuned, *other)]
    problems = tuple((str(w), make_problem(w, tmp_path / str(i), seed=i)) for i, w in enumerate(work))
    answers = emulate(CPUS[name], Job(run=(exported(tmp_path, name, tuned),), problems=problems))
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
