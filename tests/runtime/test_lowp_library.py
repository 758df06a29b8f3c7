"""Integer matrix products through an exported library: each dtype and form, and bad arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tvmops
from tests.libraries import default_record, write_log
from tvmops.errors import CallError, CallTypeError, NotInLibraryError, WorkloadError
from tvmops.library.export import export
from tvmops.machine import this_machine
from tvmops.quantize import quantize
from tvmops.runtime.load import Library
from tvmops.signatures.dtypes import decode, encode
from tvmops.targets import target

M, N, K = 5, 37, 50
INT8_FORMS: dict[str, dict[str, Any]] = {
    "u8 to int32": {},
    "s8 to int32, packed": {"dtype": "int8", "packed": "words"},
    "float32": {"out_dtype": "float32", "scales": "channel", "bias": True},
    "float32 with relu": {"out_dtype": "float32", "activation": "relu"},
    "to uint8": {"out_dtype": "uint8"},
    "zero points": {"b_zero_points": "tensor", "trans_b": True},
    "zero points by channel": {"out_dtype": "float32", "b_zero_points": "channel", "scales": "channel"},
    "to int8": {"out_dtype": "int8", "dtype": "int8"},
}


def int8_work(m: int = M, **fields: Any) -> tvmops.Workload:
    return tvmops.workload("matmul_int8", m=m, n=N, k=K, **fields)


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Library:
    machine = target("native")
    if machine.missing(this_machine()):
        pytest.skip("no target for this machine")
    work = [int8_work(**fields) for fields in INT8_FORMS.values()]
    work += [tvmops.workload("matmul", m=M, n=N, k=K, dtype="bfloat16", packed=p) for p in ("none", "words")]
    work += [
        tvmops.workload("matmul", m=M, n=N, k=K, dtype="bfloat16", **fields)
        for fields in (
            {"trans_b": True, "batch": 2, "shared": "b"},
            {"out_dtype": "float32", "bias": True, "bias_dtype": "float32", "residual": True},
        )
    ]
    work += [
        tvmops.workload(
            "matmul_weight_only", m=M, n=N, k=96, group=32, bias=True, activation="relu", dtype=dtype
        )
        for dtype in ("float32", "bfloat16")
    ]
    work += [
        tvmops.workload(
            "matmul_weight_only", m=M, n=N, k=96, group=32, bits=bits, zero_points=zeros, x_bits=x_bits
        )
        for bits in (4, 8)
        for zeros in (False, True)
        for x_bits in ((8, 24) if bits == 4 and not zeros else (24,))
    ]
    folder = tmp_path_factory.mktemp("lowp")
    log = write_log(folder / "log.jsonl", *(default_record(w, machine) for w in work))
    return tvmops.load(export(work, machine, [log], folder / "library"))


def draw(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("m", [M, 2])  # tuned; answered by a generic kernel
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.filterwarnings("ignore:library")
def test_int32_sums_are_exact(lib: Library, dtype: str, m: int) -> None:
    a, b = draw(0, (m, K), dtype), draw(1, (K, N), "int8")
    zero = 7 if dtype == "uint8" else -100
    expected = (a.astype("int64") - zero) @ b.astype("int64")
    b = b if dtype == "uint8" else lib.pack("matmul_int8", b)
    c = lib.matmul_int8(a, b, a_zero_point=zero)
    assert c.dtype == np.int32
    assert (c == expected).all()
    out = np.empty_like(c)
    assert lib.matmul_int8(a, b, a_zero_point=zero, out=out) is out
    assert (out == expected).all()


def test_scales_and_bias_give_floats(lib: Library) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((M, K)).astype("float32"), rng.standard_normal((K, N)).astype("float32")
    bias = rng.standard_normal(N).astype("float32")
    qx, qw = quantize(x, "uint8"), quantize(w, "int8", axis=1)
    arguments = {"a_zero_point": int(qx.zero_points), "a_scale": float(qx.scales), "b_scale": qw.scales}
    y = lib.matmul_int8(qx.values, qw.values, bias=bias, **arguments)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, qx.dequantized() @ qw.dequantized() + bias, atol=1e-4)
    assert np.abs(y - (x @ w + bias)).max() < 0.3  # what quantisation costs


def test_one_scale_for_all_and_an_activation(lib: Library) -> None:
    a, b = draw(0, (M, K), "uint8"), draw(1, (K, N), "int8")
    y = lib.matmul_int8(a, b, a_scale=0.5, b_scale=0.25, activation="relu")
    np.testing.assert_allclose(y, np.maximum(a.astype("float64") @ b, 0) / 8, rtol=1e-6)


@pytest.mark.parametrize("dtype, out_dtype", [("uint8", "uint8"), ("int8", "int8")])
def test_results_are_quantised_again(lib: Library, dtype: str, out_dtype: str) -> None:
    a, b = draw(0, (M, K), dtype), draw(1, (K, N), "int8")
    limits = np.iinfo(out_dtype)
    y = lib.matmul_int8(a, b, a_scale=0.5, out_dtype=out_dtype, out_scale=256.0, out_zero_point=9)
    assert y.dtype == out_dtype
    exact = np.clip(np.rint(a.astype("float64") @ b / 512) + 9, limits.min, limits.max)
    assert np.abs(y - exact).max() <= 1
    assert {y.min(), y.max()} & {limits.min, limits.max}  # clipping was needed
    assert (y == exact).mean() > 0.95


@pytest.mark.parametrize("m", [M, 2])
@pytest.mark.filterwarnings("ignore:library")
def test_zero_points_of_b_and_a_transposed_b(lib: Library, m: int) -> None:
    a, w = draw(0, (m, K), "uint8"), draw(1, (N, K), "int8")
    expected = (a.astype("int64") - 9) @ (w.astype("int64").T - 5)
    for b, trans_b in ((w, True), (w.T, False)):
        c = lib.matmul_int8(a, b, a_zero_point=9, b_zero_point=5, trans_b=trans_b)
        assert (c == expected).all()
    assert lib.explain("matmul_int8", a, w.T, b_zero_point=5).workload["trans_b"] is True
    # no kernel for this one: b is copied
    zeros, scales = draw(2, (N,), "int8").astype("int32"), np.full(N, 0.5, "float32")
    for _ in range(2):
        y = lib.matmul_int8(a, w, b_scale=scales, b_zero_point=zeros, trans_b=True)
        np.testing.assert_allclose(y, a.astype("float64") @ (w.astype("float64") - zeros[:, None]).T / 2)


def test_torch_tensors_give_torch_tensors(lib: Library) -> None:
    torch = pytest.importorskip("torch")
    a, b = torch.from_numpy(draw(0, (M, K), "uint8")), torch.from_numpy(draw(1, (K, N), "int8"))
    c = lib.matmul_int8(a, b)
    assert c.dtype == torch.int32
    assert torch.equal(c, a.int() @ b.int())


@pytest.mark.parametrize(
    "changes, error, text",
    [
        (
            {"a": np.zeros((M, K), "float32")},
            CallTypeError,
            "'a' is of dtype float32; expected dtype uint8 or int8",
        ),
        ({"b": np.zeros((K, N), "uint8")}, CallTypeError, "'b' is of dtype uint8; expected dtype int8"),
        ({"b": np.zeros((K + 1, N), "int8")}, CallError, f"'b' is of shape .*; expected {K} rows"),
        ({"b": np.zeros(K, "int8")}, CallError, "'b' .* two dimensions"),
        ({"a_zero_point": 256}, CallError, "'a_zero_point' is 256; expected an integer that uint8 can hold"),
        ({"a_zero_point": 0.5}, CallError, "'a_zero_point' is 0.5"),
        ({"a_scale": "big"}, CallTypeError, "'a_scale' is 'big'; expected a number"),
        ({"b_scale": np.ones(N + 1, "float32")}, CallError, "'b_scales' is of shape"),
        ({"b_zero_point": 200}, CallError, "'b_zero_point' is 200; expected an integer that int8 can hold"),
        (
            {"a": np.zeros((1, 32_001), "uint8"), "b": np.zeros((32_001, 1), "int8")},
            WorkloadError,
            "'k' is 32001; expected at most 32000",
        ),
        ({"out_dtype": "int16"}, CallError, "'out_dtype' is 'int16'"),
        ({"out_dtype": "uint8", "out_zero_point": -1}, CallError, "'out_zero_point' is -1"),
        ({"activation": "swoosh", "a_scale": 1.0}, WorkloadError, "'activation' is 'swoosh'"),
        (
            {"activation": "relu"},
            WorkloadError,
            "'activation' is 'relu'; expected none where out_dtype is int32",
        ),
        ({"a": np.zeros((M, 0), "uint8"), "b": np.zeros((0, N), "int8")}, CallError, "at least one row"),
        ({"out_dtype": "float32", "activation": "tanh"}, NotInLibraryError, "no kernel answers"),
    ],
)
def test_bad_arguments_are_named(
    lib: Library, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    given = {"a": np.zeros((M, K), "uint8"), "b": np.zeros((K, N), "int8"), **changes}
    with pytest.raises(error, match=text):
        lib.matmul_int8(**given)


def test_a_weight_packed_for_another_op_is_refused(lib: Library) -> None:
    packed = lib.pack("matmul", np.zeros((K, N), "float32"))
    with pytest.raises(CallError, match="expected a weight packed for matmul_int8"):
        lib.matmul_int8(np.zeros((M, K), "uint8"), packed)
    with pytest.raises(CallTypeError, match="argument 'weight' is of dtype float32"):
        lib.pack("matmul_int8", np.zeros((K, N), "float32"))


def test_the_library_needs_no_compiler(lib: Library) -> None:
    from tests.runtime.test_load import in_child

    code = "import numpy, tvmops\nlib = tvmops.load(sys.argv[1])\n"
    code += f"a, b = numpy.ones(({M}, {K}), 'uint8'), numpy.ones(({K}, {N}), 'int8')\n"
    code += f"assert (lib.matmul_int8(a, b) == {K}).all()\n"
    in_child(code, lib.path)


@pytest.mark.filterwarnings("ignore:library")
def test_bfloat16_as_bits_and_as_torch(lib: Library) -> None:
    rng = np.random.default_rng(3)
    a, b = (encode(rng.standard_normal(s).astype("float32"), "bfloat16") for s in ((M, K), (K, N)))
    exact = decode(a, "bfloat16").astype("float64") @ decode(b, "bfloat16")
    packed = lib.pack("matmul", b)
    assert (packed.dtype, packed.layout) == ("bfloat16", "words")
    for right in (b, packed):
        c = lib.matmul(a, right)
        assert c.dtype == np.uint16
        np.testing.assert_allclose(decode(c, "bfloat16"), exact, rtol=2**-8, atol=1e-4)
    torch = pytest.importorskip("torch")
    ta, tb = (torch.from_numpy(x).view(torch.bfloat16) for x in (a, b))
    for right in (tb, tb.T.contiguous().T, lib.pack("matmul", tb)):
        c = lib.matmul(ta, right)
        assert c.dtype == torch.bfloat16
        np.testing.assert_allclose(c.float().numpy(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.filterwarnings("ignore:library")
def test_bfloat16_in_batches_transposed_and_to_float32(lib: Library) -> None:
    rng = np.random.default_rng(4)
    a, w = (encode(rng.standard_normal(s).astype("float32"), "bfloat16") for s in ((2, K, M), (N, K)))
    exact = decode(a, "bfloat16").astype("float64").swapaxes(1, 2) @ decode(w, "bfloat16").T
    c = lib.matmul(a, w, trans_a=True, trans_b=True)
    np.testing.assert_allclose(decode(c, "bfloat16"), exact, rtol=2**-8, atol=1e-4)
    left, b = np.ascontiguousarray(a[0].T), np.ascontiguousarray(w.T)
    bias, residual = (rng.standard_normal(s).astype("float32") for s in ((N,), (M, N)))
    for _ in range(2):
        y = lib.matmul(left, b, bias, residual=residual, out_dtype="float32")
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, exact[0] + bias + residual, atol=1e-4)
    with pytest.raises(CallError, match="'out_dtype' is float16; expected one of same, float32"):
        lib.matmul(left, b, out_dtype="float16")


@pytest.mark.filterwarnings("ignore:library")
def test_weights_alone_with_an_epilogue(lib: Library) -> None:
    rng = np.random.default_rng(6)
    w, x, bias = (rng.standard_normal(s).astype("float32") for s in ((N, 96), (M, 96), (N,)))
    quantized = quantize(w, "int4", axis=1, group=32)
    packed = lib.pack("matmul_weight_only", quantized)
    for dtype, error in (("float32", 2e-5), ("bfloat16", 0.2)):
        given, more = encode(x, dtype), encode(bias, dtype)
        y = lib.matmul_weight_only(given, packed, bias=more, activation="relu")
        exact = decode(given, dtype).astype("float64") @ quantized.dequantized().T + decode(more, dtype)
        np.testing.assert_allclose(decode(y, dtype), np.maximum(exact, 0), atol=error)
        assert y.dtype == given.dtype
    with pytest.raises(CallError, match="'activation' is swish"):
        lib.matmul_weight_only(x, packed, activation="swish")


def test_dtypes_do_not_mix(lib: Library) -> None:
    a, b = np.zeros((M, K), "uint16"), np.zeros((K, N), "float32")
    with pytest.raises(CallTypeError, match="'b' is of dtype float32; expected dtype bfloat16"):
        lib.matmul(a, b)
    with pytest.raises(CallTypeError, match="expected dtype bfloat16"):
        lib.matmul(a, lib.pack("matmul", b))


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.filterwarnings("ignore:library")
def test_quantised_weights_alone(lib: Library, dtype: str) -> None:
    rng = np.random.default_rng(5)
    w, x = (rng.standard_normal(s).astype("float32") for s in ((N, 96), (M, 96)))
    quantized = quantize(w, dtype, axis=1, group=32)
    packed = lib.pack("matmul_weight_only", quantized)
    expected = x.astype("float64") @ quantized.dequantized().T
    for bits, error in ((24, 2e-5), (8, 0.2)) if dtype == "int4" else ((24, 2e-5),):
        y = lib.matmul_weight_only(x, packed, x_bits=bits)
        np.testing.assert_allclose(y, expected, atol=error)
        assert lib.matmul_weight_only(x, packed, x_bits=bits, out=y) is y


def test_weights_must_be_packed_and_fit(lib: Library) -> None:
    x, w = np.zeros((M, 96), "float32"), np.zeros((N, 64), "float32")
    with pytest.raises(CallTypeError, match="'w' is ndarray; expected what pack"):
        lib.matmul_weight_only(x, w)
    with pytest.raises(CallTypeError, match="'weight' is ndarray"):
        lib.pack("matmul_weight_only", w)
    with pytest.raises(CallError, match="group None; expected shape"):
        lib.pack("matmul_weight_only", quantize(w + 1, axis=1))
    packed = lib.pack("matmul_weight_only", quantize(w + 1, "int4", axis=1, group=32))
    with pytest.raises(CallError, match=r"'w' is of shape .*; expected 96 columns"):
        lib.matmul_weight_only(x, packed)
