"""The versions that a measured time depends on."""

from __future__ import annotations

import platform

import numpy
import tvm

from tvmops.version import VERSION


def toolchain() -> dict[str, str]:
    """Return the versions that a measured time depends on."""
    return {
        "tvmops": VERSION,
        "tvm": tvm.__version__,
        "llvm": str(tvm.get_global_func("target.llvm_version_major")()),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }
