"""Arrays in, arrays out: handled, copied or refused, never misread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

import tvmops
from tvmops.errors import CallError, CallTypeError
from tvmops.runtime.known import KnownCalls

Array = NDArray[Any]
RNG = np.random.default_rng(0)


def random(*shape: int) -> Array:
    return RNG.random(shape, dtype="float32") - np.float32(0.5)


class Exporter:
    """Speaks DLPack and nothing else."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array: Array) -> Array:
    moved = np.frombuffer(bytearray(array.nbytes + 1), "uint8")[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


def widened(array: Array) -> Array:
    """The same numbers, every second element of wider rows."""
    wide = np.full((array.shape[0], 2 * array.shape[1]), np.nan, array.dtype)
    wide[:, ::2] = array
    return wide[:, ::2]


def with_odd_strides(array: Array) -> Array:
    """A dimension of one element may have any stride: NumPy calls the array dense all the same."""
    memory = np.ascontiguousarray(array).copy().ravel()
    strides = [76 if extent == 1 else stride for extent, stride in zip(array.shape, array.strides)]
    return as_strided(memory, array.shape, strides)


FORMS = {
    "dense": lambda array: array,
    "transposed": lambda array: np.asfortranarray(array),
    "reversed": lambda array: array[::-1, ::-1].copy()[::-1, ::-1],
    "strided": widened,
    "offset": lambda array: np.vstack([array[:1], array])[1:],
    "unaligned": unaligned,
    "read-only": read_only,
    "read-only and strided": lambda array: read_only(widened(array)),
    "big-endian": lambda array: array.astype(">f4"),
    "matrix": lambda array: array.view(np.matrix),
    "memory-mapped": lambda array: np.frombuffer(array.tobytes(), "float32").reshape(array.shape),
    "DLPack": Exporter,
    "DLPack of a transposed array": lambda array: Exporter(np.asfortranarray(array)),
    "DLPack of a read-only array": lambda array: Exporter(read_only(array)),
}


def check(lib: tvmops.Library, a: Any, b: Any, expected: Array) -> None:
    """Call three ways: a new output, a given one, and a given one once the shape is known."""
    made = lib.matmul(a, b)
    assert type(made) is np.ndarray
    np.testing.assert_allclose(made, expected, atol=1e-5)
    for _ in range(2):
        out = np.full(expected.shape, np.nan, "float32")
        assert lib.matmul(a, b, out=out) is out
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 8), (17, 31, 61), (9, 10, 11)], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:library", "ignore:the matrix subclass")
def test_every_form_of_input_is_read_right(
    lib: tvmops.Library, form: str, shape: tuple[int, int, int]
) -> None:
    m, n, k = shape
    a, b = random(m, k), random(k, n)
    expected = a.astype("float64") @ b.astype("float64")
    lib.matmul(a, b)  # from here on the shape is known
    change = FORMS[form]
    check(lib, change(a), b, expected)
    check(lib, a, change(b), expected)
    check(lib, change(a), change(b), expected)


def test_a_broadcast_input_is_read_right(lib: tvmops.Library) -> None:
    column, b = random(8, 1), random(8, 8)
    a = np.broadcast_to(column, (8, 8))
    check(lib, a, b, a.astype("float64") @ b)


@pytest.mark.filterwarnings("ignore:library")
def test_a_dimension_of_one_may_have_any_stride(lib: tvmops.Library) -> None:
    for m, n, k in [(1, 64, 32), (8, 1, 8), (8, 8, 1)]:
        a, b = random(m, k), random(k, n)
        expected = a.astype("float64") @ b
        check(lib, with_odd_strides(a), with_odd_strides(b), expected)
        out = with_odd_strides(np.full((m, n), np.nan, "float32"))
        np.testing.assert_allclose(lib.matmul(a, b, out=out), expected, atol=1e-5)


@pytest.mark.parametrize("m, n, k", [(0, 8, 8), (8, 0, 8), (8, 8, 0), (0, 0, 0), (0, 8, 0)])
def test_empty_arrays(lib: tvmops.Library, m: int, n: int, k: int) -> None:
    """No sum is zero, and no rows are no rows; no kernel is called."""
    check(lib, random(m, k), random(k, n), np.zeros((m, n)))
    assert lib.misses() == {}


@pytest.mark.parametrize("argument", ["a", "b"])
@pytest.mark.parametrize(
    "bad, value, expected",
    [
        ([[1.0]], "list", "a NumPy array"),
        (None, "NoneType", "a NumPy array"),
        (np.float32(1), "float32", "a NumPy array"),
        (np.zeros((8, 8)), "of dtype float64", "dtype float32"),
        (np.zeros((8, 8), "int32"), "of dtype int32", "dtype float32"),
        (np.zeros((8, 8), "float16"), "of dtype float16", "dtype float32"),
        (np.zeros((8, 8), "complex64"), "of dtype complex64", "dtype float32"),
        (np.zeros((8, 8), object), "of dtype object", "dtype float32"),
        (Exporter(np.zeros((8, 8))), "of dtype float64", "dtype float32"),
    ],
)
def test_what_is_no_such_array_is_refused(
    lib: tvmops.Library, argument: str, bad: Any, value: str, expected: str
) -> None:
    good = random(8, 8)
    lib.matmul(good, good)
    arguments = {"a": good, "b": good, argument: bad}
    for out in (None, np.full((8, 8), 7, "float32")):
        with pytest.raises(CallTypeError) as caught:
            lib.matmul(**arguments, out=out)
        assert f"matmul: argument '{argument}' is {value}; expected {expected}" in str(caught.value)
        assert out is None or (out == 7).all()


@pytest.mark.parametrize("argument", ["a", "b"])
@pytest.mark.parametrize("shape", [(), (8,)])
def test_another_rank_is_refused(lib: tvmops.Library, argument: str, shape: tuple[int, ...]) -> None:
    good = random(8, 8)
    with pytest.raises(CallError) as caught:
        lib.matmul(**{"a": good, "b": good, argument: np.zeros(shape, "float32")})
    assert f"argument '{argument}' is of shape {shape}; expected two dimensions or more" in str(caught.value)


def test_a_mismatched_k_is_refused(lib: tvmops.Library) -> None:
    for out in (None, np.zeros((8, 8), "float32")):
        with pytest.raises(CallError, match=r"'b' is of shape \(9, 8\); expected 8 rows, the columns of a"):
            lib.matmul(random(8, 8), random(9, 8), out=out)


def test_an_array_too_large_to_index_is_refused(lib: tvmops.Library) -> None:
    try:
        a = np.empty((2**16, 2**15), "float32")  # 8 GiB that nobody touches
    except MemoryError:
        pytest.skip("this machine does not promise so much memory")
    with pytest.raises(
        CallError, match=r"'a' is of shape \(65536, 32768\); expected fewer than 2\*\*31 elements"
    ):
        lib.matmul(a, random(2**15, 1))
    assert lib.misses() == {}


class Elsewhere(Exporter):
    def __dlpack_device__(self) -> Any:
        return 2, 0  # a GPU

    def __dlpack__(self, **arguments: Any) -> Any:
        raise BufferError("not on the CPU")


def test_an_array_on_another_device_is_refused(lib: tvmops.Library) -> None:
    with pytest.raises(CallError, match=r"argument 'a' is not readable \(.*\); expected an array on the CPU"):
        lib.matmul(Elsewhere(random(8, 8)), random(8, 8))


OUTPUTS = {
    "of shape (8, 9); expected shape (8, 8)": np.zeros((8, 9), "float32"),
    "of shape (64,); expected shape (8, 8)": np.zeros(64, "float32"),
    "of dtype float64; expected dtype float32": np.zeros((8, 8)),
    "of dtype >f4; expected dtype float32": np.zeros((8, 8), ">f4"),
    "strided; expected a dense row-major array": widened(np.zeros((8, 8), "float32")),
    "read-only; expected a writeable array": read_only(np.zeros((8, 8), "float32")),
    "list; expected a NumPy array or torch tensor": [[0.0] * 8] * 8,
    "Exporter; expected a NumPy array or torch tensor": Exporter(np.zeros((8, 8), "float32")),
}


@pytest.mark.parametrize("known", [False, True], ids=["shape new", "shape known"])
@pytest.mark.parametrize("message", OUTPUTS)
def test_an_output_that_does_not_fit_is_refused_unwritten(
    lib: tvmops.Library, message: str, known: bool
) -> None:
    a, out = random(8, 8), OUTPUTS[message]
    if known:
        lib.matmul(a, a, out=np.empty((8, 8), "float32"))
    with pytest.raises((CallError, CallTypeError)) as caught:
        lib.matmul(a, a, out=out)
    assert f"matmul: argument 'out' is {message}" in str(caught.value)
    assert not np.any(getattr(out, "array", out))


def test_a_transposed_output_is_refused(lib: tvmops.Library) -> None:
    """It has the shape and the size; a kernel would write its transpose."""
    out = np.zeros((8, 8), "float32").T
    for _ in range(2):
        with pytest.raises(CallError, match="argument 'out' is strided"):
            lib.matmul(random(8, 8), random(8, 8), out=out)
        assert not out.any()


@pytest.mark.parametrize("known", [False, True], ids=["shape new", "shape known"])
@pytest.mark.parametrize("argument, rows", [("a", 0), ("a", 1), ("b", 15), ("b", 9)])
def test_an_output_that_overlaps_an_input_is_refused_unwritten(
    lib: tvmops.Library, argument: str, rows: int, known: bool
) -> None:
    memory = random(24, 8)
    before = memory.copy()
    a, b, out = memory[:8], memory[16:], memory[rows : rows + 8]
    if known:
        lib.matmul(a, b, out=np.empty((8, 8), "float32"))
    with pytest.raises(CallError, match=f"argument 'out' is an array that shares memory with '{argument}'"):
        lib.matmul(a, b, out=out)
    assert np.array_equal(memory, before)


def test_an_output_between_the_inputs_is_written(lib: tvmops.Library) -> None:
    memory = random(24, 8)
    a, out, b = memory[:8], memory[8:16], memory[16:]
    expected = a.astype("float64") @ b
    for _ in range(2):
        np.testing.assert_allclose(lib.matmul(a, b, out=out), expected, atol=1e-5)


def test_inputs_are_left_as_they_were(lib: tvmops.Library) -> None:
    for form in FORMS:
        a, b = random(17, 61), random(61, 31)
        given = FORMS[form](a), FORMS[form](b)
        before = a.copy(), b.copy()
        lib.matmul(*given)
        assert np.array_equal(a, before[0])
        assert np.array_equal(b, before[1])


def test_a_known_shape_goes_straight_to_its_kernel(
    lib: tvmops.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No copy, no allocation, no check but the kernel's own."""
    a, b, out = random(8, 8), random(8, 8), np.empty((8, 8), "float32")
    careful = lib._answer
    calls: list[Any] = []
    monkeypatch.setattr(lib, "_answer", lambda *given: calls.append(given) or careful(*given))
    lib.matmul(a, b, out=out)
    assert len(calls) == 1
    for _ in range(5):
        assert lib.matmul(a, b, out=out) is out
    assert len(calls) == 1
    lib.matmul(np.asfortranarray(a), b, out=out)
    assert len(calls) == 2, "a strided input must take the careful way"


def test_dense_inputs_reach_the_kernel_uncopied(lib: tvmops.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, out = random(8, 8), read_only(random(8, 8)), np.empty((8, 8), "float32")
    seen: list[tuple[Array, ...]] = []
    lib.matmul(a, a, out=out)
    (workload,) = lib._kernels
    monkeypatch.setitem(lib._kernels, workload, lambda *arrays: seen.append(arrays))
    monkeypatch.setattr(lib, "_known", KnownCalls())  # which would call the kernel that it knows
    lib.matmul(a, a, out=out)
    lib.matmul(a, a)
    assert all(np.shares_memory(a, given[0]) and np.shares_memory(a, given[1]) for given in seen)
    assert np.shares_memory(seen[0][2], out)
    seen.clear()
    lib.matmul(a, b)  # read-only: through DLPack, and still not copied
    assert np.from_dlpack(seen[0][1]).ctypes.data == b.ctypes.data
