"""What a peer's module gives: for each op that it has, a function that makes a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tvmops.workloads import Workload

Call = Callable[[], object]
# takes a kernel's inputs and outputs; None where the peer has no form of this workload
MakeCall = Callable[[Workload, Sequence[Any], Sequence[Any]], Call | None]


def reporting(compute: Callable[[], Any], report: Callable[[Any], object]) -> Call:
    """Return a call of `compute` that, the first time, hands its result to `report`.

    For what gives results in memory or in a layout of its own, which then is checked, not timed.
    """
    reported = False

    def call() -> object:
        nonlocal reported
        result = compute()
        if not reported:
            reported = True
            report(result)
        return result

    return call


def channels_first(array: Any) -> Any:
    """Return a dense NCHW copy of an NHWC array."""
    return np.ascontiguousarray(np.moveaxis(array, 3, 1))
