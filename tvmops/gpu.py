"""The CUDA devices of this machine, as the driver describes them. Needs no package."""

from __future__ import annotations

import ctypes
import functools
import re

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_CODE = re.compile(r"sm_(\d+)(\d)(a?)")


@functools.cache
def capabilities() -> tuple[tuple[int, int], ...]:
    """Return the compute capability of each device, (9, 0) for one; none where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    if not hasattr(driver, "cuInit"):  # what stands for it where kernels are compiled without one
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple((_attribute(driver, i, _MAJOR), _attribute(driver, i, _MINOR)) for i in range(count.value))


def runs(code: str) -> bool:
    """Say whether a device here runs `code`, "sm_80" or "sm_90a".

    Code for a capability runs on later ones of the same major number; with an "a", on that
    one alone.
    """
    found = _CODE.fullmatch(code)
    if found is None:
        return False
    major, minor, exact = int(found[1]), int(found[2]), bool(found[3])
    return any(
        here == (major, minor) if exact else here[0] == major and here[1] >= minor for here in capabilities()
    )


def _attribute(driver: ctypes.CDLL, device: int, which: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value
