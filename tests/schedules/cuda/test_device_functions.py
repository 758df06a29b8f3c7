"""Kernels of several templates lie in one module of a library, and so do the device functions they call."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tvmops.schedules import cuda

_DEFINED = re.compile(r"__device__ [\w *]*?(\w+)\(")  # names that are made of others are told apart by these


def test_no_two_device_functions_have_the_same_name() -> None:
    sources = Path(cuda.__file__).parent.rglob("*.py")
    names = Counter(name for path in sources for name in _DEFINED.findall(path.read_text()))
    assert len(names) > 20
    assert [name for name, count in names.items() if count > 1] == []
