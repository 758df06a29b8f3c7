"""Make a wheel of a library: `pip install` it, `import mine`, call `mine.ops.matmul(a, b)`."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import keyword
import os
import re
from pathlib import Path

import tvm

from tvmops.errors import ArgumentError
from tvmops.library.archive import write_zip
from tvmops.library.vendor import vendored
from tvmops.manifest import Manifest
from tvmops.runtime.backend import CUDA_RUNTIME_FILE
from tvmops.version import VERSION

_OLDEST_GLIBC = 17  # 2.17: what the name manylinux_2_17 promises, the oldest that pip knows widely
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?")
_LICENCES = ("LICENSE", "NOTICE")  # of TVM: its runtime lies in the wheel; ours is the same licence
_INIT = '''\
"""Tuned kernels: call `ops.matmul(a, b)` and such. `print(ops.variants)` says what they were built for."""

from pathlib import Path

from {name}._tvmops.runtime.load import load

__version__ = "{version}"

ops = load(Path(__file__).parent / "library")
'''
_METADATA = """\
Metadata-Version: 2.4
Name: {name}
Version: {version}
Summary: Kernels tuned and exported by tvmops {tvmops}
License-File: LICENSE
License-File: NOTICE
Requires-Python: >=3.10
Requires-Dist: numpy >= 1.26
Requires-Dist: apache-tvm-ffi == {ffi}
"""


def write_wheel(
    library: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    name: str,
    version: str = "0.1.0",
) -> Path:
    """Write the library folder `library` as a wheel into `folder`; return the wheel's path.

    It needs NumPy and apache-tvm-ffi where it is installed, and nothing else: the half of
    tvmops that uses libraries lies in it, under a name of its own.

    Parameters
    ----------
    name
        Of the package, as it is imported.
    version
        Of the package: "1.2", "1.2.3rc1".

    Raises
    ------
    ArgumentError
        `name` or `version` is none.
    """
    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        expected = "the name of a Python package, in lower case"
        raise ArgumentError(argument="name", value=name, expected=expected)
    if not _VERSION.fullmatch(version):
        raise ArgumentError(argument="version", value=version, expected="a version such as '1.2.3'")
    manifest = Manifest.read(Path(library))
    tags = [f"py3-none-{platform}" for platform in _platforms(Path(library), manifest)]
    wheel = f"Wheel-Version: 1.0\nGenerator: tvmops ({VERSION})\nRoot-Is-Purelib: false\n"
    ffi = importlib.metadata.version("apache-tvm-ffi")  # the one whose ABI the runtime was built for
    content = {
        f"{name}/__init__.py": _INIT.format(name=name, version=version).encode(),
        **{f"{name}/_tvmops/{path}": code for path, code in vendored(f"{name}._tvmops").items()},
        **{f"{name}/library/{path.name}": path.read_bytes() for path in Path(library).iterdir()},
    }
    info = f"{name}-{version}.dist-info"
    metadata = _METADATA.format(name=name, version=version, tvmops=VERSION, ffi=ffi)
    content[f"{info}/METADATA"] = metadata.encode()
    for file in _LICENCES:
        content[f"{info}/licenses/{file}"] = Path(tvm.__file__).with_name(file).read_bytes()
    content[f"{info}/WHEEL"] = "".join([wheel, *(f"Tag: {tag}\n" for tag in tags)]).encode()
    record = [f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in sorted(content.items())]
    content[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    platforms = ".".join(tag.removeprefix("py3-none-") for tag in tags)
    path = Path(folder) / f"{name}-{version}-py3-none-{platforms}.whl"
    write_zip(path, content)
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _platforms(library: Path, manifest: Manifest) -> list[str]:
    """Return the platform tags of a library: the oldest glibc that its files run with, by architecture.

    Symbols of glibc carry the version that they came with in the text of a shared library.
    """
    files: dict[str, set[str]] = {}
    for variant in manifest.variants:
        files.setdefault(variant.arch, set()).update({variant.module, variant.runtime})
        if variant.device == "cuda":
            files[variant.arch].add(CUDA_RUNTIME_FILE)
    found = []
    for arch, names in sorted(files.items()):
        code = b"".join((library / name).read_bytes() for name in names & manifest.files.keys())
        glibc = max([_OLDEST_GLIBC, *map(int, re.findall(rb"\0GLIBC_2\.(\d+)(?=[\0.])", code))])
        found.append(f"manylinux_2_{glibc}_{arch}")
    return found
