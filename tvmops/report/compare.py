"""A library against its peers: the same data, turn by turn in one process, results checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import takewhile

from tvmops.measure.verify import largest_error, poisoned
from tvmops.ops import Array, op_of
from tvmops.report.peers import Call, peer_call
from tvmops.report.turns import Timing, take_turns
from tvmops.runtime.calls import CALL_ARGUMENTS
from tvmops.runtime.load import Library
from tvmops.signatures.dtypes import decode
from tvmops.workloads import Workload

OURS = "tvmops"
_LOOSE = 10.0  # how many times our tolerance a peer may be off, and still does the same


@dataclass(frozen=True)
class Comparison:
    """How long each took for one workload, and how far its result was from float64."""

    workload: Workload
    tier: str  # of the kernel that answered: "exact" or "generic"
    kernel: str
    flops: int
    tolerance: float
    timings: Mapping[str, Timing]  # ours first
    errors: Mapping[str, float]  # the largest absolute one

    def gflops(self, name: str) -> float:
        return self.flops / self.timings[name].median / 1e9

    @property
    def best_peer(self) -> str | None:
        """The fastest of the peers whose results are not far off; None without such."""
        allowed = _LOOSE * self.tolerance
        peers = [name for name in self.timings if name != OURS and self.errors[name] <= allowed]
        return max(peers, key=self.gflops, default=None)

    @property
    def ratio(self) -> float | None:
        """Our speed over that of the fastest peer."""
        return self.gflops(OURS) / self.gflops(self.best_peer) if self.best_peer else None

    @property
    def wrong(self) -> list[str]:
        """Those whose result was not within the op's tolerance."""
        return [name for name, error in self.errors.items() if not error <= self.tolerance]


def compare(
    library: Library, work: Iterable[Workload], peers: Sequence[str], rounds: int
) -> Iterator[Comparison]:
    """Yield a comparison for each workload; peers that are not installed are left out."""
    for workload in work:
        yield _compare(library, workload, peers, rounds)


def _compare(library: Library, workload: Workload, peers: Sequence[str], rounds: int) -> Comparison:
    op = op_of(workload)
    specs, outputs = op.inputs(workload), op.outputs(workload)
    inputs = op.random_inputs(workload, seed=1)
    expected = op.reference(workload, *(decode(each, spec.dtype) for spec, each in zip(specs, inputs)))
    explanation = library.explain(str(workload))
    results: dict[str, list[Array]] = {}
    calls: dict[str, Call] = {}
    for name in (OURS, *peers):
        outs = [poisoned(right, spec.dtype) for right, spec in zip(expected, outputs)]
        call = (
            _our_call(library, workload, inputs, outs)
            if name == OURS
            else peer_call(name, workload, inputs, outs)
        )
        if call is not None:
            calls[name], results[name] = call, outs
    timings = take_turns(calls, rounds)
    errors = {
        name: max(
            largest_error(decode(out, s.dtype), right) for out, s, right in zip(outs, outputs, expected)
        )
        for name, outs in results.items()
    }
    return Comparison(
        workload,
        explanation.tier,
        explanation.kernel.function,
        op.flops(workload),
        op.tolerance(workload),
        timings,
        errors,
    )


def _our_call(
    library: Library, workload: Workload, inputs: Sequence[Array], outputs: Sequence[Array]
) -> Call:
    """Return a call of the library as a user makes it."""
    method = getattr(library, workload.op)
    arguments = CALL_ARGUMENTS[workload.op](workload, inputs)
    out = outputs[0] if len(outputs) == 1 else tuple(outputs)
    leading = list(takewhile(arguments.__contains__, signature(method).parameters))
    arrays = [arguments.pop(name) for name in leading]
    return partial(method, *arrays, **arguments, out=out)


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
