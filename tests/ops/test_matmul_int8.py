from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvmops.errors import WorkloadError
from tvmops.measure.build import compile_module
from tvmops.ops import op_of
from tvmops.schedules.sketch import tensor_program
from tvmops.signatures.layouts import layout_of
from tvmops.targets import target
from tvmops.workloads import workload

FORMS: list[dict[str, Any]] = [
    {},
    {"dtype": "int8", "packed": "words"},
    {"out_dtype": "float32", "scales": "channel", "bias": True, "activation": "relu6"},
    {"out_dtype": "uint8", "bias": True},
    {"trans_b": True, "b_zero_points": "channel"},
    {"out_dtype": "float32", "b_zero_points": "tensor", "packed": "words", "dtype": "int8"},
    {"out_dtype": "int8", "dtype": "int8", "scales": "channel"},
]


def made(**fields: Any) -> Any:
    return workload("matmul_int8", m=3, n=5, k=7, **fields)


def by_hand(work: Any, inputs: list[np.ndarray]) -> np.ndarray:
    """Compute the result element by element, in Python's own numbers."""
    given = dict(zip((spec.name for spec in op_of(work).inputs(work)), inputs))
    zero, *rest = op_of(work).scalars(work)
    b_zeros = [rest.pop(0)] * 5 if work["b_zero_points"] == "tensor" else given.get("b_zero_points", [0] * 5)
    b = given["b"].T if work["trans_b"] else given["b"]
    b = b if work["packed"] == "none" else layout_of(work).unpack(given["b"], 7, 5)
    result = np.empty((3, 5))
    for i, j in np.ndindex(3, 5):
        value = sum((int(given["a"][i, r]) - int(zero)) * (int(b[r, j]) - int(b_zeros[j])) for r in range(7))
        if work["out_dtype"] != "int32":
            value = value * float(np.float32(rest[0])) * float(given.get("b_scales", np.ones(5))[j])
            value += float(given.get("bias", np.zeros(5))[j])
            value = min(max(value, 0.0), 6.0) if work["activation"] == "relu6" else value
        if work["out_dtype"] in ("uint8", "int8"):
            low = 0 if work["out_dtype"] == "uint8" else -128
            value = min(max(round(value / rest[1]) + rest[2], low), low + 255)
        result[i, j] = value
    return result


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_the_reference_follows_the_definition(fields: dict[str, Any]) -> None:
    work = made(**fields)
    inputs = op_of(work).random_inputs(work, seed=3)
    (result,) = op_of(work).reference(work, *inputs)
    np.testing.assert_allclose(result, by_hand(work, inputs), rtol=1e-12)


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_the_expression_says_the_same(fields: dict[str, Any]) -> None:
    work = made(**fields)
    op = op_of(work)
    inputs = op.random_inputs(work, seed=1)
    result = np.zeros((3, 5), str(work["out_dtype"]))
    compile_module(tensor_program(work), target("native"))["main"](*inputs, *op.scalars(work), result)
    assert np.abs(result - op.reference(work, *inputs)[0]).max() <= op.tolerance(work)


@pytest.mark.parametrize("k", [1, 64, 4096])
def test_the_tolerance_admits_rounding_and_nothing_more(k: int) -> None:
    work = workload("matmul_int8", m=16, n=16, k=k, out_dtype="float32", scales="channel", bias=True)
    op = op_of(work)
    a, b, scales, bias = op.random_inputs(work, seed=1)
    (expected,), allowed = op.reference(work, a, b, scales, bias), op.tolerance(work)
    zero, scale = (np.float32(value) for value in op.scalars(work))
    sums = ((a.astype("int32") - int(zero)) @ b.astype("int32")).astype("float32")
    assert np.abs(sums * scale * scales + bias - expected).max() <= allowed
    off = sums.copy()
    off[0, 0] += 128  # less than most single products
    assert np.abs(off * scale * scales + bias - expected).max() > allowed
    assert np.abs(expected).max() < 3


def test_sums_are_exact_and_counted() -> None:
    assert op_of(made()).tolerance(made()) == 0
    assert op_of(made()).flops(made()) == 2 * 3 * 5 * 7
    assert [spec.dtype for spec in op_of(made()).inputs(made())] == ["uint8", "int8"]


@pytest.mark.parametrize("zero_points, most", [("none", 32_000), ("tensor", 21_000), ("channel", 21_000)])
def test_sums_of_all_allowed_k_fit_int32(zero_points: str, most: int) -> None:
    terms = 2 if zero_points == "none" else 3  # sums of products, and those that zero points take off
    assert terms * most * 255 * 128 < 2**31
    assert workload("matmul_int8", m=1, n=1, k=most, b_zero_points=zero_points)["k"] == most
    with pytest.raises(WorkloadError, match=f"'k' is {most + 1}; expected at most {most}"):
        workload("matmul_int8", m=1, n=1, k=most + 1, b_zero_points=zero_points)


def test_a_packed_b_is_not_transposed() -> None:
    with pytest.raises(WorkloadError, match=r"'trans_b' is .* where b is packed"):
        made(trans_b=True, packed="words")


@pytest.mark.parametrize("field, value", [("scales", "channel"), ("bias", True), ("activation", "relu")])
def test_an_int32_result_has_no_epilogue(field: str, value: object) -> None:
    with pytest.raises(WorkloadError, match=f"'{field}' is .* where out_dtype is int32"):
        made(**{field: value})
