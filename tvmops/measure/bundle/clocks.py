"""How fast a GPU's clock runs: NVIDIA's management library, which comes with the driver."""

from __future__ import annotations

import ctypes
import statistics
import threading
from collections.abc import Callable
from types import TracebackType

_SM_CLOCK = 1  # of nvmlClockType_t
_PAUSE = 0.1  # seconds between samples


def gpu_clock(uuid: str) -> Callable[[], float | None]:
    """Return a function that tells the megahertz of the GPU with this UUID; None where nothing does."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return lambda: None
    device, megahertz = ctypes.c_void_p(), ctypes.c_uint()
    name = f"GPU-{uuid}".encode()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(device)):
        return lambda: None

    def clock() -> float | None:
        failed = library.nvmlDeviceGetClockInfo(device, _SM_CLOCK, ctypes.byref(megahertz))
        return None if failed else float(megahertz.value)

    return clock


class ClockSamples:
    """Asks `clock` again and again, in a thread of its own, while the block under `with` runs."""

    def __init__(self, clock: Callable[[], float | None]) -> None:
        self._clock, self._samples = clock, list[float]()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def _sample(self) -> None:
        while not self._is_over.wait(_PAUSE):
            found = self._clock()
            if found is not None:
                self._samples.append(found)

    def __enter__(self) -> ClockSamples:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def median(self) -> float | None:
        return statistics.median(self._samples) if self._samples else None
