"""Which kernel answers a workload: the one built for it, one tuned for a range, or a generic one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from tvmops.buckets import Bucket
from tvmops.errors import ArgumentError, NotInLibraryError
from tvmops.manifest import KernelEntry, Variant
from tvmops.runtime.backend import ready_threads
from tvmops.runtime.explanation import Explanation
from tvmops.warn import warn
from tvmops.workloads import Workload


class Dispatcher:
    """Finds kernels by workload and counts what the generic ones answer."""

    def __init__(self, path: str, variant: Variant, function: Callable[[str], Callable[..., None]]) -> None:
        self._path = path
        self._function = function
        self._buckets = variant.buckets
        self._entries = {entry.function: entry for entry in variant.kernels}
        self._exact: dict[Workload, KernelEntry] = {}
        self._generic: list[tuple[Workload, KernelEntry]] = []
        in_buckets = {name for bucket in variant.buckets for name in bucket.kernels}
        for entry in variant.kernels:
            workload = Workload.parse(entry.workload)
            if not workload.is_generic:
                self._exact[workload] = entry
            elif entry.function not in in_buckets:
                self._generic.append((workload, entry))
        self._misses: dict[Workload, int] = {}
        self._counting = threading.Lock()

    def explain(self, workload: Workload) -> Explanation:
        """Say which kernel answers `workload`: the one built for it, one of a range, or a generic one.

        Raises
        ------
        NotInLibraryError
            None does.
        ArgumentError
            A size of it is `*` or a range.
        """
        if workload.is_generic or workload.ranges:
            raise ArgumentError(argument="workload", value=str(workload), expected="sizes that are all known")
        exact = self._exact.get(workload)
        if exact is not None:
            return Explanation(workload, "exact", exact, "built for this shape", exact.seconds)
        for bucket in self._buckets:
            cell = bucket.cell(workload)
            if cell is not None:
                return self._explain_bucket(workload, bucket, cell)
        generic = self._generic_for(workload)
        if generic is not None:
            refused = tuple(self._refused(workload))
            return Explanation(workload, "generic", generic, "this shape was not tuned", refused=refused)
        holds = ", ".join(
            sorted(
                {
                    *map(str, self._exact),
                    *(b.workload for b in self._buckets),
                    *(str(w) for w, _ in self._generic),
                }
            )
        )
        raise NotInLibraryError(path=self._path, workload=workload, holds=holds or "no kernels")

    def _explain_bucket(self, workload: Workload, bucket: Bucket, cell: int) -> Explanation:
        sizes = bucket.sampled(cell)
        return Explanation(
            workload,
            "bucket",
            self._entries[bucket.kernels[bucket.cells[cell]]],
            f"tuned for {bucket.workload}",
            seconds=bucket.seconds[cell],
            loss=bucket.losses[cell],
            at=" ".join(f"{name}={size}" for name, size in sizes.items()),
            refused=("no kernel was built for this very shape",),
        )

    def _refused(self, workload: Workload) -> Iterator[str]:
        """Say why each kernel of the op that was looked at before does not answer `workload`."""
        yield "no kernel was built for this very shape"
        for bucket in self._buckets:
            if Workload.parse(bucket.workload).op == workload.op:
                yield f"{', '.join(bucket.kernels)}: for {bucket.workload}"
        for pattern, entry in self._generic:
            if pattern == workload.generic():
                reason = _misfit(entry, workload)
                if not reason:
                    return
                yield f"{entry.function}: {reason}"

    def tuned(self, op: str) -> Iterator[tuple[Workload, float]]:
        """Yield the workloads of `op` that kernels were built for, and how long each took."""
        for workload, entry in self._exact.items():
            if workload.op == op and entry.seconds is not None:
                yield workload, entry.seconds

    def answers(self, workload: Workload) -> bool:
        """Say whether some kernel answers `workload`."""
        return (
            workload in self._exact
            or any(bucket.cell(workload) is not None for bucket in self._buckets)
            or self._generic_for(workload) is not None
        )

    def find(self, workload: Workload) -> Callable[..., None]:
        """Return the kernel for `workload`; a generic one counts each of its calls."""
        explanation = self.explain(workload)
        kernel = self._function(explanation.kernel.function)
        if explanation.kernel.parallel:
            kernel = _on_ready_threads(kernel)
        return self._counted(workload, kernel) if explanation.tier == "generic" else kernel

    def _generic_for(self, workload: Workload) -> KernelEntry | None:
        """Return the narrowest generic kernel for `workload`."""
        pattern = workload.generic()
        return next((e for p, e in self._generic if p == pattern and not _misfit(e, workload)), None)

    def misses(self) -> dict[str, int]:
        """Return how often generic kernels answered, by workload, most often first."""
        ordered = sorted(self._misses.items(), key=lambda item: (-item[1], str(item[0])))
        return {str(workload): count for workload, count in ordered}

    def _counted(self, workload: Workload, kernel: Callable[..., None]) -> Callable[..., None]:
        misses, counting = self._misses, self._counting
        with counting:
            is_new = workload not in misses
            misses.setdefault(workload, 0)
        if is_new:
            warn(f"library {self._path}: '{workload}' was not tuned; a generic kernel answers")

        def call(*arguments: Any) -> None:
            kernel(*arguments)
            with counting:
                misses[workload] += 1

        return call


def _on_ready_threads(kernel: Callable[..., None]) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        ready_threads()
        kernel(*arguments)

    return call


def _misfit(entry: KernelEntry, workload: Workload) -> str:
    """Say which size of `workload` is beyond those that a generic kernel is meant for; "" if none is."""
    for name, (low, high) in entry.ranges.items():
        (size,) = workload.dims(name)
        if not low <= size <= high:
            return f"{name}={size} is not within {low}..{high}"
    for name, multiple in entry.multiples.items():
        (size,) = workload.dims(name)
        if size % multiple:
            return f"{name}={size} is no multiple of {multiple}"
    return ""
