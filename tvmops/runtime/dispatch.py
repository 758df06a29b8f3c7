"""Which kernel answers a workload: the one built for it, else a shape-generic one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tvmops.errors import ArgumentError, NotInLibraryError
from tvmops.manifest import KernelEntry, Variant
from tvmops.runtime.backend import ready_threads
from tvmops.space import Config
from tvmops.warn import warn
from tvmops.workloads import Workload


@dataclass(frozen=True)
class Explanation:
    """Which kernel answers a workload, and why."""

    workload: Workload
    tier: str  # "exact" or "generic"
    kernel: KernelEntry
    why: str
    variant: str = ""  # the target that the kernel was built for

    def __str__(self) -> str:
        kernel = self.kernel
        measured = (
            "not measured at this shape" if kernel.seconds is None else f"{kernel.seconds * 1e6:.2f} us"
        )
        bound = "as the op states" if kernel.tolerance is None else f"{kernel.tolerance:.2g}"
        seen = "" if kernel.error is None else f" (seen: {kernel.error:.2g})"
        config = Config(tuple(kernel.config.items()))
        return "\n".join(
            [
                f"{self.workload}",
                f"  kernel       {kernel.function} ({self.tier}: {self.why})",
                f"  variant      {self.variant}",
                f"  schedule     {kernel.template} {config}",
                f"  time         {measured}",
                f"  error bound  {bound}{seen}",
                f"  measured     {kernel.measured or 'never; a default schedule'}",
            ]
        )


class Dispatcher:
    """Finds kernels by workload and counts what the generic ones answer."""

    def __init__(self, path: str, variant: Variant, function: Callable[[str], Callable[..., None]]) -> None:
        self._path = path
        self._function = function
        self._exact: dict[Workload, KernelEntry] = {}
        self._generic: list[tuple[Workload, KernelEntry]] = []
        for entry in variant.kernels:
            workload = Workload.parse(entry.workload)
            if workload.is_generic:
                self._generic.append((workload, entry))
            else:
                self._exact[workload] = entry
        self._misses: dict[Workload, int] = {}
        self._counting = threading.Lock()

    def explain(self, workload: Workload) -> Explanation:
        """Say which kernel answers `workload`.

        Raises
        ------
        NotInLibraryError
            None does.
        ArgumentError
            A size of it is `*`.
        """
        if workload.is_generic:
            raise ArgumentError(argument="workload", value=str(workload), expected="sizes that are all known")
        exact = self._exact.get(workload)
        if exact is not None:
            return Explanation(workload, "exact", exact, "built for this shape")
        generic = self._generic_for(workload)
        if generic is not None:
            return Explanation(workload, "generic", generic, "this shape was not tuned")
        holds = ", ".join(sorted({str(w) for w in (*self._exact, *(w for w, _ in self._generic))}))
        raise NotInLibraryError(path=self._path, workload=workload, holds=holds or "no kernels")

    def tuned(self, op: str) -> Iterator[tuple[Workload, float]]:
        """Yield the workloads of `op` that kernels were built for, and how long each took."""
        for workload, entry in self._exact.items():
            if workload.op == op and entry.seconds is not None:
                yield workload, entry.seconds

    def answers(self, workload: Workload) -> bool:
        """Say whether some kernel answers `workload`."""
        return workload in self._exact or self._generic_for(workload) is not None

    def find(self, workload: Workload) -> Callable[..., None]:
        """Return the kernel for `workload`; a generic one counts each of its calls."""
        explanation = self.explain(workload)
        kernel = self._function(explanation.kernel.function)
        if explanation.kernel.parallel:
            kernel = _on_ready_threads(kernel)
        if explanation.tier == "exact":
            return kernel
        return self._counted(workload, kernel)

    def _generic_for(self, workload: Workload) -> KernelEntry | None:
        """Return the narrowest generic kernel for `workload`."""
        pattern = workload.generic()
        return next((e for p, e in self._generic if p == pattern and _in_range(e, workload)), None)

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


def _in_range(entry: KernelEntry, workload: Workload) -> bool:
    limits = list(entry.ranges.items())
    sizes = workload.dims(*(name for name, _ in limits))
    return all(low <= size <= high for size, (_, (low, high)) in zip(sizes, limits)) and all(
        workload.dims(name)[0] % multiple == 0 for name, multiple in entry.multiples.items()
    )
