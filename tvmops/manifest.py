"""`Manifest`: what an exported library holds, as JSON. Both halves read it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvmops.buckets import Bucket
from tvmops.errors import LibraryDamagedError, LibraryMissingError, LibraryVersionError

SCHEMA = 2
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
    modelled: Mapping[str, int] = field(default_factory=dict)  # cycles and counts, where nothing was measured
    record: str = ""  # sha256 of the line of the tuning log that it came from; "" for a generic kernel


@dataclass(frozen=True)
class Variant:
    """The kernels of a library for one target, and what a machine must have to run them."""

    target: str
    arch: str
    needs: tuple[str, ...]  # CPU features, or "sm_90a" and such
    vector_bits: int
    models: tuple[Mapping[str, Any], ...]  # the CPUs that the target describes by name
    module: str  # file that holds the kernels
    runtime: str  # file that holds the runtime which they call
    kernels: tuple[KernelEntry, ...]
    buckets: tuple[Bucket, ...] = ()  # which of them answers in a range of shapes

    @property
    def device(self) -> str:
        """Where its arrays lie: "cuda", or "cpu"."""
        return "cuda" if any(need.startswith("sm_") for need in self.needs) else "cpu"


@dataclass(frozen=True)
class Manifest:
    """A library folder: its kernels for each target, and a digest of each file."""

    variants: tuple[Variant, ...]
    files: Mapping[str, str]  # name to sha256
    toolchain: Mapping[str, str]
    schema: int = SCHEMA

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
            variants = tuple(_variant(entry) for entry in table.pop("variants"))
            manifest = cls(**{**table, "variants": variants})
            _check_names(folder, manifest)
            return manifest
        except (KeyError, TypeError, ValueError, AttributeError):
            raise LibraryDamagedError(
                path=folder, file=FILE, detail="lacks a field or has one too many"
            ) from None


def _check_names(folder: Path, manifest: Manifest) -> None:
    """Refuse files elsewhere, and kernels in a file that has no digest."""
    modules = {variant.module for variant in manifest.variants}
    for name in (*manifest.files, *modules, *(variant.runtime for variant in manifest.variants)):
        if not is_plain(name):
            raise LibraryDamagedError(path=folder, file=name, detail="is outside the folder")
    for name in sorted(modules - manifest.files.keys()):
        raise LibraryDamagedError(path=folder, file=name, detail="has no digest in the manifest")


def is_plain(name: str) -> bool:
    """True if `name` names a file in a folder, and none elsewhere."""
    return name == Path(name).name and name not in ("", "..") and "\0" not in name


def _variant(entry: Mapping[str, Any]) -> Variant:
    fields = {name: tuple(entry[name]) for name in ("needs", "models")}
    kernels, buckets = tuple(map(_kernel, entry["kernels"])), tuple(map(_bucket, entry["buckets"]))
    return Variant(**{**entry, **fields, "kernels": kernels, "buckets": buckets})


def _bucket(entry: Mapping[str, Any]) -> Bucket:
    samples = {name: tuple(sizes) for name, sizes in entry["samples"].items()}
    fields = {name: tuple(entry[name]) for name in ("kernels", "cells", "seconds", "losses")}
    return Bucket(**{**entry, **fields, "samples": samples})


def _kernel(entry: Mapping[str, Any]) -> KernelEntry:
    ranges = {name: (low, high) for name, (low, high) in entry["ranges"].items()}
    return KernelEntry(**{**entry, "ranges": ranges})


def _digest(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
