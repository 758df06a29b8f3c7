"""Run the CUDA code of a kernel on this machine's CPU, thread by thread; `emulator.h` says how."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from tests.schedules.cuda.compiled import needs_nvcc
from tvmops.measure.cuda import Cubin

_HEADER = Path(__file__).with_name("emulator.h")
_HOPPER = Path(__file__).with_name("hopper.h")
_KERNEL = re.compile(r'extern "C" __global__ void[^(]*\((\d+)[^)]*\) (\w+)\(([^)]*)\) \{')
_HELPER = re.compile(r"__forceinline__ __device__ [^;{]*?(\w+)\([^)]*\) \{\n.*?\n\}\n", re.DOTALL)
_ORDER = re.compile(
    r"tvm_builtin_ptx_(setmaxnreg|fence|wgmma_fence|prefetch)\w*|tie_\d+|ask_for_box_\dd"
)  # changes no value here
_TENSOR_MAP = "CUtensorMap"
_SHARED = re.compile(r"extern __shared__ __align__\(\d+\) uchar (\w+)\[\];")

needs_emulator = [
    needs_nvcc,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here, which compiles the emulator"),
]


def emulated(cubin: Cubin, folder: Path, number: int = 0) -> Callable[..., None]:
    """Return a function that runs a kernel of `cubin`, the only one or that of this number.

    It takes the arguments by name, arrays and numbers, and `grid`, `cluster` and `shared_bytes`.
    """
    kernels = list(_KERNEL.finditer(cubin.source))
    found = kernels[number]
    threads, name, parameters = int(found[1]), found[2], [p.split() for p in found[3].split(", ")]
    declared = _HEADER.read_text() + _HOPPER.read_text()
    helpers = "".join(
        f"static inline void {match[1]}(...) {{}}\n" if _ORDER.fullmatch(match[1]) else match[0]
        for match in _HELPER.finditer(cubin.source) if not re.search(rf"\b{match[1]}\b", declared)
        and not _is_named_by_macro(match[1])
    )  # fmt: skip
    body = _SHARED.sub(
        r"uchar* \1 = emulator::now->block->memory.data();", cubin.source[kernels[0].start() :]
    )
    names = ", ".join(f"*{words[-1]}" if _TENSOR_MAP in words else words[-1] for words in parameters)
    taken = found[3].replace(f"__grid_constant__ {_TENSOR_MAP} ", f"{_TENSOR_MAP}* ")
    launch = f"""
extern "C" const char* run(int grid, int cluster, int shared_bytes, {taken}) {{
  emulator::kernel = [=] {{ {name}({names}); }};
  return emulator::launch(grid, cluster, {threads}, shared_bytes);
}}
"""
    source, library = folder / f"kernel{number}.cpp", folder / f"kernel{number}.so"
    source.write_text(f'#include "{_HEADER.name}"\n{helpers}{body}{launch}')
    _compile("-shared", "-I", _headers().name, "-o", str(library), str(source))
    run = ctypes.CDLL(str(library)).run
    run.restype = ctypes.c_char_p

    def call(grid: int, arguments: Mapping[str, Any], cluster: int = 1, shared_bytes: int = 0) -> None:
        values = [_value(words, arguments) for words in parameters]
        complaint = run(grid, cluster, shared_bytes, *values)
        assert complaint == b"", complaint

    return call


def _compile(*arguments: str) -> None:
    done = subprocess.run(
        ["g++", "-O1", "-w", "-std=c++17", "-fPIC", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@cache
def _headers() -> tempfile.TemporaryDirectory[str]:
    """Return a folder of the headers, compiled beforehand: reading them takes longer than a kernel."""
    folder = tempfile.TemporaryDirectory(prefix="emulator-")
    for header in (_HEADER, _HOPPER):
        shutil.copy(header, folder.name)
    _compile("-x", "c++-header", f"{folder.name}/{_HEADER.name}")
    return folder


# Parts of names that the headers make by macros.
_MACROS = (
    "wait_group_async",
    "sync_aligned_m16n8k",
    "copy_piece_",
    "copy_part_",
    "copy_bytes_",
    "copy_floats_",
    "copy_present_floats_",
    "copy_whole_floats_",
    "async_bulk_tensor_",
    "async_bulk_wait_group_",
    "add_partials_",
    "mma_async_sync_aligned_m64n",
    "multiply_s8_",
    "multiply_u8_",
)


def _is_named_by_macro(name: str) -> bool:
    return any(part in name for part in _MACROS)


class TensorMap(ctypes.Structure):
    """A row-major array as the copy engine sees it, as `hopper.h` declares it."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("rank", ctypes.c_int),
        ("item", ctypes.c_int),
        ("dims", ctypes.c_longlong * 5),
        ("box", ctypes.c_int * 5),
        ("steps", ctypes.c_int * 5),
        ("pitches", ctypes.c_ulonglong * 5),
    )

    @classmethod
    def of(
        cls,
        array: NDArray[Any],
        dims: Sequence[int],
        box: Sequence[int],
        steps: Sequence[int] = (),
        pitches: Sequence[int] = (),
    ) -> TensorMap:
        """Describe `array`, sizes innermost first; pitches are of all dimensions but the first."""
        ones = [1] * (5 - len(dims))
        each = ([*sizes, *ones] for sizes in (dims, box, steps or [1] * len(dims)))
        kinds = (ctypes.c_longlong * 5, ctypes.c_int * 5, ctypes.c_int * 5)
        dense = [array.itemsize * prod(dims[:axis]) for axis in range(1, 5)]
        apart = (ctypes.c_ulonglong * 5)(array.itemsize, *(pitches or dense))
        values = (*(kind(*sizes) for kind, sizes in zip(kinds, each)), apart)
        return cls(array.ctypes.data, len(dims), array.itemsize, *values)


def _value(words: list[str], arguments: Mapping[str, Any]) -> Any:
    """Return the argument of a parameter, `float* __restrict__ x_ptr` or `int rows`."""
    name = words[-1].removesuffix("_ptr")
    value = arguments[name]
    if _TENSOR_MAP in words:
        return ctypes.byref(value)
    if "*" in "".join(words[:-1]):
        return ctypes.c_void_p(value.ctypes.data)
    return ctypes.c_float(value) if "float" in words else ctypes.c_int(value)
