from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tvmops.errors import UnknownOpError, WorkloadError
from tvmops.measure.build import compile_module
from tvmops.ops import op_of
from tvmops.ops.matmul import UNIT_ROUNDOFF, MatMul
from tvmops.schedules.sketch import tensor_program
from tvmops.signatures import SIGNATURES
from tvmops.targets import target
from tvmops.workloads import Workload, workload

MATMUL = MatMul()
W = workload("matmul", m=3, n=5, k=7)


def test_every_op_of_the_table_is_there() -> None:
    for op in SIGNATURES:
        assert op_of(Workload(op, ())).name == op


def test_an_unknown_op_lists_the_known_ones() -> None:
    with pytest.raises(UnknownOpError, match=r"'fft'; expected one of .*matmul"):
        op_of(Workload("fft", ()))


def test_arguments_are_stated_in_calling_order() -> None:
    assert [(s.name, s.shape, s.dtype) for s in MATMUL.inputs(W)] == [
        ("a", (3, 7), "float32"),
        ("b", (7, 5), "float32"),
    ]
    (output,) = MATMUL.outputs(W)
    assert (output.shape, output.nbytes) == ((3, 5), 4 * 3 * 5)


def test_work_is_counted() -> None:
    assert MATMUL.flops(W) == 2 * 3 * 5 * 7
    assert MATMUL.nbytes(W) == 4 * (3 * 7 + 7 * 5 + 3 * 5)


def test_the_reference_is_the_sum_over_k_in_float64() -> None:
    a, b = MATMUL.random_inputs(W, seed=1)
    expected = np.zeros((3, 5))
    for i, j, r in product(range(3), range(5), range(7)):
        expected[i, j] += float(a[i, r]) * float(b[r, j])
    (result,) = MATMUL.reference(W, a, b)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=1e-15, atol=1e-15)


def test_the_expression_says_the_same_as_the_reference() -> None:
    a, b = MATMUL.random_inputs(W, seed=1)
    result = np.full((3, 5), np.nan, "float32")
    compile_module(tensor_program(W), target("native"))["main"](a, b, result)
    assert np.abs(result - MATMUL.reference(W, a, b)[0]).max() <= MATMUL.tolerance(W)


def test_inputs_follow_the_seed_and_stay_in_range() -> None:
    first, again, other = (MATMUL.random_inputs(W, seed) for seed in (1, 1, 2))
    for x, y, z in zip(first, again, other):
        assert x.dtype == np.float32
        assert np.array_equal(x, y)
        assert not np.array_equal(x, z)
        assert x.min() >= -1
        assert x.max() < 1


@pytest.mark.parametrize("k", [1, 64, 4096])
def test_the_tolerance_admits_rounding_and_nothing_more(k: int) -> None:
    """Float32 sums pass; one product left out, or inputs rounded to bfloat16, do not."""
    w = workload("matmul", m=16, n=16, k=k)
    a, b = MATMUL.random_inputs(w, seed=1)
    (expected,), allowed = MATMUL.reference(w, a, b), MATMUL.tolerance(w)
    in_order = np.zeros((16, 16), "float32")
    for r in range(k):
        in_order += a[:, r : r + 1] * b[r : r + 1]
    assert np.abs(in_order - expected).max() < allowed
    assert np.abs(a[:, :-1] @ b[:-1] - expected).max() > allowed
    coarse = (a.view("uint32") & 0xFFFF0000).view("float32")
    assert np.abs(coarse @ b - expected).max() > allowed
    assert allowed < 4 * (k + 2) * UNIT_ROUNDOFF


@pytest.mark.parametrize("k", [1, 64, 4096])
def test_tf32_admits_ten_bits_of_a_factor_and_nothing_less(k: int) -> None:
    """Factors without their last 13 bits pass; without 16, or one product left out, they do not."""
    w = workload("matmul", m=64, n=64, k=k, precision="tf32")
    a, b = MATMUL.random_inputs(w, seed=1)
    (expected,), allowed = MATMUL.reference(w, a, b), MATMUL.tolerance(w)

    def error(mask: int) -> float:
        left, right = ((x.view("uint32") & np.uint32(mask)).view("float32").astype("float64") for x in (a, b))
        return float(np.abs(left @ right - expected).max())

    assert MATMUL.tolerance(w.replace(precision="full")) < error(0xFFFFE000) < allowed < error(0xFFFF0000)
    assert np.abs(a[:, :-1] @ b[:-1] - expected).max() > allowed


@pytest.mark.parametrize(
    "fields", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"packed": "panels"}], ids=str
)
def test_tf32_is_of_float32_and_plain_arrays(fields: dict[str, object]) -> None:
    with pytest.raises(WorkloadError, match="field 'precision' is 'tf32'; expected full where"):
        workload("matmul", m=3, n=5, k=7, precision="tf32", **fields)
    assert "precision" not in str(W)
