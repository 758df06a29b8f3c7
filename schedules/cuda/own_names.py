"""Names of device functions and types that no other text of them has.

The kernels of a library are compiled as one text. Several of them may call functions of the same name whose
texts differ in a constant, or texts that begin with the same helper: each text then gets names of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_DEFINED = re.compile(r"__device__ [\w *]*?(\w+)\(|^struct (\w+) \{", re.MULTILINE)
_owned: ContextVar[bool] = ContextVar("owned", default=False)


@contextmanager
def own_names() -> Iterator[None]:
    """Give what device functions are called by kernels that are built meanwhile names of their own."""
    token = _owned.set(True)
    try:
        yield
    finally:
        _owned.reset(token)


def owned(name: str, source: str) -> tuple[str, str]:
    """Return a function's name and its text, by names that follow from the text where they are owned."""
    defined = {function or struct for function, struct in _DEFINED.findall(source)} if _owned.get() else ()
    if not defined:
        return name, source
    suffix = hashlib.sha256(source.encode()).hexdigest()[:12]
    named = re.compile(rf"\b({'|'.join(sorted(defined))})\b")
    return named.sub(rf"\1_{suffix}", name), named.sub(rf"\1_{suffix}", source)
