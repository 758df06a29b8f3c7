"""`Call`: a call on a library as its kernels see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvmops.errors import CallError, CallTypeError
from tvmops.runtime.arrays import as_input, device_of, dtype_of
from tvmops.signatures import ANY, SIGNATURES, Dim, TensorSpec, Value
from tvmops.signatures.dtypes import BFLOAT16, stored
from tvmops.workloads import Workload, workload

_INDEX_LIMIT = 2**31  # kernels index in 32 bits


@dataclass(frozen=True)
class Call:
    """A workload and the arguments for it, known to fit each other."""

    workload: Workload
    inputs: tuple[Any, ...]  # dense, in calling order
    views: tuple[Any, ...]  # the same before those that were strided were copied
    scalars: tuple[float, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: tuple[tuple[int, ...], ...]  # of the outputs as the caller sees them
    otherwise: Callable[[], Call] | None  # the same on copies, for a library without such a kernel

    @classmethod
    def of(
        cls,
        op: str,
        inputs: dict[str, Any],
        scalars: tuple[float, ...] = (),
        shapes: tuple[tuple[int, ...], ...] | None = None,
        otherwise: Callable[[], Call] | None = None,
        **fields: Any,
    ) -> Call:
        """Return the call of `op` with these arrays, by name, on the workload with these fields.

        Parameters
        ----------
        shapes
            Shapes of the outputs as the caller sees them, where those of the signature differ:
            what a kernel has as rows and columns may have any number of dimensions.
        otherwise
            Makes another call of the same meaning, for a library that has no kernel for this one.

        Raises
        ------
        CallError, CallTypeError
            An array is none, or not of the shape and dtype that the fields ask for.
        WorkloadError
            The op has no such fields.
        """
        made = _workload(op, fields)
        signature = SIGNATURES[op]
        outputs = signature.outputs(made)
        specs = signature.inputs(made)
        checked = tuple(_checked(op, spec, inputs[spec.name]) for spec in specs)
        for spec in (*specs, *outputs):
            if spec.elements >= _INDEX_LIMIT:
                raise CallError(
                    op=op,
                    argument=spec.name,
                    value=f"of shape {spec.shape}",
                    expected="fewer than 2**31 elements",
                )
        seen = shapes or tuple(spec.shape for spec in outputs)
        views = tuple(inputs[spec.name] for spec in specs)
        return cls(made, checked, views, scalars, outputs, seen, otherwise)

    @property
    def is_empty(self) -> bool:
        """True if a size is zero, so that there is nothing to compute."""
        inputs = SIGNATURES[self.workload.op].inputs(self.workload)
        return any(spec.elements == 0 for spec in (*inputs, *self.outputs))


def shape_of(op: str, name: str, array: Any, *ranks: int) -> tuple[int, ...]:
    """Return the shape of `array`, as `view` gave it, which must have one of `ranks` dimensions."""
    shape = tuple(array.shape)
    if len(shape) not in ranks:
        wanted = " or ".join(_NUMBERS.get(rank, str(rank)) for rank in ranks)
        plural = "dimension" if ranks == (1,) else "dimensions"
        raise CallError(op=op, argument=name, value=f"of shape {shape}", expected=f"{wanted} {plural}")
    return shape


def check_weight(op: str, weight: Any) -> None:
    """Refuse what is no matrix, or an empty one, where a weight of two dimensions is to be packed."""
    shape_of(op, "weight", weight, 2)
    if 0 in weight.shape:
        shape = f"of shape {tuple(weight.shape)}"
        raise CallError(op=op, argument="weight", value=shape, expected="no size of 0")


def float_dtype(array: Any) -> str:
    """Return the dtype of an op on `array`, as `view` gave it: the usual one where it has none such.

    Bits stand for bfloat16; float16 is for tensors on a GPU alone.
    """
    found = dtype_of(array)
    if found in (BFLOAT16, stored(BFLOAT16)):
        return BFLOAT16
    return found if found == "float16" and device_of(array) != "cpu" else "float32"


def parsed(op: str, name: str, value: object) -> Value:
    """Return the argument `value` as the field `name` of the op's workload holds it."""
    kind = next(field.kind for field in SIGNATURES[op].fields if field.name == name)
    found = None if value == ANY else kind.parse(value)
    if found is None:
        raise CallError(op=op, argument=name, value=value, expected=kind.expected)
    return found


def number(op: str, name: str, value: object) -> float:
    """Return the argument `value` as a float."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise CallTypeError(op=op, argument=name, value=repr(value), expected="a number") from None


_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


def _workload(op: str, fields: dict[str, Any]) -> Workload:
    """Return the workload with these fields; its sizes may be zero, as those of a call may."""
    sizes = {field.name for field in SIGNATURES[op].fields if isinstance(field.kind, Dim)}
    empty = {name for name in sizes if type(fields.get(name)) is int and fields[name] == 0}
    made = workload(op, **{name: 1 if name in empty else value for name, value in fields.items()})
    if not empty:
        return made
    return Workload(op, tuple((name, 0 if name in empty else value) for name, value in made.items))


def _checked(op: str, spec: TensorSpec, array: Any) -> Any:
    dense = as_input(op, spec.name, array, spec.dtype)
    if tuple(dense.shape) != spec.shape:
        raise CallError(
            op=op, argument=spec.name, value=f"of shape {tuple(dense.shape)}", expected=f"shape {spec.shape}"
        )
    return dense
