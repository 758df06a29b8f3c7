"""Arrays must lie where a library's kernels run. Devices are made up: there need be no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tvmops
from tvmops.errors import CallError
from tvmops.runtime import load
from tvmops.runtime.known import KnownCalls
from tvmops.workloads import Workload

A, B, OUT = (np.ones((8, 8), "float32") for _ in range(3))


def made_up(places: list[tuple[Any, str]]) -> Any:
    """Return a `device_of` by which these arrays lie in these places, and all others on the CPU."""
    known = {array.ctypes.data: place for array, place in places}
    return lambda array: known.get(array.ctypes.data, "cpu")


def test_a_cpu_library_refuses_a_gpu(lib: tvmops.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "device_of", made_up([(B, "cuda:0")]))
    with pytest.raises(CallError, match="'b' is on device cuda:0; expected a tensor on the CPU"):
        lib.matmul(A, B)


class Recorder:
    """Stands for the kernels of a GPU: notes what it was called for."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def find(self, workload: Workload) -> Any:
        return lambda *arrays: self.called.append(str(workload))


def test_arrays_of_each_device_go_to_its_own_kernels(
    lib: tvmops.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one shape, so that what is known of a call on the CPU must not answer one on the GPU."""
    gpu = Recorder()
    monkeypatch.setitem(lib._dispatchers, "cuda", gpu)
    everywhere = "expected a tensor on the CPU or a torch tensor on a CUDA device"
    assert (lib.matmul(A, B) == 8).all() and not gpu.called
    monkeypatch.setattr(load, "device_of", made_up([(A, "cuda:0"), (B, "cuda:0"), (OUT, "cuda:0")]))
    monkeypatch.setattr(lib, "_known", KnownCalls())  # its kernel would refuse what lies on a GPU
    lib.matmul(A, B, out=OUT)
    lib.matmul(A, B, out=OUT)
    assert gpu.called == ["matmul m=8 n=8 k=8 dtype=float32"] * 2
    monkeypatch.setattr(load, "device_of", made_up([(A, "meta")]))
    with pytest.raises(CallError, match=f"'a' is on device meta; {everywhere}"):
        lib.matmul(A, B, bias=B[0].copy())


def test_a_call_that_lets_bits_go_has_kernels_of_its_own(
    lib: tvmops.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the one must not answer the other, of the same arrays."""
    gpu = Recorder()
    monkeypatch.setitem(lib._dispatchers, "cuda", gpu)
    monkeypatch.setattr(load, "device_of", made_up([(A, "cuda:0"), (B, "cuda:0"), (OUT, "cuda:0")]))
    monkeypatch.setattr(lib, "_known", KnownCalls())
    for precision in ("tf32", None, "tf32", "full"):
        for _ in range(2):
            lib.matmul(A, B, out=OUT, precision=precision)
    full = "matmul m=8 n=8 k=8 dtype=float32"
    lets_go = f"{full} precision=tf32"
    assert gpu.called == [lets_go, lets_go, full, full, lets_go, lets_go, full, full]


@pytest.mark.parametrize(
    "places, message",
    [
        ([], "'a' is on device cpu; expected a torch tensor on a CUDA device"),
        ([(A, "cuda:0"), (B, "cuda:1")], "'b' is on device cuda:1; expected device cuda:0"),
        ([(A, "cuda:0"), (B, "cuda:0")], "'out' is on device cpu; expected a torch tensor on a CUDA device"),
    ],
)
def test_a_gpu_library_takes_arrays_of_one_gpu(
    lib: tvmops.Library, places: list[tuple[Any, str]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lib, "_dispatchers", {"cuda": lib._dispatchers["cpu"]})
    monkeypatch.setattr(load, "device_of", made_up(places))
    with pytest.raises(CallError) as caught:
        lib.matmul(A, B, out=OUT)
    assert message in str(caught.value)
