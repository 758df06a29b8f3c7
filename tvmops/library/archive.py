"""Zip files that are the same, byte for byte, for the same content."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo, is_zipfile

from tvmops.errors import LibraryWriteError
from tvmops.manifest import FILE

_MODE = 0o100644 << 16  # a plain file that all may read; kernels are loaded, not executed


def is_zipped_library(path: Path) -> bool:
    """True if `path` is a zip file with a manifest in it."""
    if not path.is_file() or not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        return FILE in archive.namelist()


def zip_folder(folder: Path, path: Path) -> None:
    """Write the files of the library `folder` to the zip file `path`, which appears whole or not at all."""
    write_zip(path, {each.name: each.read_bytes() for each in folder.iterdir()})


def write_zip(path: Path, content: Mapping[str, bytes]) -> None:
    """Write `content`, by file name, to the zip file `path`, which appears whole or not at all.

    Raises
    ------
    LibraryWriteError
        A disk is full or read-only, or such.
    """
    try:
        _write_zip(path, content)
    except OSError as error:
        raise LibraryWriteError(path=path, detail=error.strerror or error) from None


def _write_zip(path: Path, content: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    number, staging = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file, ZipFile(file, "w", ZIP_DEFLATED) as archive:
            for name, data in sorted(content.items()):
                info = ZipInfo(name)  # dated 1980, whatever the clock says
                info.compress_type, info.external_attr = ZIP_DEFLATED, _MODE
                archive.writestr(info, data)
        Path(staging).chmod(0o644)
        Path(staging).replace(path)
    finally:
        Path(staging).unlink(missing_ok=True)
