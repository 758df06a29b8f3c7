"""matmul_weight_only's reference, expression and bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvmops.errors import WorkloadError
from tvmops.measure.build import compile_module
from tvmops.ops import op_of
from tvmops.ops.matmul_weight_only import MOST
from tvmops.schedules.sketch import tensor_program
from tvmops.signatures.dtypes import decode
from tvmops.signatures.matmul_weight_only import groups_of
from tvmops.targets import target
from tvmops.workloads import Workload, workload

M, N, K = 3, 5, 40
FORMS: list[dict[str, Any]] = [
    {"group": 16},
    {"group": 24, "zero_points": True},  # the last group goes beyond k
    {"group": 8, "bits": 8, "bias": True, "activation": "silu"},
    {"group": 16, "zero_points": True, "bias": True, "activation": "relu6"},
]


def made(**fields: Any) -> Workload:
    return workload("matmul_weight_only", m=M, n=N, k=K, **fields)


def by_hand(work: Workload, x: Any, w: Any, bias: Any = None) -> np.ndarray:
    """Compute the result element by element, from the bytes of w."""
    layout = groups_of(work)
    blocks = w.reshape(w.shape[0], -1, layout.rows, 64)
    result = np.zeros((M, N))
    for i, j, r in np.ndindex(M, N, K):
        panel, lane, group, inside = j // 16, j % 16, r // layout.group, r % layout.group
        block, head = blocks[panel, group], 1 + layout.has_zero_points
        floats = [float(row.view("float32")[lane]) for row in block[:head]]
        byte = int(block[head + inside // layout.step, 4 * lane + inside % 4])
        q = byte if layout.bits == 8 else byte >> 4 * (inside % 8 // 4) & 15
        zero = floats[1] if head == 2 else (8 if layout.bits == 4 else 128)
        result[i, j] += float(x[i, r]) * (q - zero) * floats[0]
    result += 0 if bias is None else bias.astype("float64")
    after = {
        "none": lambda y: y,
        "silu": lambda y: y / (1 + np.exp(-y)),
        "relu6": lambda y: np.clip(y, 0, 6),
    }
    return after[str(work["activation"])](result)


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_the_reference_follows_the_definition(fields: dict[str, Any]) -> None:
    work = made(**fields)
    inputs = op_of(work).random_inputs(work, seed=3)
    (result,) = op_of(work).reference(work, *inputs)
    np.testing.assert_allclose(result, by_hand(work, *inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_the_expression_says_the_same(fields: dict[str, Any]) -> None:
    work = made(**fields)
    op, result = op_of(work), np.full((M, N), np.nan, "float32")
    inputs = op.random_inputs(work, seed=1)
    compile_module(tensor_program(work), target("native"))["main"](*inputs, result)
    assert np.abs(result - op.reference(work, *inputs)[0]).max() <= op.tolerance(work)


@pytest.mark.parametrize("x_bits", MOST)
@pytest.mark.parametrize("k", [32, 4096])
def test_the_tolerance_admits_the_steps_of_x_and_little_more(x_bits: str, k: int) -> None:
    work = workload("matmul_weight_only", m=8, n=64, k=k, group=32, x_bits=x_bits)
    op = op_of(work)
    x, w = op.random_inputs(work, seed=1)
    (expected,), allowed = op.reference(work, x, w), op.tolerance(work)

    def stepped(most: int) -> np.ndarray:
        grouped = x.astype("float64").reshape(8, -1, 32)
        step = np.abs(grouped).max(axis=2, keepdims=True) / most
        return (np.rint(grouped / step) * step).reshape(8, k) @ groups_of(work).unpack(w, 64, k).T

    assert np.abs(stepped(MOST[x_bits]) - expected).max() <= allowed
    if x_bits != "24":  # whose steps are below what rounding in float32 costs
        assert np.abs(stepped(MOST[x_bits] // 8) - expected).max() > allowed


def test_bfloat16_goes_in_and_out() -> None:
    work = made(group=16, dtype="bfloat16", bias=True)
    op = op_of(work)
    assert [spec.dtype for spec in op.inputs(work)] == ["bfloat16", "uint8", "bfloat16"]
    assert op.outputs(work)[0].dtype == "bfloat16"
    x, w, bias = op.random_inputs(work, seed=2)
    x, bias = (decode(each, "bfloat16") for each in (x, bias))
    (result,) = op.reference(work, x, w, bias)
    np.testing.assert_allclose(result, by_hand(work, x, w, bias), rtol=1e-12, atol=1e-12)
    assert op.tolerance(work) > 2**-8 * np.abs(result).max()


def test_work_is_counted() -> None:
    work = made(group=8)
    assert op_of(work).flops(work) == 2 * M * N * K
    groups, rows = 5, 1 + 1  # of 64 bytes: scales and eight nibbles a column
    assert op_of(work).nbytes(work) == 4 * M * K + 64 * groups * rows + 4 * M * N


@pytest.mark.parametrize("group", [4, 32_776])
def test_a_group_has_limits(group: int) -> None:
    with pytest.raises(WorkloadError, match=f"'group' is {group}; expected a multiple of 8"):
        made(group=group)
