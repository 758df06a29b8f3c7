"""`Manifest`: what an exported library holds, as JSON. Both halves read it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvmops.errors import LibraryDamagedError, LibraryMissingError, LibraryVersionError

SCHEMA = 1
FILE = "manifest.json"


@dataclass(frozen=True)
class KernelEntry:
    """One kernel of a library."""

    function: str  # its name in the module
    workload: str  # text form; `*` dimensions take any size within `ranges`
    ranges: Mapping[str, tuple[int, int]]  # smallest and largest size of a `*` dimension
    template: str  # name and version
    config: Mapping[str, Any]
    seconds: float | None  # median when it was measured; None for a generic kernel
    error: float | None  # largest absolute error seen then, against float64
    tolerance: float | None  # what it was held to
    measured: str  # when and where the record behind it was made
    parallel: bool = True  # whether it may start threads
    multiples: Mapping[str, int] = field(default_factory=dict)  # what `*` dimensions must divide by


@dataclass(frozen=True)
class Manifest:
    """A library folder: the machine it was built for, its kernels, a digest of each file."""

    target: str
    arch: str
    needs: tuple[str, ...]  # CPU features
    module: str  # file that holds the kernels
    runtime: str  # file that holds the TVM runtime
    kernels: tuple[KernelEntry, ...]
    files: Mapping[str, str]  # name to sha256
    toolchain: Mapping[str, str]
    schema: int = SCHEMA

    @property
    def device(self) -> str:
        """Where its arrays lie: "cuda", or "cpu"."""
        return "cuda" if any(need.startswith("sm_") for need in self.needs) else "cpu"

    def write(self, folder: Path) -> None:
        table = dataclasses.asdict(self)
        (folder / FILE).write_text(json.dumps({**table, "digest": _digest(table)}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of the library at `folder`.

        Raises
        ------
        LibraryMissingError, LibraryDamagedError, LibraryVersionError
            It is not there, is no manifest, or is one of another schema.
        """
        path = folder / FILE
        if not path.is_file():
            what = f"has no {FILE}" if folder.is_dir() else "is no folder"
            raise LibraryMissingError(path=folder, detail=what)
        try:
            table = json.loads(path.read_text())
            schema = table["schema"]
        except (ValueError, KeyError, TypeError):
            raise LibraryDamagedError(path=folder, file=FILE, detail="is no manifest") from None
        if schema != SCHEMA:
            raise LibraryVersionError(path=folder, schema=schema, expected=SCHEMA)
        if table.pop("digest", None) != _digest(table):
            raise LibraryDamagedError(path=folder, file=FILE, detail="was altered")
        try:
            kernels = tuple(_kernel(entry) for entry in table.pop("kernels"))
            return cls(**{**table, "kernels": kernels, "needs": tuple(table["needs"])})
        except (KeyError, TypeError, ValueError, AttributeError):
            raise LibraryDamagedError(
                path=folder, file=FILE, detail="lacks a field or has one too many"
            ) from None


def _kernel(entry: Mapping[str, Any]) -> KernelEntry:
    ranges = {name: (low, high) for name, (low, high) in entry["ranges"].items()}
    return KernelEntry(**{**entry, "ranges": ranges})


def _digest(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
