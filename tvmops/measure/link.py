"""Link object files into a shared library with whatever linker the machine has."""

from __future__ import annotations

import functools
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tvmops.errors import LinkError, NoLinkerError

_COMPILERS = ("cc", "gcc", "clang")
_LINKERS = ("ld.lld", "lld", "ld")


@functools.cache
def find_linker(bare: bool = False) -> tuple[str, ...]:
    """Return the command that links: $CC, a C compiler, a linker, or the `ziglang` package.

    Parameters
    ----------
    bare
        Prefer a linker alone. It is ten times faster to start, and all that a candidate
        needs; a C compiler also finds the C library, which an exported library may need.

    Raises
    ------
    NoLinkerError
        There is none.
    """
    own = os.environ.get("CC", "").strip()  # may hold arguments, "ccache gcc"
    compilers = (own, *_COMPILERS) if own else _COMPILERS
    ordered = (*_LINKERS, *compilers) if bare else (*compilers, *_LINKERS)
    for name in ordered:
        program, *arguments = shlex.split(name)
        found = shutil.which(program)
        if found:
            return (found, "-flavor", "gnu") if name == "lld" else (found, *arguments)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "cc")
    raise NoLinkerError(tried=", ".join((*ordered, "python package ziglang")))


def link(objects: Sequence[Path], path: Path, bare: bool = False, options: Sequence[str] = ()) -> None:
    """Link `objects` into the shared library `path`; `options` are those of a linker alone."""
    command = find_linker(bare)
    is_linker = Path(command[0]).name in _LINKERS
    passed = options if is_linker else [f"-Wl,{option}" for option in options]
    arguments = ["-shared", "-o", str(path), *map(str, objects), *passed]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise LinkError(path=path, linker=" ".join(command), detail=done.stderr.strip()[-500:])
