"""The TVM runtime that goes into a library folder, for this machine or another architecture."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import tvm

from tvmops.errors import RuntimeDownloadError
from tvmops.runtime.backend import RUNTIME_FILE


def runtime_file(arch: str) -> Path:
    """Return the TVM runtime that kernels for CPUs of `arch` call.

    For another architecture than this machine's it has that in its name, and is taken out of
    TVM's own package of the same version, which pip downloads once (95 MB); then it lies in the
    user's cache. One in the folder that $TVMOPS_RUNTIMES names goes before.

    Raises
    ------
    RuntimeDownloadError
        It can't be had.
    """
    if arch == platform.machine():
        return Path(tvm.__file__).parent / "lib" / RUNTIME_FILE
    name = f"{Path(RUNTIME_FILE).stem}-{arch}.so"
    own = Path(os.environ.get("TVMOPS_RUNTIMES") or os.devnull, name)
    if own.is_file():
        return own
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = importlib.metadata.version("apache-tvm")
    kept = caches / "tvmops" / f"runtime-{version}" / name
    if not kept.is_file():
        _download(version, arch, kept)
    return kept


def _download(version: str, arch: str, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        _fetch_wheel(version, arch, Path(folder), kept.name)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            taken = Path(archive.extract(f"tvm/lib/{RUNTIME_FILE}", folder))
        taken.rename(kept)


def _fetch_wheel(version: str, arch: str, folder: Path, name: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--platform", f"manylinux_2_28_{arch}", "--dest", str(folder), f"apache-tvm=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        detail = f"pip could not download it: {done.stderr.strip()[-300:]}"
        raise RuntimeDownloadError(arch=arch, file=name, detail=detail)
