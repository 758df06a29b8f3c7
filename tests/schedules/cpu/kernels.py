"""Compile one config of the GEMM template in this process, and call it where a fault shows."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmops.measure.build import compile_module
from tvmops.ops import op_of
from tvmops.schedules.cpu.gemm import CpuGemm
from tvmops.space import Config
from tvmops.targets import Target
from tvmops.workloads import Workload, workload

Array = NDArray[Any]
Kernel = Callable[..., None]
Shape = tuple[int, int, int]

TEMPLATE = CpuGemm()
BAND = 64  # elements on either side of an array
SENTINEL = np.float32(-1.5e30)


def matmul(m: int, n: int, k: int) -> Workload:
    return workload("matmul", m=m, n=n, k=k)


def compiled(work: Workload, target: Target, config: Config) -> Kernel:
    kernel: Kernel = compile_module(TEMPLATE.build(work, target, config), target)["main"]
    return kernel


@dataclass(frozen=True)
class Banded:
    """An array amid a band of one value, at any offset, so that a step beyond it shows."""

    whole: Array
    array: Array
    band: np.float32

    @classmethod
    def of(cls, shape: tuple[int, ...], band: float, offset: int) -> Banded:
        count = int(np.prod(shape))
        whole = np.full(count + 2 * BAND + offset, band, "float32")
        start = BAND + offset
        return cls(whole, whole[start : start + count].reshape(shape), np.float32(band))

    def is_intact(self) -> bool:
        """True if the band is as it was."""
        start = BAND + len(self.whole) - 2 * BAND - self.array.size
        outside = np.concatenate([self.whole[:start], self.whole[start + self.array.size :]])
        return bool(np.all(outside.view("int32") == self.band.view("int32")))


def check(kernel: Kernel, shape: Shape, offset: int = 0) -> None:
    """Call `kernel` for a matmul of m, n, k; see `check_call`."""
    check_call(kernel, matmul(*shape), offset)


def check_call(kernel: Kernel, work: Workload, offset: int = 0) -> None:
    """Call `kernel` on random inputs and compare with float64.

    NaN lies around the inputs: what is read beyond them must not reach the result. The
    output is poisoned by NaN: each element must be written. What lies around it must stay.
    """
    op = op_of(work)
    drawn = op.random_inputs(work, seed=len(str(work)))
    inputs = [Banded.of(array.shape, np.nan, offset) for array in drawn]
    for banded, array in zip(inputs, drawn):
        banded.array[...] = array
    output = Banded.of(op.outputs(work)[0].shape, SENTINEL, offset)
    output.array[...] = np.nan

    kernel(*(banded.array for banded in inputs), output.array)

    error = np.abs(output.array - op.reference(work, *drawn)[0]).max()
    assert error <= op.tolerance(work), f"off by {error}"  # False where it is NaN
    assert output.is_intact(), "wrote beyond the output"
    for banded, array in zip(inputs, drawn):
        assert np.array_equal(banded.array, array), "wrote to an input"
        assert banded.is_intact(), "wrote beyond an input"


def fenced(shape: tuple[int, ...], at_end: bool) -> Array:
    """Return an array that ends (or begins) where memory may not be touched."""
    page = mmap.PAGESIZE
    size = 4 * int(np.prod(shape))
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    raw = np.frombuffer(memory, "uint8")
    for fence in (0, (pages + 1) * page):
        _forbid(raw[fence : fence + page])
    start = (pages + 1) * page - size if at_end else page
    return raw[start : start + size].view("float32").reshape(shape)


def _forbid(page: Array) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page.ctypes.data), ctypes.c_size_t(page.nbytes), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def survives(kernel: Kernel, shape: Shape, at_end: bool) -> bool:
    """Call `kernel` in a forked process on arrays beside forbidden memory; False if it died."""
    m, n, k = shape
    arrays = [fenced(extents, at_end) for extents in ((m, k), (k, n), (m, n))]
    child = os.fork()
    if child == 0:
        os.environ["TVM_NUM_THREADS"] = "1"  # threads do not come along: run the loops in this one
        kernel(*arrays)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
