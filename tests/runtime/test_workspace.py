from __future__ import annotations

from typing import Any

import pytest

from tvmops.runtime.workspace import kernel_of

torch = pytest.importorskip("torch")


class Module:
    """What a loaded module of kernels is to `kernel_of`."""

    def __init__(self, **functions: Any) -> None:
        self.functions = functions

    def __getitem__(self, name: str) -> Any:
        return self.functions[name]

    def implements_function(self, name: str) -> bool:
        return name in self.functions


def test_a_kernel_without_a_workspace_is_called_as_it_is() -> None:
    def kernel(*arguments: Any) -> None: ...

    assert kernel_of(Module(main=kernel), "main") is kernel


def test_a_kernel_gets_as_much_as_it_says_where_its_result_lies() -> None:
    seen: list[Any] = []

    def kernel(*arguments: Any) -> None:
        seen.extend(arguments)

    def needed(a: Any, scalar: float, out: Any) -> int:
        return int(a.numel() * 3 + out.numel())

    a, out = torch.zeros(5), torch.zeros(2, 3)
    call = kernel_of(Module(main=kernel, main_workspace=needed), "main")
    call(a, 0.5, out)
    assert seen[0] is a and seen[1] == 0.5 and seen[2] is out
    assert seen[3].shape == (21,) and seen[3].dtype == torch.uint8 and seen[3].device == out.device
