"""A library's custom ops on a GPU: known to PyTorch's own checks, and traced by its compiler."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.device.cases import NAMES, make_case  # noqa: E402
from tvmops.errors import CallError, CallTypeError  # noqa: E402
from tvmops.runtime.load import Library  # noqa: E402
from tvmops.runtime.torch import register  # noqa: E402

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:library"),
]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.fixture(scope="module")
def ops(lib: Library) -> Any:
    return register(lib, "tvmops_device")


@pytest.mark.parametrize("name", NAMES)
def test_an_op_computes_and_passes_pytorchs_checks(lib: Library, ops: Any, name: str) -> None:
    case = make_case(name, lib)
    op, arguments, attributes = case.of_op()
    found = getattr(ops, op)(*arguments, **attributes)
    case.check(found[0] if isinstance(found, tuple) else found)
    checks = CHECKS[name == "matmul_fp8" :]  # the first compares arrays, and PyTorch can't those of 8 bits
    torch.library.opcheck(getattr(ops, op).default, arguments, attributes, test_utils=checks)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_triton)])
def test_torch_compile_traces_through_in_one_graph(lib: Library, ops: Any, backend: str) -> None:
    case = make_case("matmul bfloat16", lib)
    compiled = torch.compile(
        lambda a, b: torch.relu(ops.matmul(a * 1, b)) + 1, fullgraph=True, backend=backend
    )
    found = compiled(*case.arguments).double()
    bound = 2**-7 * (1 + float(case.expected.abs().max()))
    torch.testing.assert_close(found, torch.relu(case.expected) + 1, rtol=0, atol=bound)


def test_errors_are_those_of_the_library(lib: Library, ops: Any) -> None:
    a, b = make_case("matmul float32", lib).arguments
    with pytest.raises(CallError, match="device"):
        ops.matmul(a, b.cpu())
    with pytest.raises(CallTypeError, match="'b' is of dtype float16"):
        ops.matmul(a, b.half())
    with pytest.raises(CallError, match="requires grad"):
        ops.matmul(a.clone().requires_grad_(), b)
