"""Run the CUDA code of a kernel on this machine's CPU, thread by thread; `emulator.h` says how."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.schedules.cuda.compiled import needs_nvcc
from tvmops.measure.cuda import Cubin

_HEADER = Path(__file__).with_name("emulator.h")
_KERNEL = re.compile(r'extern "C" __global__ void[^(]*\((\d+)[^)]*\) (\w+)\(([^)]*)\) \{')
_HELPER = re.compile(r"__forceinline__ __device__ [^;{]*?(\w+)\([^)]*\) \{\n.*?\n\}\n", re.DOTALL)
_SHARED = re.compile(r"extern __shared__ __align__\(\d+\) uchar (\w+)\[\];")

needs_emulator = [
    needs_nvcc,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here, which compiles the emulator"),
]


def emulated(cubin: Cubin, folder: Path) -> Callable[..., None]:
    """Return a function that runs the only kernel of `cubin`.

    It takes the arguments by name, arrays and numbers, and `grid`, `cluster` and `shared_bytes`.
    """
    found = _KERNEL.search(cubin.source)
    assert found is not None
    threads, name, parameters = int(found[1]), found[2], [p.split() for p in found[3].split(", ")]
    declared = _HEADER.read_text()
    helpers = "".join(
        match[0] for match in _HELPER.finditer(cubin.source) if not re.search(rf"\b{match[1]}\b", declared)
        and not _is_named_by_macro(match[1])
    )  # fmt: skip
    body = _SHARED.sub(r"uchar* \1 = emulator::now->block->memory.data();", cubin.source[found.start() :])
    names = ", ".join(words[-1] for words in parameters)
    launch = f"""
extern "C" const char* run(int grid, int cluster, int shared_bytes, {found[3]}) {{
  emulator::kernel = [=] {{ {name}({names}); }};
  return emulator::launch(grid, cluster, {threads}, shared_bytes);
}}
"""
    source, library = folder / "kernel.cpp", folder / "kernel.so"
    source.write_text(f'#include "{_HEADER}"\n{helpers}{body}{launch}')
    command = ["g++", "-O1", "-w", "-std=c++17", "-shared", "-fPIC", "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    run = ctypes.CDLL(str(library)).run
    run.restype = ctypes.c_char_p

    def call(grid: int, arguments: Mapping[str, Any], cluster: int = 1, shared_bytes: int = 0) -> None:
        values = [_value(words, arguments) for words in parameters]
        assert run(grid, cluster, shared_bytes, *values) == b""

    return call


def _is_named_by_macro(name: str) -> bool:
    return any(part in name for part in ("wait_group_async", "sync_aligned_m16n8k", "copy_piece_", "copy_bytes_", "copy_floats_"))


def _value(words: list[str], arguments: Mapping[str, Any]) -> Any:
    """Return the argument of a parameter, `float* __restrict__ x_ptr` or `int rows`."""
    name = words[-1].removesuffix("_ptr")
    value = arguments[name]
    if "*" in "".join(words[:-1]):
        return ctypes.c_void_p(value.ctypes.data)
    return ctypes.c_float(value) if "float" in words else ctypes.c_int(value)
