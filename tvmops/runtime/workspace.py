"""Memory that a GPU kernel works in besides its arguments, from PyTorch's caching allocator.

The allocator hands memory on in the order of the stream, and knows of CUDA graphs: a call neither
waits nor asks the driver, and may be captured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

SUFFIX = "_workspace"  # of the function that says, for a kernel's arguments, how many bytes it needs


def kernel_of(module: Any, name: str) -> Callable[..., None]:
    """Return the kernel `name` of a loaded module, which brings its own workspace where it needs one."""
    kernel: Callable[..., None] = module[name]
    if not module.implements_function(name + SUFFIX):
        return kernel
    needed = module[name + SUFFIX]

    def call(*arguments: Any) -> None:
        like = arguments[-1]  # the result
        kernel(*arguments, like.new_empty((needed(*arguments),), dtype=sys.modules["torch"].uint8))

    return call
