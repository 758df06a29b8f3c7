"""Write a library folder: compile kernels, copy the runtime that they call, state it all in a manifest."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import IRModule

from tvmops.buckets import Bucket
from tvmops.errors import ArgumentError, LibraryWriteError
from tvmops.library.archive import is_zipped_library, zip_folder
from tvmops.library.kernel import Kernel
from tvmops.manifest import FILE, Manifest, Variant
from tvmops.measure.build import build_library
from tvmops.measure.runtimes import runtime_file
from tvmops.measure.toolchain import toolchain
from tvmops.runtime.backend import CUDA_RUNTIME_FILE
from tvmops.targets import Target


@dataclass(frozen=True)
class Part:
    """What a library is to hold for one target."""

    target: Target
    kernels: Sequence[Kernel]
    buckets: Sequence[Bucket] = ()


def check_place(path: str | os.PathLike[str]) -> Path:
    """Return `path`, where a library may be written: nothing is there, or an earlier library.

    Raises
    ------
    ArgumentError
        Something else is there.
    """
    place = Path(path)
    if place.exists() and not ((place / FILE).is_file() or is_zipped_library(place)):
        expected = "a new folder or zip file, or an earlier library"
        raise ArgumentError(argument="path", value=str(path), expected=expected)
    return place


def write_library(path: Path, parts: Sequence[Part]) -> None:
    """Compile `parts` into the library `path`: a folder, or a zip file where the name ends in ".zip".

    It appears whole or not at all, and replaces an earlier one.

    Raises
    ------
    LibraryWriteError
        A disk is full or read-only, or such.
    """
    try:
        if path.suffix != ".zip":
            _write_folder(path, parts)
            return
        with tempfile.TemporaryDirectory() as scratch:
            _write_folder(Path(scratch, "library"), parts)
            zip_folder(Path(scratch, "library"), path)
    except OSError as error:
        raise LibraryWriteError(path=path, detail=error.strerror or error) from None


def _write_folder(folder: Path, parts: Sequence[Part]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        variants = tuple(_write_variant(staging, part) for part in parts)
        files = {path.name: digest_of(path) for path in sorted(staging.iterdir())}
        Manifest(variants=variants, files=files, toolchain=toolchain()).write(staging)
        staging.chmod(0o755)
        earlier = staging.with_name(f"{staging.name}-earlier")
        try:
            if folder.exists():
                folder.rename(earlier)
            staging.rename(folder)
        except BaseException:
            if earlier.exists():
                earlier.rename(folder)
            raise
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_variant(folder: Path, part: Part) -> Variant:
    target = part.target
    merged = IRModule({name: f for kernel in part.kernels for name, f in kernel.module.functions.items()})
    linked = folder / "kernels.so"
    build_library(merged, target, linked)
    # A name of its own: a process that holds an earlier module of this folder would get that again.
    module = linked.rename(folder / f"{target.name}-{digest_of(linked)[:12]}.so")
    runtime, *others = _runtime_files(target)
    for path in (runtime, *others):
        if not (folder / path.name).exists():
            shutil.copy(path, folder / path.name)
    return Variant(
        target=target.name,
        arch=target.arch,
        needs=target.needs,
        vector_bits=target.vector_bits,
        models=target.models,
        module=module.name,
        runtime=runtime.name,
        kernels=tuple(kernel.entry for kernel in part.kernels),
        buckets=tuple(part.buckets),
    )


def _runtime_files(target: Target) -> list[Path]:
    """Return the files that kernels for `target` need beside them: the runtime that they call first."""
    lib = Path(tvm.__file__).parent / "lib"
    return [runtime_file(target.arch), *([lib / CUDA_RUNTIME_FILE] if target.kind == "cuda" else [])]


def digest_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
