"""`Target`: a machine as data. One TOML file a machine lies beside this module."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmops.errors import TargetFileError, UnknownTargetError
from tvmops.machine import Machine, is_one_of, missing_features, this_machine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Gpu:
    """What is said of a GPU alone. Rates a second, for the whole device."""

    code: str  # what its code is compiled for, "sm_90a"
    compute: int  # compute capability, 90 for 9.0
    shared_bytes: int  # most that one block may have
    block_registers: int  # of one multiprocessor
    tensor_flops: int  # of bfloat16 on tensor cores
    flops: int  # of float32 without them
    bandwidth: int  # bytes, read plus written


@dataclass(frozen=True, eq=False)
class Target:
    """A machine to tune for. Sizes in bytes; caches as one core sees them.

    Of a GPU a core is a multiprocessor: its L1 is the memory that blocks share, its L3 the
    same as its L2, and vectors are what one thread loads at once.
    """

    name: str  # "znver4"
    kind: str  # "cpu" or "cuda"
    tvm: Mapping[str, Any]  # the dict that makes a tvm.target.Target, without the core count
    arch: str  # as `uname -m` prints it
    needs: tuple[str, ...]  # CPU features, or "sm_90a" and such, that compiled code relies on
    vector_bits: int
    vector_registers: int
    cores: int  # physical; what kernels are split over
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    fallbacks: tuple[str, ...] = ()  # targets whose code and records serve here too, nearest first
    models: tuple[Mapping[str, Any], ...] = ()  # the CPUs that this file describes by name
    gpu: Gpu | None = None

    def vector_width(self, dtype: str) -> int:
        """Return how many elements of `dtype` a vector register holds."""
        return (
            self.vector_bits // {"float32": 32, "int32": 32, "bfloat16": 16, "float16": 16, "int8": 8}[dtype]
        )

    @property
    def multiplies_by_lane(self) -> bool:
        """True if a vector can be multiplied by one lane of another: no broadcast, loads of whole vectors."""
        return self.arch == "aarch64"

    def describes(self, machine: Machine) -> bool:
        """True if `machine` is one of the CPUs that this file names."""
        return is_one_of(self.models, machine)

    def missing(self, machine: Machine) -> list[str]:
        """Return what `machine` lacks to run code built for this target."""
        if machine.arch != self.arch:
            return [f"architecture {self.arch}"]
        return missing_features(self.needs, machine)


def names() -> tuple[str, ...]:
    """Return the names of all described targets."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def target(name: str) -> Target:
    """Return the target called `name`; "native" describes the machine at hand.

    Raises
    ------
    UnknownTargetError
        No file describes it.
    """
    if name == "native":
        return native()
    if name not in names():
        raise UnknownTargetError(name=name, known=", ".join(names()))
    return _from_file(_FOLDER / f"{name}.toml")


def native() -> Target:
    """Describe this machine: the file that names its CPU, with its own cores and caches.

    A CPU that no file names gets the most capable generic target that it can run.
    """
    machine = this_machine()
    cpus = [known for known in map(target, names()) if known.kind == "cpu"]
    runnable = [known for known in cpus if not known.missing(machine)]
    if not runnable:
        raise UnknownTargetError(name=f"native ({machine.cpu}, {machine.arch})", known=", ".join(names()))
    named = [known for known in runnable if known.describes(machine)]
    generic = [known for known in runnable if not known.models]
    best = max(named or generic or runnable, key=lambda known: (known.vector_bits, len(known.needs)))
    return dataclasses.replace(
        best,
        cores=machine.cores,
        l1_bytes=machine.l1_bytes or best.l1_bytes,
        l2_bytes=machine.l2_bytes or best.l2_bytes,
        l3_bytes=machine.l3_bytes or best.l3_bytes,
    )


_FIELDS = {field.name: field for field in dataclasses.fields(Target) if field.name != "name"}

# What a field of each annotated type may hold, in words and as a test.
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a string", lambda value: isinstance(value, str)),
    "int": ("a positive integer", lambda value: type(value) is int and value > 0),
    "Mapping[str, Any]": ("a table", lambda value: isinstance(value, dict)),
    "tuple[str, ...]": ("a list of strings", lambda value: _is_list_of(str, value)),
    "tuple[Mapping[str, Any], ...]": ("a list of tables", lambda value: _is_list_of(dict, value)),
    "Gpu | None": ("a table with the fields of Gpu", lambda value: _is_gpu(value)),
}


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _is_gpu(value: Any) -> bool:
    fields = {field.name: str(field.type) for field in dataclasses.fields(Gpu)}
    fits = isinstance(value, dict) and value.keys() == fields.keys()
    return fits and all(_KINDS[kind][1](value[name]) for name, kind in fields.items())


def _from_file(path: Path) -> Target:
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise TargetFileError(path=path, field="all", value=str(error), expected="TOML") from None
    for name, value in table.items():
        if name not in _FIELDS:
            raise TargetFileError(path=path, field=name, value=value, expected="a field of Target")
        expected, fits = _KINDS[str(_FIELDS[name].type)]
        if not fits(value):
            raise TargetFileError(path=path, field=name, value=value, expected=expected)
    for name, field in _FIELDS.items():
        if name not in table and field.default is dataclasses.MISSING:
            expected = _KINDS[str(field.type)][0]
            raise TargetFileError(path=path, field=name, value="missing", expected=expected)
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in table.items()
    }
    if "gpu" in fields:
        fields["gpu"] = Gpu(**fields["gpu"])
    return Target(name=path.stem, **fields)
