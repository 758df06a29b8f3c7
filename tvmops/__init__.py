"""tvmops: tune tensor kernels for a machine, export them as a library, call it from Python.

    work = [tvmops.workload("matmul", m=1024, n=1024, k=1024, dtype="float32")]
    tvmops.tune(work, target="native", log="my.jsonl", trials=64, seconds=60)
    tvmops.export(work, target="native", logs=["my.jsonl"], path="libmine")

    lib = tvmops.load("libmine")
    c = lib.matmul(a, b)

`import tvmops` is light: the half that needs the compiler is imported when first used, and
using a library never imports it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tvmops.version import VERSION as __version__

if TYPE_CHECKING:
    from tvmops import quantize
    from tvmops.library.export import export
    from tvmops.runtime.load import Library, load
    from tvmops.targets import Target, target
    from tvmops.tuner.session import tune
    from tvmops.workloads import Workload, workload

_PUBLIC = {
    "Library": "tvmops.runtime.load",
    "Target": "tvmops.targets",
    "Workload": "tvmops.workloads",
    "export": "tvmops.library.export",
    "load": "tvmops.runtime.load",
    "target": "tvmops.targets",
    "tune": "tvmops.tuner.session",
    "workload": "tvmops.workloads",
}

_MODULES = ("quantize",)

__all__ = [
    "Library",
    "Target",
    "Workload",
    "__version__",
    "export",
    "load",
    "quantize",
    "target",
    "tune",
    "workload",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tvmops' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
