from __future__ import annotations

from itertools import product
from math import exp

import numpy as np
import pytest

from tvmops.errors import WorkloadError
from tvmops.ops.attention import Attention
from tvmops.workloads import Workload, workload

ATTENTION = Attention()


def attention(*dims: int, **fields: object) -> Workload:
    names = ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim")
    return workload("attention", **dict(zip(names, dims)), **fields)


@pytest.mark.parametrize(
    "causal, align", [(False, "bottom-right"), (True, "bottom-right"), (True, "top-left")]
)
@pytest.mark.parametrize("mask", ["none", "bool", "float32"])
def test_the_reference_is_the_definition_in_float64(causal: bool, align: str, mask: str) -> None:
    w = attention(2, 4, 2, 3, 5, 7, causal=causal, align=align, mask=mask)
    q, k, v, *masks = ATTENTION.random_inputs(w, seed=1)
    (scale,) = ATTENTION.scalars(w)
    expected = np.zeros(q.shape)
    values = v.astype(np.float64)
    for b, h, i in product(range(2), range(4), range(3)):
        weights = {}
        for j in range(5):
            score = scale * sum(float(x) * float(y) for x, y in zip(q[b, h, i], k[b, h // 2, j]))
            score += float(masks[0][0, 0, i, j]) if mask == "float32" else 0
            hidden = mask == "bool" and not masks[0][0, 0, i, j]
            hidden |= causal and j > i + (2 if align == "bottom-right" else 0)
            weights[j] = 0.0 if hidden else exp(score)
        total = sum(weights.values())
        for j, weight in weights.items():
            expected[b, h, i] += weight / (total or 1) * values[b, h // 2, j]
    (result,) = ATTENTION.reference(w, q, k, v, *masks)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


def test_a_query_that_sees_no_key_has_the_result_0() -> None:
    w = attention(1, 1, 1, 5, 3, 4, causal=True)
    (result,) = ATTENTION.reference(w, *ATTENTION.random_inputs(w, seed=1))
    assert (result[0, 0, :2] == 0).all()
    assert (result[0, 0, 2:] != 0).all()


def test_heads_may_lie_within_positions() -> None:
    w = attention(2, 4, 2, 3, 5, 7, causal=True)
    *qkv, mask = ATTENTION.random_inputs(w.replace(mask="bool"), seed=1)
    turned = [array.swapaxes(1, 2) for array in qkv]
    within = w.replace(layout="blhd")
    assert [spec.shape for spec in ATTENTION.inputs(within)] == [array.shape for array in turned]
    assert ATTENTION.outputs(within) == ATTENTION.outputs(w)
    expected = ATTENTION.reference(w.replace(mask="bool"), *qkv, mask)
    found = ATTENTION.reference(within.replace(mask="bool"), *turned, mask)
    np.testing.assert_array_equal(found, expected)


def test_lengths_end_sequences_and_align_causal_queries() -> None:
    w = attention(3, 4, 2, 3, 5, 7, causal=True, lengths=True)
    q, k, v, lengths = ATTENTION.random_inputs(w, seed=1)
    assert lengths.dtype == np.int32 and ((lengths >= 0) & (lengths <= 5)).all()
    lengths[:] = 5, 4, 0
    found = ATTENTION.reference(w, q, k, v, lengths)[0]
    for b, length in enumerate((5, 4)):
        alone = attention(1, 4, 2, 3, length, 7, causal=True)
        (expected,) = ATTENTION.reference(
            alone, q[b : b + 1], k[b : b + 1, :, :length], v[b : b + 1, :, :length]
        )
        np.testing.assert_array_equal(found[b], expected[0])
    assert (found[2] == 0).all()


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_pages_are_looked_up(layout: str) -> None:
    w = attention(2, 4, 2, 1, 7, 8, lengths=True, pages=9, page_size=3, layout=layout)
    q, k, v, lengths, table = ATTENTION.random_inputs(w, seed=1)
    assert table.shape == (2, 3) and len(np.unique(table)) == 6
    lengths[:] = 7, 4
    rows = 2 if layout == "bhld" else 1  # the axis of a page's rows

    def in_order(pool: np.ndarray) -> np.ndarray:
        return np.stack([np.concatenate(list(pool[pages]), axis=rows - 1) for pages in table])

    plain = attention(2, 4, 2, 1, 9, 8, lengths=True, layout=layout)
    expected = ATTENTION.reference(plain, q, in_order(k), in_order(v), lengths)
    np.testing.assert_array_equal(ATTENTION.reference(w, q, k, v, lengths, table), expected)


@pytest.mark.parametrize("align", ["bottom-right", "top-left"])
def test_packed_sequences_are_by_themselves(align: str) -> None:
    w = attention(4, 4, 2, 6, 9, 7, causal=True, align=align, layout="thd", total_q=14, total_k=20)
    q, k, v, *_ = ATTENTION.random_inputs(w, seed=1)
    assert q.shape == (14, 4, 7) and k.shape == v.shape == (20, 2, 7)
    q_ends, k_ends = np.array([0, 6, 6, 11, 14]), np.array([0, 3, 11, 11, 20])
    (found,) = ATTENTION.reference(w, q, k, v, q_ends, k_ends)
    assert found.shape == q.shape
    for rows, keys in (((0, 6), (0, 3)), ((11, 14), (11, 20))):
        alone = attention(1, 4, 2, rows[1] - rows[0], keys[1] - keys[0], 7, causal=True, align=align)
        arrays = [x[slice(*part)].swapaxes(0, 1)[None] for x, part in ((q, rows), (k, keys), (v, keys))]
        (expected,) = ATTENTION.reference(alone, *arrays)
        np.testing.assert_array_equal(found[slice(*rows)], expected[0].swapaxes(0, 1))
    assert (found[6:11] == 0).all()  # there are no keys


@pytest.mark.parametrize("total_q", [1, 7, 12, 23, 24])
def test_packed_sequences_are_drawn_to_fit(total_q: int) -> None:
    for seed in range(5):
        w = attention(4, 1, 1, 6, 9, 8, layout="thd", total_q=total_q, total_k=20)
        *_, q_ends, k_ends = ATTENTION.random_inputs(w, seed=seed)
        for ends, longest, total in ((q_ends, 6, total_q), (k_ends, 9, 20)):
            assert ends.dtype == np.int32 and ends[0] == 0 and ends[-1] == total
            assert (np.diff(ends) >= 0).all() and np.diff(ends).max() <= longest
    w = attention(4, 1, 1, 9, 9, 8, layout="thd", total_q=20, total_k=20)
    *_, q_ends, k_ends = ATTENTION.random_inputs(w, seed=1)
    assert (q_ends == k_ends).all()  # texts that look at themselves


def test_work_is_counted() -> None:
    assert ATTENTION.flops(attention(2, 4, 2, 3, 5, 7)) == 4 * 2 * 4 * 3 * 5 * 7
    assert ATTENTION.flops(attention(1, 1, 1, 3, 5, 1, causal=True)) == 4 * (3 + 4 + 5)
    assert ATTENTION.flops(attention(1, 1, 1, 3, 5, 1, causal=True, align="top-left")) == 4 * (1 + 2 + 3)
    assert ATTENTION.flops(attention(1, 1, 1, 5, 3, 1, causal=True)) == 4 * (0 + 0 + 1 + 2 + 3)
    packed = {"layout": "thd", "total_q": 6, "total_k": 10, "causal": True}
    assert ATTENTION.flops(attention(2, 1, 1, 5, 9, 1, **packed)) == 2 * 4 * (3 + 4 + 5)


@pytest.mark.parametrize("dims, shape", [("k", (1, 1, 1, 5)), ("bqk", (2, 1, 3, 5)), ("bhqk", (2, 4, 3, 5))])
def test_a_mask_has_the_dimensions_that_are_named(dims: str, shape: tuple[int, ...]) -> None:
    w = attention(2, 4, 2, 3, 5, 7, mask="bool", mask_dims=dims)
    assert ATTENTION.inputs(w)[3].shape == shape
    assert set(np.unique(ATTENTION.random_inputs(w, seed=1)[3])) <= {0, 1}


@pytest.mark.parametrize(
    "fields, field",
    [
        ({"heads": 3, "kv_heads": 2}, "kv_heads"),
        ({"align": "top-left"}, "align"),
        ({"mask_dims": "bk"}, "mask_dims"),
        ({"mask": "bool", "q_len": 1}, "mask_dims"),
        ({"lengths": True, "pages": 4}, "page_size"),
        ({"pages": 4, "page_size": 16}, "lengths"),
        ({"total_q": 4}, "total_q"),
        ({"layout": "thd", "total_q": 4}, "total_k"),
        ({"layout": "thd", "total_q": 7, "total_k": 5}, "total_q"),  # more than twice 3
        ({"layout": "thd", "total_q": 6, "total_k": 5, "lengths": True}, "lengths"),
        ({"layout": "thd", "total_q": 6, "total_k": 5, "mask": "bool"}, "mask"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused(fields: dict[str, object], field: str) -> None:
    dims = {"batch": 2, "heads": 4, "kv_heads": 2, "q_len": 3, "kv_len": 5, "head_dim": 8}
    with pytest.raises(WorkloadError, match=f"attention: field '{field}' is "):
        workload("attention", **{**dims, **fields})


@pytest.mark.parametrize("kv_len", [16, 1024])
def test_the_tolerance_admits_rounding_and_nothing_more(kv_len: int) -> None:
    """Float32 passes; one key left out, or inputs rounded to bfloat16, do not."""
    w = attention(1, 1, 1, 16, kv_len, 64)
    q, k, v = ATTENTION.random_inputs(w, seed=1)
    (expected,), allowed = ATTENTION.reference(w, q, k, v), ATTENTION.tolerance(w)

    def single(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        weights = np.exp(q[0, 0] @ k[0, 0].T * np.float32(0.125))
        return weights @ v[0, 0] / weights.sum(-1, keepdims=True)

    assert np.abs(single(q, k, v) - expected).max() < allowed / 4
    assert np.abs(single(q, k[:, :, 1:], v[:, :, 1:]) - expected).max() > allowed
    coarse = (k.view("uint32") & 0xFFFF0000).view("float32")
    assert np.abs(single(q, coarse, v) - expected).max() > allowed
