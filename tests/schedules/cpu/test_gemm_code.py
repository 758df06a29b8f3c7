"""What the compiler makes of the inner loop, counted: no clock says it more surely."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.schedules.cpu.kernels import TEMPLATE, Shape, matmul
from tvmops.measure.build import compile_object
from tvmops.space import Config
from tvmops.targets import Target, target

OBJDUMP = shutil.which("objdump")
pytestmark = pytest.mark.skipif(OBJDUMP is None, reason="needs objdump (binutils)")

INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(\S.*)")
JUMP = re.compile(r"j\w+\s+([0-9a-f]+)\b")


def inner_loops(path: Path) -> list[list[str]]:
    """Return the instructions of each loop that holds no other."""
    command = [str(OBJDUMP), "-d", "-j", ".text", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = [(int(m[1], 16), m[2]) for line in text.splitlines() if (m := INSTRUCTION.match(line))]
    index = {address: number for number, (address, _) in enumerate(code)}
    loops = []
    for end, (address, instruction) in enumerate(code):
        jump = JUMP.match(instruction)
        if jump and int(jump[1], 16) <= address and int(jump[1], 16) in index:
            loops.append(range(index[int(jump[1], 16)], end + 1))
    inner = [loop for loop in loops if not any(o != loop and o[0] in loop and o[-1] in loop for o in loops)]
    return [[code[number][1] for number in loop] for loop in inner]


def main_loops(shape: Shape, machine: Target, config: Config, folder: Path) -> list[list[str]]:
    """Return the loops over k that do one whole unrolled step a turn."""
    work = matmul(*shape)
    assert config in TEMPLATE.space(work, machine)
    path = folder / "kernel.o"
    compile_object(TEMPLATE.build(work, machine, config), machine, path)
    steps = config.number("mr") * config.number("nv") * config.number("ku")
    loops = inner_loops(path)
    return [loop for loop in loops if sum(text.startswith("vfmadd") for text in loop) == steps]


def tile(mr: int, nv: int) -> dict[str, int]:
    return {"mr": mr, "nv": nv, "ku": 4}


@pytest.mark.parametrize(
    "name, knobs",
    [
        ("x86-64-v3", {}),
        ("x86-64-v4", {}),
        ("x86-64-v4", tile(12, 2)),
        ("x86-64-v4", tile(6, 4)),
        ("x86-64-v4", tile(8, 3)),
        ("x86-64-v3", tile(6, 2)),
    ],
)
@pytest.mark.parametrize("shape", [(240, 256, 256), (250, 250, 250)], ids=["whole tiles", "edges"])
def test_the_inner_loop_holds_its_tile_in_registers(
    name: str, knobs: dict[str, int], shape: Shape, tmp_path: Path
) -> None:
    """It loads mr + nv values a step of k, and stores none: no accumulator is spilled."""
    machine = target(name)
    config = TEMPLATE.default(matmul(*shape), machine).replace(**knobs)
    register = {256: "ymm", 512: "zmm"}[machine.vector_bits]
    loops = main_loops(shape, machine, config, tmp_path)
    assert loops, "no loop does mr x nv x ku multiplications"
    for loop in loops:
        stores = [text for text in loop if re.match(rf"vmov\S+\s+%{register}\d+,.*\(", text)]
        loads = [text for text in loop if "(" in text]
        assert not stores
        assert len(loads) == (config.number("mr") + config.number("nv")) * config.number("ku")


def test_the_generic_kernel_holds_its_tile_in_registers_too(tmp_path: Path) -> None:
    machine, pattern = target("x86-64-v4"), matmul(1, 1, 1).generic()
    generic = next(g for g in TEMPLATE.generic(pattern, machine) if not g.ranges)
    path = tmp_path / "kernel.o"
    compile_object(TEMPLATE.build(pattern, machine, generic.config), machine, path)
    steps = generic.config.number("mr") * generic.config.number("nv") * generic.config.number("ku")
    main = [loop for loop in inner_loops(path) if sum(t.startswith("vfmadd") for t in loop) == steps]
    assert main
    assert not [text for loop in main for text in loop if re.match(r"vmov\S+\s+%zmm\d+,.*\(", text)]
