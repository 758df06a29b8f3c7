"""A wheel needs NumPy and tvm-ffi alone: proven where there is nothing else, and no compiler."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

import tvmops
from tests.library.conftest import NARROW, WIDE
from tvmops.errors import ArgumentError
from tvmops.library.vendor import vendored
from tvmops.library.wheel import write_wheel
from tvmops.machine import this_machine
from tvmops.manifest import Manifest
from tvmops.runtime.backend import RUNTIME_FILE
from tvmops.runtime.variants import MASK
from tvmops.targets import target

needs_avx2 = pytest.mark.skipif(bool(target(NARROW).missing(this_machine())), reason="needs AVX2")
TVMOPS = {"PYTHONPATH": str(Path(tvmops.__file__).parents[1])}
Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def wheel(two_targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheel(two_targets, tmp_path_factory.mktemp("dist"), "mine", "1.2.3")


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Run code in an environment of NumPy, tvm-ffi and the wheel, with no program on the PATH."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    for name in ("numpy", "apache-tvm-ffi", "typing_extensions"):
        installed = importlib.metadata.distribution(name)
        for top in {path.parts[0] for path in installed.files or () if path.parts[0] != ".."} - {
            "__pycache__"
        }:
            (site / top).symlink_to(Path(str(installed.locate_file(top))))
    own = str(folder / "venv" / "bin" / "python")
    options = ["--no-index", "--no-deps", "--no-compile", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "--python", own, "install", *options, str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "empty").mkdir()

    def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [own, "-W", "ignore", "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=folder / "empty",
            env={"PATH": str(folder / "empty"), "HOME": str(folder / "empty"), **environment},
        )

    return run


BARE = """
import importlib.util, shutil, sys
for name in ("tvm", "torch", "xgboost"):
    assert importlib.util.find_spec(name) is None, name
assert not any(map(shutil.which, ("cc", "gcc", "clang", "ld", "nvcc")))
import numpy
def right(lib):
    for m, n, k in [(17, 31, 61), (256, 256, 256), (5, 6, 7)]:
        a, b = (numpy.random.default_rng(0).random(shape, dtype="float32") for shape in ((m, k), (k, n)))
        assert abs(lib.matmul(a, b) - a.astype("float64") @ b).max() < 1e-3
    return lib.variants.taken["cpu"].target
"""


@needs_avx2
def test_it_is_installed_and_called_with_numpy_and_tvm_ffi_alone(python: Python) -> None:
    code = f"{BARE}\nimport mine; print(right(mine.ops), mine.__version__, mine.ops.path)"
    done = python(f"{code}\nassert not [name for name in sys.modules if name.startswith('tvmops')]")
    assert done.returncode == 0, done.stderr
    serves = NARROW if target(WIDE).missing(this_machine()) else WIDE
    assert done.stdout.split()[:2] == [serves, "1.2.3"]
    assert done.stdout.strip().endswith("site-packages/mine/library")
    assert python(f"{BARE}\nimport mine; print(right(mine.ops))", **{MASK: "avx512*"}).stdout == f"{NARROW}\n"


LOAD = f"{BARE}\nimport tvmops\nprint(right(tvmops.load(sys.argv[1])))"


@needs_avx2
def test_a_folder_copied_elsewhere_brings_all_that_it_needs(
    python: Python, two_targets: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(two_targets, tmp_path / "elsewhere")
    done = python(
        f"{LOAD}\nassert sys.argv[1] + '/{RUNTIME_FILE}' in open('/proc/self/maps').read()", copy, **TVMOPS
    )
    assert done.returncode == 0, done.stderr


def test_without_its_runtime_a_library_is_refused_and_does_not_crash(
    python: Python, two_targets: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(two_targets, tmp_path / "elsewhere"))
    (copy / RUNTIME_FILE).unlink()
    done = python(LOAD, copy, **TVMOPS)
    assert done.returncode == 1
    assert f"LibraryDamagedError: library {copy}: file '{RUNTIME_FILE}' is missing" in done.stderr
    manifest = Manifest.read(copy)
    files = {name: digest for name, digest in manifest.files.items() if name != RUNTIME_FILE}
    dataclasses.replace(manifest, files=files).write(copy)
    done = python(LOAD, copy, **TVMOPS)
    assert done.returncode == 1, "a segfault would be a negative code"
    needs = f"its kernels need the TVM runtime '{RUNTIME_FILE}', which is not there"
    assert done.stderr.splitlines()[-1].endswith(f"RuntimeMissingError: library {copy}: {needs}")


def test_the_wheel_says_what_it_is_and_needs(wheel: Path, two_targets: Path) -> None:
    match = re.fullmatch(r"mine-1\.2\.3-(py3-none-manylinux_2_(\d+)_x86_64)\.whl", wheel.name)
    assert match
    glibc = int(match[2])
    assert 17 <= glibc <= int(os.confstr("CS_GNU_LIBC_VERSION").rpartition(".")[2])  # type: ignore[union-attr]
    with ZipFile(wheel) as content:
        names = content.namelist()
        tags = content.read("mine-1.2.3.dist-info/WHEEL").decode()
        metadata = content.read("mine-1.2.3.dist-info/METADATA").decode()
        record = content.read("mine-1.2.3.dist-info/RECORD").decode()
    assert f"\nTag: {match[1]}\n" in tags
    needs = re.findall(r"^Requires-Dist: ([\w-]+)", metadata, re.MULTILINE)
    assert needs == ["numpy", "apache-tvm-ffi"]
    assert {line.partition(",")[0] for line in record.splitlines()} == set(names)
    assert {"mine-1.2.3.dist-info/licenses/LICENSE", "mine-1.2.3.dist-info/licenses/NOTICE"} < set(names)
    assert {f"mine/library/{path.name}" for path in two_targets.iterdir()} < set(names)


def test_the_tag_is_that_of_the_newest_symbol(two_targets: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two_targets, tmp_path / "library"))
    module = copy / Manifest.read(copy).variants[1].module
    module.write_bytes(module.read_bytes() + b"\0GLIBC_2.39\0GLIBC_2.4.5\0")
    assert write_wheel(copy, tmp_path, "mine").name == "mine-0.1.0-py3-none-manylinux_2_39_x86_64.whl"


def test_a_library_for_two_architectures_is_one_wheel_for_both(two_targets: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two_targets, tmp_path / "library"))
    manifest = Manifest.read(copy)
    narrow, wide = manifest.variants
    other = dataclasses.replace(wide, arch="aarch64", runtime="libtvm_runtime-aarch64.so")
    (copy / other.runtime).write_bytes(b"\0GLIBC_2.18\0")
    files = {**manifest.files, other.runtime: ""}
    dataclasses.replace(manifest, variants=(narrow, other), files=files).write(copy)
    name = write_wheel(copy, tmp_path, "mine").name
    assert re.fullmatch(r"mine-0\.1\.0-py3-none-manylinux_2_\d+_aarch64\.manylinux_2_\d+_x86_64\.whl", name)


def test_the_half_that_makes_libraries_stays_at_home() -> None:
    modules = vendored("mine._tvmops")
    assert {"runtime/load.py", "manifest.py", "signatures/__init__.py", "errors.py"} <= modules.keys()
    assert not [path for path in modules if path.startswith(("tuner/", "measure/", "library/", "schedules/"))]
    assert not [path for path, code in modules.items() if re.search(rb"^\s*(from|import) tvmops", code, re.M)]


@pytest.mark.parametrize("name", ["", "my-lib", "Mine", "a.b", "1st", "class", "../mine", "m\u00edo"])
def test_a_name_that_can_not_be_imported_is_refused(two_targets: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="expected the name of a Python package, in lower case"):
        write_wheel(two_targets, tmp_path, name)


@pytest.mark.parametrize("version", ["", "one", "1.", "1-2", "1/2", "v1"])
def test_a_version_that_is_none_is_refused(two_targets: Path, tmp_path: Path, version: str) -> None:
    with pytest.raises(ArgumentError, match="expected a version such as"):
        write_wheel(two_targets, tmp_path, "mine", version)
