from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tvmops
from tvmops.errors import UnknownOpError, WorkloadError, WorkloadSyntaxError
from tvmops.signatures import SIGNATURES
from tvmops.workloads import Workload, workload

SIZE = st.one_of(st.integers(1, 2**40), st.just("*"))


@given(m=SIZE, n=SIZE, k=SIZE)
def test_text_form_goes_both_ways(m: object, n: object, k: object) -> None:
    made = workload("matmul", m=m, n=n, k=k, dtype="float32")
    again = Workload.parse(str(made))
    assert again == made
    assert hash(again) == hash(made)
    assert str(again) == str(made)


def test_text_is_canonical_whatever_the_order_of_fields() -> None:
    texts = ["matmul k=3 m=1 n=2", "  matmul  dtype=float32 n=2 k=3 m=1 ", "matmul m=01 n=2 k=3"]
    assert {str(Workload.parse(text)) for text in texts} == {"matmul m=1 n=2 k=3 dtype=float32"}
    assert len({Workload.parse(text) for text in texts}) == 1


def test_the_public_face_is_the_same_function() -> None:
    assert tvmops.workload is workload
    assert tvmops.Workload is Workload


def test_fields_are_read_by_name() -> None:
    made = workload("matmul", m=1, n=2, k=3)
    assert (made["m"], made["dtype"]) == (1, "float32")
    assert made.dims("k", "m") == (3, 1)
    with pytest.raises(KeyError):
        made["no such field"]


def test_generic_frees_sizes_and_keeps_the_dtype() -> None:
    made = workload("matmul", m=1, n=2, k=3)
    assert not made.is_generic
    assert str(made.generic()) == "matmul m=* n=* k=* dtype=float32"
    assert made.generic().is_generic
    assert made.generic().generic() == made.generic()
    assert workload("matmul", m="*", n=2, k=3).is_generic
    batched = workload("matmul", m=1, n=2, k=3, batch=4, trans_b=True)
    assert str(batched.generic()) == "matmul m=* n=* k=* dtype=float32 batch=* trans_b=true"


def test_an_unknown_size_is_no_number() -> None:
    with pytest.raises(WorkloadError, match=r"'n' is '\*'; expected a known size"):
        workload("matmul", m=1, n="*", k=3).dims("m", "n")


def test_workloads_travel_to_workers() -> None:
    made = workload("matmul", m=1, n=2, k=3)
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    "fields, field, value",
    [
        ({"m": 0, "n": 2, "k": 3}, "m", "0"),
        ({"m": -1, "n": 2, "k": 3}, "m", "-1"),
        ({"m": 1, "n": 2.0, "k": 3}, "n", "2.0"),
        ({"m": 1, "n": True, "k": 3}, "n", "True"),
        ({"m": 1, "n": "2x", "k": 3}, "n", "'2x'"),
        ({"m": 1, "n": "-2", "k": 3}, "n", "'-2'"),
        ({"m": 1, "n": "²", "k": 3}, "n", "'²'"),
        ({"m": 1, "n": 2}, "k", "'missing'"),
        ({"m": 1, "n": 2, "k": None}, "k", "'missing'"),
        ({"m": 1, "n": 2, "k": 3, "dtype": "float99"}, "dtype", "'float99'"),
        ({"m": 1, "n": 2, "k": 3, "h": 4}, "h", "4"),
    ],
)
def test_a_bad_field_is_named_with_its_value(fields: dict[str, object], field: str, value: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        workload("matmul", **fields)
    text = str(caught.value)
    assert text.startswith(f"matmul: field '{field}' is {value}; expected ")


def test_a_field_may_not_be_called_op() -> None:
    with pytest.raises(WorkloadError, match="field 'op' is 'x'"):
        Workload.parse("matmul m=1 n=2 k=3 op=x")


def test_an_unknown_op_lists_the_known_ones() -> None:
    with pytest.raises(UnknownOpError) as caught:
        workload("matmull", m=1)
    assert "'matmull'" in str(caught.value)
    for op in SIGNATURES:
        assert op in str(caught.value)


@pytest.mark.parametrize(
    "text, what",
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("matmul m", "'m' is no name=value pair"),
        ("matmul m=", "'m=' is no name=value pair"),
        ("matmul =3", "'=3' is no name=value pair"),
        ("matmul m=1 m=2", "field 'm' is given twice"),
    ],
)
def test_bad_text_says_what_is_bad(text: str, what: str) -> None:
    with pytest.raises(WorkloadSyntaxError) as caught:
        Workload.parse(text)
    assert what in str(caught.value)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_workload_or_a_named_error(text: str) -> None:
    try:
        made = Workload.parse(text)
    except (UnknownOpError, WorkloadError, WorkloadSyntaxError):
        return
    assert Workload.parse(str(made)) == made


@pytest.mark.parametrize("op", SIGNATURES)
def test_every_op_states_its_fields_once(op: str) -> None:
    names = [field.name for field in SIGNATURES[op].fields]
    assert len(names) == len(set(names))
    for field in SIGNATURES[op].fields:
        assert field.default is None or field.kind.parse(field.default) == field.default
