"""What tests of wgmma convolutions share, whatever the layout: what is covered, a run amid guards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmops.ops import op_of
from tvmops.signatures.dtypes import decode
from tvmops.space import Config
from tvmops.targets import target
from tvmops.workloads import Workload

H100 = target("nvidia-h100")
POISON = 0xFF  # two of them are NaN in any type of 16 bits
_GUARD = 64  # elements
_KNOBS = ("patches", "consumers", "alternate", "bn", "cluster", "split_k", "beside", "direct")

# A conv2d but for its layout, a machine, and whether a template of wgmma covers it.
COVERED = [
    ("n=1 h=7 w=7 ci=64 co=64 kh=3 kw=3 dtype=float16", "nvidia-h100", True),
    ("n=1 h=7 w=7 ci=64 co=64 kh=3 kw=3 dtype=bfloat16 groups=8", "nvidia-h200", True),
    ("n=1 h=7 w=7 ci=64 co=64 kh=3 kw=3 dtype=float16 groups=16", "nvidia-h100", False),
    ("n=1 h=99 w=99 ci=64 co=64 kh=3 kw=3 dtype=float16 stride=9", "nvidia-h100", False),
    ("n=1 h=7 w=7 ci=64 co=64 kh=3 kw=3 dtype=float32", "nvidia-h100", False),
    ("n=1 h=7 w=7 ci=64 co=64 kh=3 kw=3 dtype=float16", "nvidia-a100", False),
    ("n=* h=* w=* ci=* co=* kh=3 kw=3 dtype=float16", "nvidia-h100", True),
]


def config(patch: tuple[int, int, int], *knobs: int, depth: int = 64) -> Config:
    width, height, images = patch
    return Config.of(patch_w=width, patch_h=height, patch_n=images, depth=depth, **dict(zip(_KNOBS, knobs)))


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Return poisoned memory that begins at a multiple of 16 bytes."""
    memory = np.full(nbytes + 16, POISON, np.uint8)
    begin = -memory.ctypes.data % 16
    return memory[begin : begin + nbytes]


@dataclass(frozen=True)
class Run:
    """The arrays of a convolution, `y` poisoned and amid guards, and what that should become."""

    work: Workload
    arrays: dict[str, NDArray[Any]]
    right: NDArray[np.float64]
    memory: NDArray[Any]

    @classmethod
    def of(cls, work: Workload) -> Run:
        op, dtype = op_of(work), str(work["dtype"])
        inputs = op.random_inputs(work, seed=1)
        (right,) = op.reference(work, *(decode(array, dtype) for array in inputs))
        memory = aligned(2 * (right.size + 2 * _GUARD)).view(inputs[0].dtype)
        arrays = dict(zip((spec.name for spec in op.inputs(work)), inputs))
        arrays["y"] = memory[_GUARD:-_GUARD].reshape(right.shape)
        return cls(work, arrays, right, memory)

    def check(self) -> None:
        """Check the result, and that nothing around it was written."""
        edges = np.concatenate([self.memory[:_GUARD], self.memory[-_GUARD:]])
        assert (edges.view(np.uint8) == POISON).all()
        found = decode(self.arrays["y"], str(self.work["dtype"])).astype(np.float64)
        assert np.abs(found - self.right).max() <= op_of(self.work).tolerance(self.work)
