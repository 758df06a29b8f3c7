"""Compile CUDA kernels on a machine that need not have a GPU, and read what ptxas says of them.

TVM turns a module into C++ for the device and LLVM code for the host. nvcc makes machine code
of the former, which is linked into the library: nothing is compiled where the library is used.
"""

from __future__ import annotations

import contextvars
import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tvm
import tvm.support.nvcc
import tvm_ffi
from tvm import IRModule, tirx
from tvm.tirx import compilation_pipeline

from tvmops.errors import CudaError, NoCudaCompilerError
from tvmops.measure.blocks import has_blocks
from tvmops.measure.link import link
from tvmops.runtime.backend import CUDA_RUNTIME_FILE
from tvmops.schedules.cuda.in_order import IN_ORDER
from tvmops.targets import Target

_FLAGS = (
    "-O3",
    "-std=c++17",
    "--expt-relaxed-constexpr",
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT16_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
)
_TOOLKIT = Path("/usr/local/cuda/bin")
_CUDART = "libcudart.so.13"  # what TVM's CUDA runtime was linked with
_PACKAGED = ("cu13", "cuda_nvcc")  # folders of the PyPI package `nvidia`, by version


@dataclass(frozen=True)
class Report:
    """What ptxas says of all kernels of a module: the largest figures, and its warnings."""

    registers: int
    spilled_bytes: int
    stack_bytes: int
    warnings: tuple[str, ...]  # wgmma that runs one by one, setmaxnreg that is ignored, ...

    @classmethod
    def of(cls, text: str) -> Report:
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", text)
        return cls(
            registers=max(map(int, re.findall(r"Used (\d+) registers", text)), default=0),
            spilled_bytes=max(map(int, spills), default=0),
            stack_bytes=max(map(int, re.findall(r"(\d+) bytes stack frame", text)), default=0),
            warnings=tuple(line for line in text.splitlines() if "serializ" in line or "C75" in line),
        )

    @property
    def complaint(self) -> str:
        """Say why such code is not worth running, or ""."""
        if self.warnings:
            return self.warnings[0]
        return f"spills {self.spilled_bytes} bytes of registers" if self.spilled_bytes else ""


@dataclass(frozen=True)
class Cubin:
    """Device code, its source and what ptxas says of it."""

    code: bytes
    source: str
    report: Report


@functools.cache
def find_nvcc() -> str:
    """Return nvcc: of $CUDA_HOME, on the PATH, in /usr/local/cuda, or from PyPI's nvidia-cuda-nvcc.

    Raises
    ------
    NoCudaCompilerError
        There is none.
    """
    found = None if os.environ.get("CUDA_HOME") else shutil.which("nvcc")
    for folder in _folders():
        found = found or shutil.which("nvcc", path=str(folder))
    if found is None:
        raise NoCudaCompilerError(tried=f"nvcc in {', '.join(['$PATH', *map(str, _folders())])}")
    return found


def _folders() -> list[Path]:
    """Return where the programs of a CUDA toolkit may lie."""
    home = os.environ.get("CUDA_HOME", "")
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    inside = [package / part / "bin" for package in packages for part in _PACKAGED]
    return [*([Path(home, "bin")] if home else []), _TOOLKIT, *inside]


def compile_cuda(source: str, code: str, in_order: bool = False) -> Cubin:
    """Compile device code for `code`, "sm_90a" or such; see `schedules.cuda.in_order`.

    Raises
    ------
    CudaError
        nvcc refuses it.
    """
    with TemporaryDirectory(prefix="tvmops-cuda-") as folder:
        path, out = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        path.write_text(source)
        architecture = f"-gencode=arch={code.replace('sm_', 'compute_')},code={code}"
        ptxas = f"-Xptxas=-v,-O{1 if in_order else 3}"
        command = [find_nvcc(), "-cubin", architecture, ptxas, *_FLAGS, "-o", str(out), str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        said = done.stdout + done.stderr
        if done.returncode != 0:
            raise CudaError(code=code, detail=said.strip()[-2000:])
        return Cubin(out.read_bytes(), source, Report.of(said))


@functools.cache
def _load_runtime() -> None:
    """Load TVM's CUDA runtime, which turns source into code by our callback.

    It needs the driver's library to load, though nothing of it to compile: where there is no
    driver, a library with its names serves.
    """
    folder = Path(tvm.__file__).parent / "lib"
    if tvm_ffi.get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None:
        return
    _load_cudart()
    try:
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
    except OSError:
        _load_stub()
    ctypes.CDLL(str(folder / CUDA_RUNTIME_FILE), ctypes.RTLD_GLOBAL)


def _load_cudart() -> None:
    places = [folder.parent / lib / _CUDART for folder in _folders() for lib in ("lib", "lib64")]
    for place in (_CUDART, *(str(path) for path in places if path.is_file())):
        try:
            ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
            return
        except OSError:
            continue
    raise NoCudaCompilerError(tried=f"{_CUDART}, which TVM needs, in {', '.join(map(str, places))}")


def _load_stub() -> None:
    """Load a libcuda.so.1 whose functions are not there."""
    needed = re.findall(
        rb"\0(cu[A-Z]\w+)(?=\0)", (Path(tvm.__file__).parent / "lib" / CUDA_RUNTIME_FILE).read_bytes()
    )
    options = ["-soname=libcuda.so.1", *(f"--defsym={name.decode()}=1" for name in sorted(set(needed)))]
    with TemporaryDirectory(prefix="tvmops-cuda-") as folder:
        path, empty = Path(folder, "libcuda.so.1"), Path(folder, "empty.o")
        tvm.compile(IRModule({"main": _nothing()}), target={"kind": "llvm"}).mod.write_to_file(str(empty))
        link([empty], path, bare=True, options=options)
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


def _nothing() -> tirx.PrimFunc:
    return tirx.PrimFunc([], tirx.Evaluate(0)).with_attr("global_symbol", "main")


_code: contextvars.ContextVar[tuple[str, bool]] = contextvars.ContextVar("code")
_made: contextvars.ContextVar[list[Cubin]] = contextvars.ContextVar("made")


@tvm_ffi.register_global_func("tvm_callback_cuda_compile", override=True)  # type: ignore[untyped-decorator, unused-ignore]
def _compile(source: str) -> bytes:
    cubin = compile_cuda(source, *_code.get())
    _made.get().append(cubin)
    if cubin.report.complaint:
        raise CudaError(code=_code.get()[0], detail=cubin.report.complaint)
    return cubin.code


def compile_module(module: IRModule, target: Target) -> tuple[tvm.runtime.Executable, list[Cubin]]:
    """Compile all functions of `module` for the GPU `target`.

    Raises
    ------
    CudaError
        nvcc refuses the code, or it spills registers, or ptxas warns of it.
    """
    assert target.gpu is not None
    _load_runtime()
    host = {"kind": "llvm", "mtriple": f"{target.arch}-linux-gnu"}
    machine = tvm.target.Target({**target.tvm}, host=host)
    made: list[Cubin] = []
    in_order = any(IN_ORDER[0] in function.attrs for function in module.functions.values())
    code_token, made_token = _code.set((target.gpu.code, in_order)), _made.set(made)
    try:
        return tvm.compile(module, target=machine, tir_pipeline=_PIPELINE), made
    finally:
        _code.reset(code_token)
        _made.reset(made_token)


def _lowering() -> tuple[tvm.transform.Pass, tvm.transform.Pass, tvm.transform.Pass]:
    """Return passes that lower a module: functions made of schedule blocks by TVM's own for these."""
    loops, *finish = compilation_pipeline.get_tir_pipeline("tirx")
    blocks = compilation_pipeline.get_tir_pipeline("s_tir")[0]

    def lower(module: IRModule, context: tvm.transform.PassContext) -> IRModule:
        lowered = loops(tirx.transform.Filter(lambda function: not has_blocks(function))(module))
        # its pass would let arrays of 16 and of 32 bits share shared memory, which does not compile
        with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
            lowered.update(blocks(tirx.transform.Filter(has_blocks)(module)))
        return lowered

    return tvm.transform.module_pass(lower, opt_level=0), *finish


_PIPELINE = "tvmops.cuda"
compilation_pipeline.register_tir_pipeline(_PIPELINE, _lowering)


def build_library(module: IRModule, target: Target, path: Path, bare: bool) -> list[Cubin]:
    """Compile `module` and link host and device code into the shared library `path`."""
    executable, cubins = compile_module(module, target)

    def create(out: str, objects: Sequence[str], **_: Any) -> None:
        link([Path(each) for each in objects], Path(out), bare)

    executable.export_library(str(path), fcompile=create)
    return cubins
