"""What a peer's module gives: for each op that it has, a function that makes a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tvmops.report.turns import take_turns
from tvmops.signatures import SIGNATURES
from tvmops.signatures.conv2d import weight_sizes
from tvmops.signatures.layouts import PLAIN, layout_of
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


def plain_inputs(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arrays of a conv2d by their names, its weights unpacked, in its layout."""
    given = dict(zip((spec.name for spec in SIGNATURES[workload.op].inputs(workload)), inputs))
    if workload["packed"] != PLAIN:
        w = layout_of(workload).unpack(given["w"], *weight_sizes(workload))
        given["w"] = np.ascontiguousarray(np.moveaxis(w, 1, 3)) if workload["layout"] == "NHWC" else w
    return given


def channels_first(array: Any) -> Any:
    """Return a dense NCHW copy of an NHWC array."""
    return np.ascontiguousarray(np.moveaxis(array, 3, 1))


def fastest(forms: Mapping[str, Call]) -> Call:
    """Return the fastest of several calls that do the same."""
    timings = take_turns(forms, rounds=3) if len(forms) > 1 else {}
    return forms[min(forms, key=lambda name: timings[name].median if timings else 0.0)]


def matmul_operands(workload: Workload, inputs: Sequence[Any]) -> dict[str, Any]:
    """Return the arrays of a matmul by name, a and b as they stand in the product.

    Transposed ones are views; a packed b is laid out again as (k, n), and is constant.
    """
    names = [spec.name for spec in SIGNATURES["matmul"].inputs(workload)]
    given = dict(zip(names, inputs))
    if workload["packed"] != PLAIN:
        given["b"] = np.ascontiguousarray(layout_of(workload).unpack(given["b"], *workload.dims("k", "n")))
    for name in "ab":
        if workload[f"trans_{name}"]:
            given[name] = given[name].swapaxes(-1, -2)
    return given
