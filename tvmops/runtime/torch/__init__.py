"""Libraries in PyTorch: custom ops, and models whose modules call a library.

ops = register(lib, namespace="mine")   # torch.ops.mine.matmul and so on
work = workloads(model, x)              # what to tune for a model
patched = patch(model, lib, x)          # the model, computed by a library tuned for it
print(patched.report())
"""

from __future__ import annotations

from tvmops.runtime.torch.ops import on_device, packed, register
from tvmops.runtime.torch.patch import Patched, patch, workloads

__all__ = ["Patched", "on_device", "packed", "patch", "register", "workloads"]
