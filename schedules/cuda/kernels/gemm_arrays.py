"""What the kernels of wgmma products take: the forms of a product, and how its arrays lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cuda.gemm_tiles import MOST_COPIED
from tvmops.schedules.cuda.kernels.pad_rows import Padded, pad_rows
from tvmops.schedules.cuda.words import do

_TENSOR_MAP = "runtime.cuTensorMapEncodeTiled"
# The end of a tensor map's arguments: no interleaving, 128-byte swizzle, L2 promotion, zeros.
_SWIZZLED = (0, 3, 2, 0)
_STORED = (0, 3, 0, 0)
_ITEM = 2  # bytes of an element, as the copy engine sees them
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of an element; others have one


@dataclass(frozen=True)
class Form:
    """What is multiplied: how the arrays lie, and what follows the sum."""

    dtype: str
    trans_a: bool = False
    trans_b: bool = False
    batched: bool = False
    shared: str = "none"
    scales: str = ""  # of the sums: one for each operand ("tensor"), or one a row and one a column ("rows")
    bias: str = ""  # its dtype
    residual: bool = False
    activation: str = "none"
    out_dtype: str = ""  # as dtype
    pads: tuple[str, ...] = ()  # operands whose rows begin where TMA can't
    loose: bool = False  # whether the rows of the result do
    parts: int = 1  # stretches of k whose sums meet in a workspace
    left_bytes: int = 0  # of a workspace for sums that blocks leave each other
    ahead: tuple[str, ...] = ()  # of these, those that are copied beside the product
    turned: bool = False  # c^T = b^T a^T is what is multiplied: b of the caller is a here, m is n

    @property
    def across(self) -> bool:
        """Whether a comes to wgmma through registers: of floats, it takes rows along k alone from memory."""
        return self.item == 4 and self.trans_a

    @property
    def result(self) -> str:
        return self.out_dtype or self.dtype

    @property
    def item(self) -> int:
        """Bytes of an element of a and b."""
        return _BYTES.get(self.dtype, 1)

    @property
    def stores_directly(self) -> bool:
        return self.result not in ("float16", "bfloat16")

    @property
    def stores_by_tma(self) -> bool:
        return not (self.stores_directly or self.loose)

    @property
    def sums(self) -> Form:
        """The same without what follows the sum, in float32."""
        return replace(self, scales="", bias="", residual=False, activation="none", out_dtype="float32")

    @property
    def finishes(self) -> bool:
        return self.scales == "rows" or bool(self.bias) or self.residual or self.activation != "none"

    @property
    def has_factor(self) -> bool:
        """Whether one number times each sum is all that follows."""
        return self.scales == "tensor" and not self.finishes


@dataclass(frozen=True)
class Int8Form(Form):
    b_zero_points: str = "none"
    by_channel: bool = False  # whether each column has a scale of its own

    @property
    def finishes(self) -> bool:
        return self.b_zero_points != "none" or self.result != "int32"


class Arrays:
    """The arrays of a product, sizes as variables; and copies of operands in a workspace."""

    sums = "float32"  # their dtype

    def __init__(self, form: Form) -> None:
        self.form = form
        self.m, self.n, self.k = (tirx.Var(name, "int32") for name in ("nmk" if form.turned else "mnk"))
        self.batch: Any = tirx.Var("batch", "int32") if form.batched else 1
        # All travel as elements of 16 bits, and `pairs` counts these: rows of 128 bytes are what is multiplied.
        self.dtype = form.dtype if form.item == 2 else "bfloat16"
        self.pairs = {1: T.truncdiv(self.k, 2), 2: self.k, 4: self.k * 2}[form.item]
        self.matrices = self._matrices(self.m, self.n, self.pairs)
        self.names = (
            {"a": "b", "b": "a"} if form.turned else {"a": "a", "b": "b"}
        )  # that callers know them by
        self.items = {
            each: (self.batch,) if form.batched and form.shared != self.names.get(each) else ()
            for each in "abc"
        }
        self.copies = self.copies_of(self.m, self.n, self.pairs)
        self.workspace_bytes = end_of(self.copies)
        if form.ahead:
            self.workspace_bytes += 4 * counters_of(self.m, self.n, self.k)
        self.workspace_bytes += form.left_bytes
        if form.parts > 1:
            self.workspace_bytes += T.Cast("int64", self.m) * T.Cast("int64", self.n) * (4 * form.parts)

    def _matrices(self, m: Any, n: Any, k: Any) -> dict[str, tuple[Any, Any]]:
        form = self.form
        return {
            "a": self._across() if form.trans_a and form.item == 4 else (k, m) if form.trans_a else (m, k),
            "b": (n, k) if form.trans_b else (k, n),
        }

    def copies_of(self, m: Any, n: Any, k: Any) -> dict[str, Padded]:
        """Return the copies of operands in the workspace, one behind the other, for a product of these sizes."""
        copies: dict[str, Padded] = {}
        for name in self.form.pads:
            rows, columns = self._matrices(m, n, k)[name]
            items = self.batch if self.items[name] else 1
            copies[name] = Padded(rows * items, columns, end_of(copies))
        return copies

    def _across(self) -> tuple[Any, Any]:
        """Return the rows and columns of an a of floats whose rows lie across k."""
        return self.k, self.m * 2

    def _floats(self) -> dict[str, Any]:
        """Return the factors, as callers know them, where their elements have 4 bytes."""
        a = (self.k, self.m) if self.form.trans_a else (self.m, self.k)
        factors = {"a": (*self.items["a"], *a), "b": (*self.items["b"], self.n, self.k)}
        return {each: ("float32", factors[self.names[each]]) for each in "ab"}

    def declare(self, workspace: bool) -> dict[str, Any]:
        """Declare the arguments of a function, in calling order; return them by their roles here."""
        form = self.form
        c_shape = (*self.items["c"], *((self.n, self.m) if form.turned else (self.m, self.n)))
        if form.item == 1:
            shapes: dict[str, Any] = {"a": ("uint8", (self.m, self.k)), "b": ("uint8", (self.n, self.k))}
            rows, columns = ((self.m,), (self.n,)) if form.scales == "rows" else ((1,), (1,))
            shapes |= {"a_scale": ("float32", rows), "b_scale": ("float32", columns)}
        elif form.item == 4:
            shapes = self._floats()
        else:
            shapes = {name: (form.dtype, (*self.items[name], *self.matrices[name])) for name in "ab"}
        shapes |= {"bias": (form.bias, (c_shape[-1],))} if form.bias else {}
        shapes |= {"residual": (form.result, c_shape)} if form.residual else {}
        shapes |= {"c": (form.result, c_shape)}
        shapes |= {"workspace": ("uint8", (tirx.Var("workspace_bytes", "int64"),))} if workspace else {}
        declared = {
            name: builder.arg(
                name, builder.buffer(shape, dtype, align=4 if "scale" in name else 16, buffer_name=name)
            )
            for name, (dtype, shape) in shapes.items()
        }
        return {self.names.get(name, name): array for name, array in declared.items()}

    def map_of(self, name: str, arrays: dict[str, Any], box: tuple[int, int]) -> Any:
        """Describe an operand, or its copy, to the copy engine."""
        rows, columns = self.matrices[name]
        dims = (columns, rows, *self.items[name])
        if name not in self.copies:
            return _tensor_map(arrays[name].data, self.dtype, columns, dims, box, _SWIZZLED)
        copy = self.copies[name]
        memory = builder.address_of(arrays["workspace"][copy.offset])
        return _tensor_map(memory, self.dtype, copy.pitch, dims, box, _SWIZZLED)

    def map_of_result(self, c: Any) -> Any:
        dims = (self.n, self.m, *self.items["c"])
        return _tensor_map(c.data, self.form.result, self.n, dims, (64, 64), _STORED)

    def make_copies(self, arrays: dict[str, Any], blocks: int, chained: bool) -> int:
        """Emit the kernel of `blocks` blocks that makes the copies, if there are any; return how many."""
        copies = [(arrays[name], self.copies[name]) for name in self.copies if name not in self.form.ahead]
        if copies:
            pad_rows(arrays["workspace"], copies, blocks, chained, once=self.form.item == 2)
        return len(copies)


def workspace_function(form: Form) -> tirx.PrimFunc:
    """Return `main_workspace(a, b, [bias], [residual], c)`: the bytes of workspace that `main` needs."""
    arrays = Arrays(form)

    @T.prim_func
    def main_workspace() -> None:
        declared = T.meta_var(arrays.declare(workspace=False))  # noqa: F841
        return arrays.workspace_bytes  # type: ignore[no-any-return]  # of the kernel language

    function: tirx.PrimFunc = main_workspace
    return function


def _tensor_map(memory: Any, dtype: str, pitch: Any, dims: Any, box: Any, ends: Any) -> Any:
    """Describe an array to the copy engine: sizes innermost first; `pitch` elements from a row to the next."""
    strides = [pitch * _ITEM]
    for size in dims[1:-1]:
        strides.append(_wide(strides[-1]) * size)
    var = builder.Bind(builder.tvm_stack_alloca("tensormap", 1), builder.handle("tensormap"))
    boxes, steps = (*box, *[1] * (len(dims) - 2)), [1] * len(dims)
    do(
        builder.call_packed(
            _TENSOR_MAP, var, dtype, len(dims), memory, *dims, *strides, *boxes, *steps, *ends
        )
    )
    return var


def end_of(copies: dict[str, Padded]) -> Any:
    """Return the byte of the workspace behind these copies, where counters of what was copied begin."""
    return [*copies.values()][-1].end if copies else T.int64(0)


def counters_of(m: Any, n: Any, k: Any) -> Any:
    """Return how many counters of copies there are at most, each of 4 bytes."""
    deep, most = MOST_COPIED * 8, 64  # of k, of a stretch; rows or columns that have counters of their own
    parts = T.truncdiv(m + (most - 1), most) + T.truncdiv(n + (most - 1), most)
    return T.Cast("int64", T.truncdiv(k + (deep - 1), deep) * parts + 2)


def _wide(value: Any) -> Any:
    return value if isinstance(value, int) else tirx.Cast("int64", value)
