"""What the kernels of wgmma products take: the forms of a product, and how its arrays lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as builder

from tvmops.schedules.cuda.kernels.pad_rows import Padded, pad_rows
from tvmops.schedules.cuda.kernels.turn_floats import turn_floats
from tvmops.schedules.cuda.words import do

_TENSOR_MAP = "runtime.cuTensorMapEncodeTiled"
# The end of a tensor map's arguments: no interleaving, 128-byte swizzle, bytes that the L2 takes at a time (128, or
# 256: the next ones are there before they are asked for), zeros.
_SWIZZLED, _SWIZZLED_FAR = (0, 3, 2, 0), (0, 3, 3, 0)
_STORED = (0, 3, 0, 0)
BOX_ROWS = 16  # of c, of a store of what was turned: tiles have a multiple of as many
_ITEM = 2  # bytes of an element, as the copy engine sees them
MOST_PARTS = 32  # of an operand that is copied late
COUNTED_BYTES = 8 * MOST_PARTS  # before such copies: what is taken of them, and what is done of each part
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
    late: bool = False  # whether a part of the copies of those is made beside the product
    turned: bool = False  # c^T = b^T a^T is what is multiplied: b of the caller is a here, m is n
    crosses: bool = False  # whether b of floats lies across k, too: what is multiplied is a copy along it

    @property
    def across(self) -> bool:
        """Whether a comes to wgmma through registers: of floats, it takes rows along k alone from memory."""
        return self.item == 4 and self.trans_a

    @property
    def result(self) -> str:
        return self.out_dtype or self.dtype

    @property
    def copied(self) -> tuple[str, ...]:
        """The operands of which copies are made before the product."""
        return (*self.pads, "b") if self.crosses else self.pads

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
    def turns_back(self) -> bool:
        """Whether c^T is turned on its way to c."""
        return self.turned and self.item == 2 and self.stores_by_tma

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
        self.matrices = {
            "a": self._across() if form.trans_a else (self.m, self.pairs),
            "b": (self.n, self.pairs) if form.trans_b else (self.pairs, self.n),
        }
        self.names = (
            {"a": "b", "b": "a"} if form.turned else {"a": "a", "b": "b"}
        )  # that callers know them by
        self.items = {
            each: (self.batch,) if form.batched and form.shared != self.names.get(each) else ()
            for each in "abc"
        }
        self.copies: dict[str, Padded] = {}
        self.workspace_bytes: Any = T.int64(COUNTED_BYTES if form.late else 0)
        for name in form.copied:
            rows, columns = self.matrices[name]
            items = self.batch if self.items[name] else 1
            copy = Padded(rows * items, columns, self.workspace_bytes)
            self.copies[name], self.workspace_bytes = copy, copy.end
        self.workspace_bytes += form.left_bytes
        if form.parts > 1:
            self.workspace_bytes += T.Cast("int64", self.m) * T.Cast("int64", self.n) * (4 * form.parts)

    def _across(self) -> tuple[Any, Any]:
        """Return the rows and columns of an a whose rows lie across k."""
        return (self.k, self.m * 2) if self.form.item == 4 else (self.pairs, self.m)

    def _floats(self) -> dict[str, Any]:
        """Return the factors, as callers know them, where their elements have 4 bytes."""
        a = (self.k, self.m) if self.form.trans_a else (self.m, self.k)
        b = (self.k, self.n) if self.form.crosses else (self.n, self.k)
        factors = {"a": (*self.items["a"], *a), "b": (*self.items["b"], *b)}
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
            roles = {each: self.names[each] for each in "ab"}
            shapes = {
                each: (form.dtype, (*self.items[role], *self.matrices[role])) for each, role in roles.items()
            }
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

    def map_of(self, name: str, arrays: dict[str, Any], box: tuple[int, Any], far: bool) -> Any:
        """Describe an operand, or its copy, to the copy engine; `far`: the L2 takes more at a time."""
        rows, columns = self.matrices[name]
        dims = (columns, rows, *self.items[name])
        ends = _SWIZZLED_FAR if far and self.form.item == 2 else _SWIZZLED
        if name not in self.copies:
            return _tensor_map(arrays[name].data, self.dtype, columns, dims, box, ends)
        copy = self.copies[name]
        memory = builder.address_of(arrays["workspace"][copy.offset])
        return _tensor_map(memory, self.dtype, copy.pitch, dims, box, ends)

    def map_of_result(self, c: Any) -> Any:
        rows, columns = (self.n, self.m) if self.form.turned else (self.m, self.n)
        dims, box = (columns, rows, *self.items["c"]), (64, BOX_ROWS if self.form.turned else 64)
        return _tensor_map(c.data, self.form.result, columns, dims, box, _STORED)

    def make_copies(self, arrays: dict[str, Any], blocks: int, chained: bool) -> int:
        """Emit the kernel of `blocks` blocks that makes the copies, if there are any; return how many."""
        if self.form.pads:
            copies = [(arrays[name], self.copies[name]) for name in self.form.pads]
            pad_rows(arrays["workspace"], copies, blocks, chained, once=self.form.item == 2)
        if self.form.crosses:
            items = self.batch if self.items["b"] else 1
            sizes = items, self.n, self.k
            turn_floats(arrays["workspace"], arrays["b"], self.copies["b"], sizes, blocks, chained)
        return len(self.copies)


def workspace_function(form: Form, arrays_of: Arrays | None = None) -> tirx.PrimFunc:
    """Return `main_workspace(a, b, [bias], [residual], c)`: the bytes of workspace that `main` needs."""
    arrays = arrays_of or Arrays(form)

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


def _wide(value: Any) -> Any:
    return value if isinstance(value, int) else tirx.Cast("int64", value)
