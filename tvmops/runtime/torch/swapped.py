"""`Swapped`: the module that stands for a chain, and asks a library for each new shape."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tvmops.errors import NotInLibraryError, TvmopsError
from tvmops.runtime.load import Library
from tvmops.runtime.torch.steps import Form, Step
from tvmops.workloads import Workload

Compute = Callable[..., Tensor]


class Swapped(nn.Module):
    """Computes a chain by the library's kernel for the shapes of a call, else as PyTorch does.

    What it does for shapes that it met is in `answers`.
    """

    def __init__(self, step: Step, has_residual: bool, lib: Library | None, generic: bool) -> None:
        super().__init__()
        self.step = step
        self.lib = lib
        self.generic = generic
        self.has_residual = has_residual
        self.answers: dict[tuple[Any, ...], str] = {}
        self.workloads: dict[Workload, int] = {}  # of calls without a library
        self._computes: dict[tuple[Any, ...], Compute] = {}
        self._planning = threading.Lock()

    def forward(self, *given: Tensor) -> Tensor:
        # channels first or last, where there are two ways to lie dense
        key = tuple([(each.shape, each.dtype, each.device, each.is_contiguous()) for each in given])
        compute = self._computes.get(key)
        if compute is None:
            compute = self._plan(key, given)
        return compute(*given)

    @property
    def falls_back(self) -> bool:
        """Whether PyTorch computes the chain for the shapes of some call."""
        return self._eager in self._computes.values()

    @property
    def label(self) -> str:
        """What the chain computes."""
        following = ["add"] if self.has_residual else []
        return " + ".join(
            [self.step.name, *following, *([self.step.activation] if self.step.activation else [])]
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _plan(self, key: tuple[Any, ...], given: Sequence[Tensor]) -> Compute:
        with self._planning, torch.no_grad():
            given = [each.detach() for each in given]  # a gradient is refused when the kernel is called
            compute, answer = self._found(given) if self.lib is not None else self._recorded(given)
            if self.lib is not None:
                self._computes[key] = compute
                self.answers[key] = answer
            return compute

    def _found(self, given: Sequence[Tensor]) -> tuple[Compute, str]:
        """Return the fastest of the library's kernels that compute the most of the chain."""
        assert self.lib is not None
        why = "no call of the library takes this"
        for with_residual, activation in self._extents():
            fastest: tuple[float, Form] | None = None
            residual = len(given) - 1 if with_residual else None
            inputs = given[: len(given) - (self.has_residual and not with_residual)]
            try:
                forms = self.step.forms(given[: len(given) - self.has_residual], residual, activation)
            except TvmopsError as error:  # weights of a dtype that is not packed
                return self._eager, f"PyTorch: {error}"
            for form in forms:
                try:
                    workload = form.workload(inputs)
                    found = self.lib.explain(str(workload))
                except NotInLibraryError:
                    why = f"no kernel for '{workload}'"
                    continue
                except TvmopsError as error:
                    why = str(error)
                    continue
                if found.tier == "generic" and not self.generic:
                    why = f"only a generic kernel for '{workload}'"
                    continue
                seconds = float("inf") if found.kernel.seconds is None else found.kernel.seconds
                if fastest is None or seconds < fastest[0]:
                    fastest = seconds, form
                    answer = f"{found.tier} kernel for '{workload}'"
            if fastest is not None:
                return self._bound(fastest[1], inputs, with_residual, activation), answer
        return self._eager, f"PyTorch: {why}"

    def _extents(self) -> list[tuple[bool, str | None]]:
        """Return how much of what follows the step a kernel may compute, the most first."""
        activation = self.step.activation
        extents = [(self.has_residual, activation), (self.has_residual, None), (False, None)]
        return list(dict.fromkeys(extents))

    def _bound(
        self, form: Form, given: Sequence[Tensor], with_residual: bool, activation: str | None
    ) -> Compute:
        """Return a call of the kernel; PyTorch does what of the chain is left."""
        assert self.lib is not None
        prepared = self.lib.prepare(form.op, **form.arguments(given))
        constants = [form.constants.get(name) for name in prepared.names]
        slots = [(at, form.inputs[name]) for at, name in enumerate(prepared.names) if name in form.inputs]

        def compute(*inputs: Tensor) -> Tensor:
            arrays = list(constants)
            for at, index in slots:
                arrays[at] = form.array(inputs[index])
            return form.result(prepared(*arrays))

        if with_residual == self.has_residual and activation == self.step.activation:
            return compute

        def compute_and_finish(*inputs: Tensor) -> Tensor:
            residual = inputs[-1] if self.has_residual and not with_residual else None
            return self.step.finish(compute(*inputs), residual, self.step.activation)

        return compute_and_finish

    def _eager(self, *given: Tensor) -> Tensor:
        inputs, residual = (given[:-1], given[-1]) if self.has_residual else (given, None)
        return self.step.finish(self.step.compute(inputs), residual, self.step.activation)

    def _recorded(self, given: Sequence[Tensor]) -> tuple[Compute, str]:
        """Count the workload of a call, and leave it to PyTorch."""
        residual = len(given) - 1 if self.has_residual else None
        for form in self.step.forms(given[: len(given) - self.has_residual], residual, self.step.activation):
            try:
                workload = form.workload(given)
            except TvmopsError:
                continue
            self.workloads[workload] = self.workloads.get(workload, 0) + 1
            break
        return self._eager, ""
