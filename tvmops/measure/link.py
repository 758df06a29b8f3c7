"""Link object files into a shared library with whatever linker the machine has."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tvmops.errors import LinkError, NoCrossLinkerError, NoLinkerError

_HERE = platform.machine()
_COMPILERS = ("cc", "gcc", "clang")
_LLD = ("ld.lld", "lld")  # links for every architecture


@functools.cache
def find_linker(bare: bool = False, arch: str = _HERE) -> tuple[str, ...]:
    """Return the command that links: $CC, a C compiler, a linker, or the `ziglang` package.

    Parameters
    ----------
    bare
        Prefer a linker alone. It is ten times faster to start, and all that a candidate
        needs; a C compiler also finds the C library, which an exported library may need.
    arch
        What the objects were compiled for. For another architecture than this machine's,
        compiler and linker are those of a cross toolchain, as Debian names them; a linker
        alone goes first, since the C library for `arch` may be missing here.

    Raises
    ------
    NoLinkerError, NoCrossLinkerError
        There is none.
    """
    own = os.environ.get("CC", "").strip() if arch == _HERE else ""  # may hold arguments, "ccache gcc"
    cross = f"{arch}-linux-gnu-"
    compilers = _COMPILERS if arch == _HERE else (f"{cross}gcc",)
    linkers = (*_LLD, "ld") if arch == _HERE else (f"{cross}ld", *_LLD)
    compilers = (own, *compilers) if own else compilers
    ordered = (*linkers, *compilers) if bare or arch != _HERE else (*compilers, *linkers)
    for name in ordered:
        program, *arguments = shlex.split(name)
        found = shutil.which(program)
        if found:
            return (found, "-flavor", "gnu") if name == "lld" else (found, *arguments)
    if importlib.util.find_spec("ziglang"):
        zig = (sys.executable, "-m", "ziglang", "cc")
        return zig if arch == _HERE else (*zig, "-target", f"{arch}-linux-gnu")
    tried = ", ".join((*ordered, "python package ziglang"))
    raise NoLinkerError(tried=tried) if arch == _HERE else NoCrossLinkerError(tried=tried, arch=arch)


def link(
    objects: Sequence[Path],
    path: Path,
    bare: bool = False,
    options: Sequence[str] = (),
    arch: str = _HERE,
) -> None:
    """Link `objects` into the shared library `path`; `options` are those of a linker alone."""
    command = find_linker(bare, arch)
    is_linker = Path(command[0]).name.endswith(("ld", "lld"))
    passed = options if is_linker else [f"-Wl,{option}" for option in options]
    arguments = ["-shared", "-o", str(path), *map(str, objects), *passed]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise LinkError(path=path, linker=" ".join(command), detail=done.stderr.strip()[-500:])
