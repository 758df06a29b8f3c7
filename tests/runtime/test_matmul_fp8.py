from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvmops.errors import CallError, CallTypeError
from tvmops.runtime.calls import CALL_ARGUMENTS, CALLS
from tvmops.workloads import workload

torch = pytest.importorskip("torch")


def matrix(rows: int, columns: int, dtype: str = "float8_e4m3fn") -> Any:
    return torch.ones(rows, columns).to(getattr(torch, dtype))


ONE = np.ones(1, np.float32)


def test_one_scale_each() -> None:
    call = CALLS["matmul_fp8"](matrix(3, 16), matrix(8, 16), torch.tensor(2.0), ONE)
    assert call.workload == workload("matmul_fp8", m=3, n=8, k=16)
    assert [tuple(array.shape) for array in call.inputs] == [(3, 16), (8, 16), (1,), (1,)]


def test_one_scale_a_row_and_back() -> None:
    scales = torch.ones(3, 1), np.ones((1, 8), np.float32)
    a, b = matrix(3, 16, "float8_e5m2"), matrix(8, 16, "float8_e5m2")
    call = CALLS["matmul_fp8"](a, b, *scales, out_dtype="float32")
    assert (call.workload["scales"], call.workload["out_dtype"]) == ("rows", "float32")
    again = CALLS["matmul_fp8"](**CALL_ARGUMENTS["matmul_fp8"](call.workload, call.inputs))
    assert again.workload == call.workload


@pytest.mark.parametrize(
    "b, scale, wrong",
    [
        (matrix(8, 17), ONE, "'b'"),
        (matrix(8, 16), np.ones(2, np.float32), "'a_scale'"),
        (matrix(8, 16), np.ones(3, np.float32), "'b_scale'"),  # of a one a row, of b one number
    ],
)
def test_what_does_not_fit_is_named(b: Any, scale: Any, wrong: str) -> None:
    with pytest.raises(CallError, match=wrong):
        CALLS["matmul_fp8"](matrix(3, 16), b, scale, ONE)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(CallTypeError, match="float8_e4m3fn or float8_e5m2"):
        CALLS["matmul_fp8"](torch.ones(3, 16), torch.ones(8, 16), ONE, ONE)
