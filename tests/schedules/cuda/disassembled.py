"""The machine instructions of a kernel, where NVIDIA's disassembler is: PyPI's nvidia-cuda-nvdisasm."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.schedules.cuda.compiled import needs_nvcc
from tvmops.measure.cuda import Cubin

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\w+)", re.MULTILINE)


@cache
def find_nvdisasm() -> str | None:
    """Return the disassembler: on the PATH, or of the PyPI package `nvidia`."""
    spec = importlib.util.find_spec("nvidia")
    places = (spec.submodule_search_locations or ()) if spec else ()
    found = shutil.which("nvdisasm")
    for place in places:
        found = found or shutil.which("nvdisasm", path=str(Path(place, "cu13", "bin")))
    return found


needs_disassembler = [
    needs_nvcc,
    pytest.mark.skipif(find_nvdisasm() is None, reason="no nvdisasm here, which reads machine code"),
]


def opcodes(cubin: Cubin, folder: Path) -> Counter[str]:
    """Count the instructions of `cubin` by their names without modifiers: HMMA, LDGSTS, ..."""
    program = find_nvdisasm()
    assert program is not None
    path = folder / "kernel.cubin"
    path.write_bytes(cubin.code)
    done = subprocess.run([program, "-c", str(path)], check=True, capture_output=True, text=True)
    return Counter(_INSTRUCTION.findall(done.stdout))
