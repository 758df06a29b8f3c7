"""Libraries in one file: a zip of a library folder, unpacked once to the cache."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from tvmops.errors import CacheError, LibraryDamagedError
from tvmops.machine import cache_folder
from tvmops.manifest import is_plain


def unpacked(path: Path) -> Path:
    """Return the folder that holds what is in the zip file `path`; unpack it unless it is there.

    The folder is named by the digest of the file and appears whole or not at all, so that
    processes may do this at once.

    Raises
    ------
    LibraryDamagedError
        It is no zip file, was cut short or altered, or holds paths that are no plain names.
    CacheError
        The cache can't be written.
    """
    folder = cache_folder() / "libraries" / hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        with ZipFile(path) as archive:
            for info in archive.infolist():
                if not is_plain(info.filename):
                    raise LibraryDamagedError(path=path, file=info.filename, detail="is outside the folder")
            if not _is_whole(folder, archive):
                _unpack(path, archive, folder)
    except (BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError):
        detail = "is no zip file, or was cut short or altered"
        raise LibraryDamagedError(path=path, file=path.name, detail=detail) from None
    return folder


def _is_whole(folder: Path, archive: ZipFile) -> bool:
    """True if `folder` holds the content of `archive`, by CRC; the manifest has digests."""
    paths = [(folder / info.filename, info) for info in archive.infolist()]
    return all(path.is_file() and zlib.crc32(path.read_bytes()) == info.CRC for path, info in paths)


def _unpack(path: Path, archive: ZipFile, folder: Path) -> None:
    """Make `folder` of `archive`, unless another process was first; a damaged one is replaced."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock, TemporaryDirectory(dir=folder.parent) as scratch:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_whole(folder, archive):
                return
            staging = Path(scratch, "library")
            staging.mkdir()
            for name in archive.namelist():
                (staging / name).write_bytes(archive.read(name))
            shutil.rmtree(folder, ignore_errors=True)
            staging.rename(folder)
    except OSError as error:
        raise CacheError(path=path, folder=folder, detail=error.strerror) from None
