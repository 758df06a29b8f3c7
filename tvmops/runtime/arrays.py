"""Arrays of other libraries, as kernels take them: dense, row-major, on the CPU.

NumPy arrays and torch tensors go to kernels as they are. Anything else that speaks DLPack
is viewed as NumPy. bfloat16 may come as uint16, its bits, since NumPy has no such dtype. An
input that is strided or transposed is copied, never misread.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import tvm_ffi

from tvmops.errors import CallError, CallTypeError
from tvmops.signatures.dtypes import FLOAT8, stored

VECTOR_BYTES = 16  # what a thread of a GPU moves at once, from a multiple of it


def view(op: str, name: str, array: Any) -> Any:
    """Return `array` as a torch tensor if it is one, else as a NumPy array; nothing is copied.

    Raises
    ------
    CallTypeError
        It is no array.
    CallError
        It is on no CPU or GPU, not strided, or needs a gradient, which kernels don't compute.
    """
    if _is_torch(array):
        _check_torch(op, name, array)
        return array
    return _as_numpy(op, name, array)


def dtype_of(array: Any) -> str:
    """Return the name of the dtype of what `view` gave."""
    return str(array.dtype).removeprefix("torch.") if _is_torch(array) else array.dtype.name


def broadcast(array: Any, shape: tuple[int, ...]) -> Any:
    """Return what `view` gave with each size of 1 made that of `shape`; nothing is copied."""
    return array.expand(shape) if _is_torch(array) else np.broadcast_to(array, shape)


def as_bytes(array: Any) -> Any:
    """Return an array of bool, as `view` gave it, as uint8 of 0 and 1; nothing is copied."""
    return array.view(sys.modules["torch"].uint8) if _is_torch(array) else array.view("uint8")


def is_dense(array: Any) -> bool:
    """True if what `view` gave lies row by row without gaps."""
    return bool(array.is_contiguous() if _is_torch(array) else array.flags.c_contiguous)


def as_numpy(op: str, name: str, array: Any) -> Any:
    """Return `array` as a NumPy array, bfloat16 of torch as its bits; nothing is copied."""
    viewed = view(op, name, array)
    return as_argument(viewed.resolve_neg(), dtype_of(viewed)).numpy() if _is_torch(viewed) else viewed


def as_input(op: str, name: str, array: Any, dtype: str) -> Any:
    """Return `array` dense and in this machine's byte order, copied only where it must be.

    Raises
    ------
    CallTypeError
        It is no array, or one of another dtype.
    CallError
        As `view` does.
    """
    viewed = view(op, name, array)
    _check_dtype(op, name, dtype_of(viewed), dtype)
    if _is_torch(viewed):
        return viewed.contiguous().resolve_neg()
    return np.ascontiguousarray(viewed, viewed.dtype.newbyteorder("=")) if viewed.ndim else viewed


def as_output(op: str, name: str, out: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Check that a kernel may write to `out` and return it; it is never copied."""
    if _is_torch(out):
        _check_torch(op, name, out)
        found, dense = str(out.dtype).removeprefix("torch."), out.is_contiguous() and not out.is_neg()
    elif isinstance(out, np.ndarray):
        found = out.dtype.name if out.dtype.isnative else out.dtype.str
        dense = out.flags.c_contiguous
        if not out.flags.writeable:
            raise CallError(op=op, argument=name, value="read-only", expected="a writeable array")
    else:
        raise CallTypeError(
            op=op, argument=name, value=type(out).__name__, expected="a NumPy array or torch tensor"
        )
    _check_dtype(op, name, found, dtype)
    if tuple(out.shape) != shape:
        raise CallError(op=op, argument=name, value=f"of shape {tuple(out.shape)}", expected=f"shape {shape}")
    if not dense:
        raise CallError(op=op, argument=name, value="strided", expected="a dense row-major array")
    return out


def new_output(like: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Return an uninitialised array of the library that `like` comes from.

    A NumPy array of a dtype that NumPy does not have holds the bits, as `signatures.dtypes` says,
    unless `like` shows what holds the values.
    """
    if _is_torch(like):
        return like.new_empty(shape, dtype=getattr(sys.modules["torch"], dtype))
    return np.empty(shape, like.dtype if like.dtype.name == dtype else stored(dtype))


def zeros(like: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Return zeros of the library that `like` comes from."""
    made = new_output(like, shape, dtype)
    made[...] = 0
    return made


def device_of(array: Any) -> str:
    """Return where what `view` gave lies: "cpu", or "cuda:0" and such."""
    return str(array.device) if _is_torch(array) else "cpu"


def argument_dtype(array: Any, dtype: str) -> str:
    """Return the dtype in which a kernel takes what `view` gave, which is of `dtype`.

    What NumPy does not have goes as its bits, but for 16-bit tensors on a GPU, whose kernels take
    them as they are.
    """
    return dtype if device_of(array) != "cpu" and dtype not in FLOAT8 else stored(dtype)


def as_argument(array: Any, dtype: str) -> Any:
    """Return a dense array of `dtype` in the form that tvm-ffi takes.

    NumPy lends read-only memory by request alone.
    """
    held = argument_dtype(array, dtype)
    if held != dtype:
        array = array.view(getattr(sys.modules["torch"], held) if _is_torch(array) else held)
    if not isinstance(array, np.ndarray) or array.flags.writeable:
        return array
    try:
        return tvm_ffi.from_dlpack(array.__dlpack__(max_version=(1, 0)))
    except TypeError:  # NumPy before 2.1
        return array.copy()


def is_aligned(array: Any) -> bool:
    """True if what `view` gave begins where a GPU's kernels can read it, vector by vector."""
    return bounds(array)[0] % VECTOR_BYTES == 0


def aligned(array: Any) -> Any:
    """Return a dense array on a GPU, copied if it begins where kernels can't read it."""
    return array if is_aligned(array) else array.clone()


def check_aligned(op: str, name: str, array: Any) -> None:
    """Refuse an array on a GPU that begins where kernels can't read or write it."""
    if not is_aligned(array):
        raise CallError(
            op=op,
            argument=name,
            value=f"at an address that is no multiple of {VECTOR_BYTES}",
            expected="a tensor that begins at one, such as one of its own",
        )


def overlap(first: Any, second: Any) -> bool:
    """True if two dense arrays share memory."""
    begin, end = bounds(first)
    other_begin, other_end = bounds(second)
    return begin < other_end and other_begin < end


def bounds(array: Any) -> tuple[int, int]:
    """Return where the memory of a dense array begins and ends."""
    begin = array.data_ptr() if _is_torch(array) else array.ctypes.data
    return begin, begin + array.nbytes


def _is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")  # a tensor can't come from a torch that is not imported
    return torch is not None and isinstance(array, torch.Tensor)


def _check_torch(op: str, name: str, tensor: Any) -> None:
    if tensor.device.type not in ("cpu", "cuda"):
        raise CallError(
            op=op, argument=name, value=f"on device {tensor.device}", expected="a tensor on the CPU or a GPU"
        )
    torch = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else tensor.layout
        raise CallError(op=op, argument=name, value=f"of layout {layout}", expected="a dense tensor")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise gradient_error(op, name)


def gradient_error(op: str, name: str) -> CallError:
    """Return the error for an argument that needs a gradient, which kernels don't compute."""
    expected = "a call under torch.no_grad() or inference_mode(), or a detached tensor"
    return CallError(op=op, argument=name, value="a tensor that requires grad", expected=expected)


def _check_dtype(op: str, name: str, found: str, dtype: str) -> None:
    if found not in (dtype, stored(dtype)):
        raise CallTypeError(op=op, argument=name, value=f"of dtype {found}", expected=f"dtype {dtype}")


def _as_numpy(op: str, name: str, array: Any) -> Any:
    if isinstance(array, np.ndarray):
        return array
    if not hasattr(array, "__dlpack__"):
        raise CallTypeError(
            op=op,
            argument=name,
            value=type(array).__name__,
            expected="a NumPy array, torch tensor or DLPack exporter",
        )
    try:
        return np.from_dlpack(array)
    except (RuntimeError, ValueError, BufferError, TypeError) as error:
        raise CallError(
            op=op, argument=name, value=f"not readable ({error})", expected="an array on the CPU"
        ) from None
