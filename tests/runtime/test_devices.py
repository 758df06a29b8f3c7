"""Arrays must lie where a library's kernels run. Devices are made up: there need be no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tvmops
from tvmops.errors import CallError
from tvmops.runtime import load

A, B, OUT = (np.ones((8, 8), "float32") for _ in range(3))


def made_up(places: list[tuple[Any, str]]) -> Any:
    """Return a `device_of` by which these arrays lie in these places, and all others on the CPU."""
    known = {array.ctypes.data: place for array, place in places}
    return lambda array: known.get(array.ctypes.data, "cpu")


def test_a_cpu_library_refuses_a_gpu(lib: tvmops.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "device_of", made_up([(B, "cuda:0")]))
    with pytest.raises(CallError, match="'b' is on device cuda:0; expected a tensor on the CPU"):
        lib.matmul(A, B)


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
