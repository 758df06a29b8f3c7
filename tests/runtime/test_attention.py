"""Attention through an exported library: every argument, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import tvmops
from tests.libraries import default_record, write_log
from tvmops.errors import CallError, CallTypeError, NoTemplateError, NotInLibraryError
from tvmops.ops import op_of
from tvmops.runtime.calls.attention import arguments, call
from tvmops.schedules import templates_for
from tvmops.signatures.dtypes import decode
from tvmops.workloads import Workload

PREFILL = "attention batch=2 heads=4 kv_heads=2 q_len=20 kv_len=33 head_dim=16"
DECODE = "attention batch=2 heads=4 kv_heads=2 q_len=3 kv_len=33 head_dim=16"
FLOAT_MASK = f"{PREFILL} causal=true align=top-left mask=float32 mask_dims=hqk"
PADDING = f"{DECODE} causal=true mask=bool mask_dims=bk"
WITHIN = f"{PREFILL} causal=true layout=blhd"
TUNED = [PREFILL, DECODE, FLOAT_MASK, PADDING]
NARROW = [f"{text} dtype=bfloat16" for text in TUNED]


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> tvmops.Library:
    folder = tmp_path_factory.mktemp("exported")
    machine = tvmops.target("native")
    work = [Workload.parse(text) for text in (*TUNED, *NARROW, WITHIN)]
    log = write_log(folder / "log.jsonl", *(default_record(w, machine) for w in work))
    return tvmops.load(tvmops.export(work, machine, [log], folder / "library"))


def drawn(text: str) -> tuple[list[Any], Any, float]:
    """Return inputs of a workload, their float64 result, and the error allowed."""
    work = Workload.parse(text)
    op = op_of(work)
    inputs = op.random_inputs(work, seed=1)
    values = [decode(array, spec.dtype) for array, spec in zip(inputs, op.inputs(work))]
    return inputs, op.reference(work, *values)[0], op.tolerance(work)


@pytest.mark.parametrize("text", TUNED)
def test_each_form_is_answered_by_its_kernel(lib: tvmops.Library, text: str) -> None:
    (q, k, v, *masks), expected, allowed = drawn(text)
    work = Workload.parse(text)
    mask = masks[0].astype(bool) if work["mask"] == "bool" else masks[0] if masks else None
    arguments = {"causal": bool(work["causal"]), "align": str(work["align"]), "mask": mask}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = lib.attention(q, k, v, **arguments)  # type: ignore[arg-type]
        out = np.empty_like(q)
        assert lib.attention(q, k, v, **arguments, out=out) is out  # type: ignore[arg-type]
    assert np.abs(result - expected).max() <= allowed
    assert np.array_equal(out, result)


def test_lengths_and_pages_make_a_workload() -> None:
    q = np.zeros((2, 4, 1, 16), np.float32)
    k = np.zeros((2, 2, 33, 16), np.float32)
    pool = np.zeros((9, 2, 8, 16), np.float32)
    beside = np.zeros((9, 8, 2, 16), np.float32).swapaxes(1, 2)
    lengths, table = np.array([3, 20], np.int32), np.zeros((2, 4), np.int32)
    dims = "attention batch=2 heads=4 kv_heads=2 q_len=1"
    plain = call(q, k, k, lengths=lengths)
    assert str(plain.workload) == f"{dims} kv_len=33 head_dim=16 lengths=true dtype=float32"
    assert np.shares_memory(plain.inputs[3], lengths)
    paged = call(q, pool, pool, lengths=lengths, block_table=table)
    pages = "lengths=true pages=9 page_size=8 dtype=float32"
    assert str(paged.workload) == f"{dims} kv_len=32 head_dim=16 {pages}"
    assert np.shares_memory(paged.inputs[4], table)
    turned = call(q, beside, beside, lengths=lengths, block_table=table)
    assert str(turned.workload) == f"{dims} kv_len=32 head_dim=16 layout=blhd {pages}"
    assert [array.shape for array in turned.inputs[:2]] == [(2, 1, 4, 16), (9, 8, 2, 16)]
    assert turned.otherwise is None  # a pool is not copied
    given = arguments(turned.workload, turned.inputs)
    assert given["k"].shape == pool.shape and np.shares_memory(given["block_table"], table)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"lengths": None}, CallError, "argument 'lengths' is None"),
        ({"lengths": np.zeros(3, np.int32)}, CallError, "argument 'lengths' is of shape"),
        ({"lengths": np.zeros(2, np.float32)}, CallTypeError, "argument 'lengths' is of dtype float32"),
        ({"block_table": np.zeros((3, 4), np.int32)}, CallError, "argument 'block_table' is of shape"),
        ({"block_table": np.zeros(4, np.int32)}, CallError, "argument 'block_table' is of shape"),
        ({"v": np.zeros((8, 2, 8, 16), np.float32)}, CallError, "argument 'v' is of shape"),
    ],
)
def test_caches_that_do_not_fit_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    q, pool = np.zeros((2, 4, 1, 16), np.float32), np.zeros((9, 2, 8, 16), np.float32)
    cache = {"lengths": np.zeros(2, np.int32), "block_table": np.zeros((2, 4), np.int32)}
    with pytest.raises(error, match=message):
        call(**{"q": q, "k": pool, "v": pool, **cache, **changes})


def packed(**changes: Any) -> dict[str, Any]:
    """Return the arguments of a call on three sequences of 20 queries and 33 keys in all."""
    arrays = {
        "q": np.zeros((20, 4, 16), np.float32),
        **dict.fromkeys("kv", np.zeros((33, 2, 16), np.float32)),
    }
    ends = {
        "cu_seqlens_q": np.array([0, 5, 5, 20], np.int32),
        "cu_seqlens_k": np.array([0, 9, 10, 33], np.int32),
    }
    return {**arrays, **ends, "max_seqlen_q": 15, "max_seqlen_k": 23, **changes}


def test_packed_sequences_make_a_workload() -> None:
    given = packed(causal=True)
    made = call(**given)
    assert str(made.workload) == (
        "attention batch=3 heads=4 kv_heads=2 q_len=15 kv_len=23 head_dim=16 causal=true layout=thd "
        "total_q=20 total_k=33 dtype=float32"
    )
    assert made.outputs[0].shape == (20, 4, 16) and made.shapes == ((20, 4, 16),)
    assert np.shares_memory(made.inputs[4], given["cu_seqlens_k"])
    again = call(**arguments(made.workload, made.inputs))
    assert again.workload == made.workload
    loose = call(**packed(max_seqlen_q=4096, max_seqlen_k=1)).workload
    assert loose.dims("q_len", "kv_len") == (20, 11)  # as long as all, and as the mean
    assert call(**packed(q=np.zeros((0, 4, 16), np.float32))).is_empty


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"cu_seqlens_k": None}, CallError, "argument 'cu_seqlens_k' is None; expected given"),
        (
            {"block_table": np.zeros((3, 4), np.int32)},
            CallError,
            "'cu_seqlens_k' is given; expected None beside",
        ),
        ({"max_seqlen_q": None}, CallError, "argument 'max_seqlen_q' is None"),
        ({"max_seqlen_q": np.int32(3)}, CallTypeError, "argument 'max_seqlen_q' is "),
        ({"max_seqlen_k": -1}, CallTypeError, "argument 'max_seqlen_k' is -1"),
        ({"cu_seqlens_q": np.zeros(1, np.int32)}, CallError, "argument 'cu_seqlens_q' is of 1; expected at"),
        ({"cu_seqlens_k": np.zeros(3, np.int32)}, CallError, "argument 'cu_seqlens_k' is of shape"),
        ({"cu_seqlens_k": np.zeros(4, np.float32)}, CallTypeError, "argument 'cu_seqlens_k' is of dtype"),
        ({"q": np.zeros((1, 4, 20, 16), np.float32)}, CallError, "argument 'q' is of shape"),
        ({"v": np.zeros((20, 2, 16), np.float32)}, CallError, "argument 'v' is of shape"),
        (
            {"k": np.zeros((33, 3, 16), np.float32), "v": np.zeros((33, 3, 16), np.float32)},
            CallError,
            "divides the 4",
        ),
        ({"mask": np.zeros((20, 33), np.float32)}, CallError, "argument 'mask' is given; expected None"),
        ({"lengths": np.zeros(3, np.int32)}, CallError, "argument 'lengths' is given"),
    ],
)
def test_packed_sequences_that_do_not_fit_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(**packed(**changes))


def test_packed_queries_may_read_pages() -> None:
    pool = np.zeros((9, 8, 2, 16), np.float32)  # page, row, head
    cache = {"lengths": np.zeros(3, np.int32), "block_table": np.zeros((3, 5), np.int32)}
    given = packed(
        k=pool.swapaxes(1, 2), v=pool.swapaxes(1, 2), cu_seqlens_k=None, max_seqlen_k=None, **cache
    )
    made = call(**given)
    assert str(made.workload) == (
        "attention batch=3 heads=4 kv_heads=2 q_len=15 kv_len=40 head_dim=16 layout=thd lengths=true "
        "pages=9 page_size=8 total_q=20 dtype=float32"
    )
    assert [array.shape for array in made.inputs[1:3]] == [pool.shape] * 2
    assert np.shares_memory(made.inputs[1], pool) and np.shares_memory(made.inputs[5], cache["block_table"])
    assert call(**arguments(made.workload, made.inputs)).workload == made.workload
    heads_first = np.zeros((9, 2, 8, 16), np.float32)
    with pytest.raises(CallError, match="argument 'v' is of other strides; expected a view of dense"):
        call(**{**given, "v": heads_first})
    with pytest.raises(CallError, match="argument 'lengths' is None; expected given beside"):
        call(**{**given, "lengths": None})


def test_a_library_for_cpus_has_nothing_for_packed_sequences(lib: tvmops.Library) -> None:
    with pytest.raises(NotInLibraryError, match="layout=thd"):
        lib.attention(**packed())


@pytest.mark.parametrize("fields", ["lengths=true", "layout=thd total_q=4 total_k=40"])
def test_no_template_for_cpus_takes_sequences_of_unequal_lengths(fields: str) -> None:
    work = Workload.parse(f"{DECODE} {fields}")
    with pytest.raises(NoTemplateError, match=fields):
        templates_for(work, tvmops.target("znver4"))


def test_a_mask_may_have_fewer_dimensions(lib: tvmops.Library) -> None:
    (q, k, v, mask), expected, allowed = drawn(FLOAT_MASK)
    result = lib.attention(q, k, v, mask=mask[0], causal=True, align="top-left")
    assert np.abs(result - expected).max() <= allowed


def test_a_mask_of_bytes_is_one_of_bools(lib: tvmops.Library) -> None:
    (q, k, v, mask), expected, allowed = drawn(PADDING)
    assert mask.dtype == np.uint8
    assert np.abs(lib.attention(q, k, v, mask=mask, causal=True) - expected).max() <= allowed


def test_the_scale_is_one_over_the_root_of_head_dim_or_what_is_given(lib: tvmops.Library) -> None:
    (q, k, v), _, _ = drawn(PREFILL)
    assert np.array_equal(lib.attention(q, k, v, scale=0.25), lib.attention(q, k, v))
    mean = np.repeat(v.mean(axis=2, keepdims=True), 2, axis=1)
    np.testing.assert_allclose(lib.attention(q, k, v, scale=0.0), np.broadcast_to(mean, q.shape), atol=1e-6)


def test_other_shapes_are_answered_by_generic_kernels(lib: tvmops.Library) -> None:
    for q_len, template in ((1, "cpu.attention_decode"), (9, "cpu.attention@")):
        text = f"attention batch=1 heads=6 kv_heads=3 q_len={q_len} kv_len=70 head_dim=16"
        (q, k, v), expected, allowed = drawn(text)
        with pytest.warns(UserWarning, match="a generic kernel answers"):
            assert np.abs(lib.attention(q, k, v) - expected).max() <= allowed
        explained = lib.explain("attention", q, k, v)
        assert explained.tier == "generic"
        assert explained.kernel.template.startswith(template)


def test_heads_that_lie_between_positions_are_read_rightly(lib: tvmops.Library) -> None:
    """(batch, length, heads, head_dim) seen as (batch, heads, length, head_dim)."""
    (q, k, v), expected, allowed = drawn(PREFILL)
    strided = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]
    assert not strided[0].flags.c_contiguous
    assert np.abs(lib.attention(*strided) - expected).max() <= allowed
    assert lib.explain("attention", *strided).workload["layout"] == "bhld"  # of copies


@pytest.mark.parametrize("turn", [1, 2])
def test_heads_that_lie_between_positions_are_read_in_place(lib: tvmops.Library, turn: int) -> None:
    torch = pytest.importorskip("torch")
    inputs, expected, allowed = drawn(WITHIN)
    views = [array.swapaxes(1, 2) for array in inputs]
    assert str(lib.explain("attention", *views, causal=True).workload) == str(Workload.parse(WITHIN))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = lib.attention(*views, causal=True)
        tensors = lib.attention(*(torch.from_numpy(x).transpose(1, 2) for x in inputs), causal=True)
    assert np.abs(result - expected).max() <= allowed
    assert np.array_equal(tensors.numpy(), result)


def test_torch_tensors_come_and_go(lib: tvmops.Library) -> None:
    torch = pytest.importorskip("torch")
    (q, k, v, mask), expected, allowed = drawn(PADDING)
    tensors = [torch.from_numpy(each) for each in (q, k, v)]
    result = lib.attention(*tensors, mask=torch.from_numpy(mask).bool(), causal=True)
    assert isinstance(result, torch.Tensor)
    assert np.abs(result.numpy() - expected).max() <= allowed


@pytest.mark.parametrize("text", NARROW)
def test_bfloat16_comes_as_torch_tensors_or_bits(lib: tvmops.Library, text: str) -> None:
    torch = pytest.importorskip("torch")
    work = Workload.parse(text)
    inputs, expected, allowed = drawn(text)
    *qkv, mask = inputs if len(inputs) == 4 else (*inputs, None)
    causal, align = bool(work["causal"]), str(work["align"])
    tensors = [torch.from_numpy(array).view(torch.bfloat16) for array in qkv]
    if work["mask"] == "float32":
        masks = mask, torch.from_numpy(mask).bfloat16()
        allowed += 2**-7  # of a mask that was rounded
    else:
        masks = mask, None if mask is None else torch.from_numpy(mask).bool()
    result = lib.attention(*tensors, causal, align=align, mask=masks[1])
    assert result.dtype == torch.bfloat16
    assert np.abs(result.float().numpy() - expected).max() <= allowed
    bits = lib.attention(*qkv, causal, align=align, mask=masks[0])
    assert bits.dtype == np.uint16
    assert np.abs(decode(bits, "bfloat16") - expected).max() <= allowed


def test_no_keys_and_no_queries(lib: tvmops.Library) -> None:
    (q, k, v), _, _ = drawn(PREFILL)
    assert (lib.attention(q, k[:, :, :0], v[:, :, :0]) == 0).all()
    assert lib.attention(q[:, :, :0], k, v).shape == (2, 4, 0, 16)


@pytest.mark.parametrize(
    "changes, argument",
    [
        ({"q": np.zeros((4, 20, 16), "float32")}, "q"),
        ({"k": np.zeros((2, 2, 33, 17), "float32")}, "k"),
        ({"k": np.zeros((1, 2, 33, 16), "float32")}, "k"),
        ({"k": np.zeros((2, 3, 33, 16), "float32"), "v": np.zeros((2, 3, 33, 16), "float32")}, "k"),
        ({"v": np.zeros((2, 2, 32, 16), "float32")}, "v"),
        ({"v": np.zeros((2, 2, 33, 16), "float64")}, "v"),
        ({"mask": np.zeros((20, 32), "bool")}, "mask"),
        ({"mask": np.zeros((20, 33), "int32")}, "mask"),
        ({"mask": np.zeros((1, 1, 1, 20, 33), "bool")}, "mask"),
        ({"align": "left"}, "align"),
        ({"scale": "big"}, "scale"),
        ({"out": np.zeros((2, 4, 20, 17), "float32")}, "out"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    lib: tvmops.Library, changes: dict[str, Any], argument: str
) -> None:
    (q, k, v), _, _ = drawn(PREFILL)
    with pytest.raises((CallError, CallTypeError), match=f"attention: argument '{argument}' is "):
        lib.attention(**{"q": q, "k": k, "v": v, **changes})
