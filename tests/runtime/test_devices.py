"""Arrays must lie where a library's kernels run. Devices are made up: there need be no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tvmops
from tvmops.errors import CallError
from tvmops.runtime import arrays, known, load, plans
from tvmops.runtime.arrays import bounds
from tvmops.runtime.known import KnownCalls
from tvmops.workloads import Workload

A, B, OUT = (np.ones((8, 8), "float32") for _ in range(3))


def made_up(places: list[tuple[Any, str]]) -> Any:
    """Return a `device_of` by which these arrays lie in these places, and all others on the CPU."""
    known = {bounds(array)[0]: place for array, place in places}
    return lambda array: known.get(bounds(array)[0], "cpu")


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


def at_element(first: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return three tensors, on a GPU as it seems, each `first` elements behind a cache line."""
    torch = pytest.importorskip("torch")
    tensors = []
    for _ in range(3):
        memory = torch.ones(8 * 8 + 32)
        start = next(i for i in range(16) if memory[i:].data_ptr() % 64 == 0) + first
        tensors.append(memory[start : start + 64].view(8, 8))
    for module in (load, plans, arrays):
        monkeypatch.setattr(module, "device_of", lambda array: "cuda:0")
    return tensors


@pytest.mark.parametrize("first, is_copied", [(1, True), (2, True), (4, False)])
def test_inputs_that_begin_where_a_gpu_reads_no_vectors_are_copied(
    lib: tvmops.Library, first: int, is_copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []

    class Kernels:
        def find(self, workload: Workload) -> Any:
            return lambda *given: taken.append(given)

    monkeypatch.setitem(lib._dispatchers, "cuda", Kernels())
    a, b, _ = at_element(first, monkeypatch)
    for _ in range(2):  # the second time, the call is known
        lib.matmul(a, b)
    for a_taken, b_taken, _ in taken:
        assert (a_taken.data_ptr() != a.data_ptr()) is (b_taken.data_ptr() != b.data_ptr()) is is_copied
        assert a_taken.data_ptr() % 16 == b_taken.data_ptr() % 16 == 0
        assert (a_taken == a).all() and (b_taken == b).all()


def test_results_that_begin_so_are_refused(lib: tvmops.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lib._dispatchers, "cuda", Recorder())
    a, b, out = at_element(1, monkeypatch)
    refused = "'out' is at an address that is no multiple of 16; expected a tensor that begins at one"
    for _ in range(2):
        with pytest.raises(CallError, match=refused):
            lib.matmul(a.clone(), b.clone(), out=out)
    step = lib.prepare("matmul", a.clone(), b.clone())
    with pytest.raises(CallError, match="'a' is at an address that is no multiple of 16"):
        step(a, b.clone())
    with pytest.raises(CallError, match=refused):
        step(a.clone(), b.clone(), out=out)


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


@pytest.mark.parametrize("is_packed", [False, True])
def test_what_is_known_of_products_on_cpus_is_not_asked_for_those_of_another_device(is_packed: bool) -> None:
    """A kernel would refuse them, but that takes long."""
    torch = pytest.importorskip("torch")
    called: list[Any] = []
    product = known._careful(lambda *given: called.append(given), is_packed)
    here, elsewhere = torch.empty(8, 8), torch.empty(8, 8, device="meta")
    product(here, here, here)
    assert len(called) == 1
    with pytest.raises(ValueError, match="on a GPU"):
        product(elsewhere, elsewhere, elsewhere)
    assert len(called) == 1
