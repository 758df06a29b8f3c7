"""A library is whole and fits this machine, or nothing of it is executed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tvmops
from tests.runtime.conftest import LIBRARY
from tvmops.errors import (
    LibraryDamagedError,
    LibraryError,
    LibraryMissingError,
    LibraryTargetError,
    LibraryVersionError,
    RuntimeMissingError,
)
from tvmops.manifest import FILE, SCHEMA, Manifest
from tvmops.runtime import backend

ROOT = Path(tvmops.__file__).parents[1]


@pytest.fixture
def copy(library: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(library, tmp_path / "copy"))


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("load_backend", "load_kernels"):
        monkeypatch.setattr(backend, name, lambda *_, name=name: pytest.fail(f"{name} was called"))


def rewritten(folder: Path, files: dict[str, str] | None = None, **changes: object) -> Path:
    """Change the only variant, and the digests, as an exporter for another machine would have them."""
    manifest = Manifest.read(folder)
    variant = dataclasses.replace(manifest.variants[0], **changes)  # type: ignore[arg-type]
    files = manifest.files if files is None else files
    dataclasses.replace(manifest, variants=(variant,), files=files).write(folder)
    return folder


@pytest.mark.usefixtures("nothing_runs")
class TestRefusals:
    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(LibraryMissingError, match=f"{tmp_path}/nowhere: is no folder"):
            tvmops.load(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError):
            tvmops.load(str(tmp_path / "nowhere"))

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(LibraryMissingError, match=f"has no {FILE}"):
            tvmops.load(tmp_path)

    def test_a_missing_file(self, copy: Path) -> None:
        for name in Manifest.read(copy).files:
            (copy / name).rename(copy / "away")
            with pytest.raises(LibraryDamagedError, match=f"file '{name}' is missing; nothing was executed"):
                tvmops.load(copy)
            (copy / "away").rename(copy / name)

    @pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
    def test_one_byte_flipped_in_any_file(self, copy: Path, where: float) -> None:
        names = [*Manifest.read(copy).files, FILE]
        assert len(names) == len(list(copy.iterdir())) == 3
        for name in names:
            path = copy / name
            whole = path.read_bytes()
            altered = bytearray(whole)
            at = int(where * (len(whole.rstrip()) - 1))
            altered[at] ^= 0x5A
            path.write_bytes(altered)
            with pytest.raises(LibraryDamagedError, match=f"file '{name}' .*; nothing was executed"):
                tvmops.load(copy)
            path.write_bytes(whole)

    def test_any_file_cut_short(self, copy: Path) -> None:
        for name in [*Manifest.read(copy).files, FILE]:
            path = copy / name
            whole = path.read_bytes()
            for length in (0, len(whole) // 2, len(whole.rstrip()) - 1):
                path.write_bytes(whole[:length])
                with pytest.raises(LibraryDamagedError, match=f"file '{name}'"):
                    tvmops.load(copy)
            path.write_bytes(whole)

    def test_a_newer_schema(self, copy: Path) -> None:
        table = json.loads((copy / FILE).read_text())
        (copy / FILE).write_text(json.dumps({**table, "schema": SCHEMA + 1}))
        with pytest.raises(LibraryVersionError, match=f"is {SCHEMA + 1}; this tvmops reads {SCHEMA}"):
            tvmops.load(copy)

    def test_another_architecture(self, copy: Path) -> None:
        with pytest.raises(LibraryTargetError, match=r"this machine \(.*\) lacks architecture pdp11 for"):
            tvmops.load(rewritten(copy, arch="pdp11"))

    def test_a_feature_that_this_machine_lacks(self, copy: Path) -> None:
        needs = (*Manifest.read(copy).variants[0].needs, "warp")
        with pytest.raises(LibraryTargetError, match=r"holds znver9; this machine .* lacks warp for znver9"):
            tvmops.load(rewritten(copy, target="znver9", needs=needs))


def test_each_refusal_is_one_line(copy: Path) -> None:
    (copy / FILE).write_text("{")
    with pytest.raises(LibraryError) as caught:
        tvmops.load(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_a_library_without_a_runtime_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels whose runtime is not there would crash without a word."""
    monkeypatch.setattr(backend, "_is_loaded", lambda: False)
    monkeypatch.setattr(backend, "_installed_runtime", lambda: None)
    monkeypatch.setattr(backend, "load_kernels", lambda path: pytest.fail("kernels were loaded"))
    manifest = Manifest.read(copy)
    name = manifest.variants[0].runtime
    (copy / name).unlink()
    files = {each: digest for each, digest in manifest.files.items() if each != name}
    with pytest.raises(RuntimeMissingError, match=f"need the TVM runtime '{name}'"):
        tvmops.load(rewritten(copy, files))


def in_child(code: str, *arguments: object, **environment: str) -> str:
    """Run `code` in a process that fails if it ever imports the compiler."""
    code = f"import sys\nsys.modules['torch'] = None\n{code}\nassert 'tvm' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CALL = """
import numpy, tvmops
lib = tvmops.load(sys.argv[1])
for m, n, k in [(8, 8, 8), (17, 31, 61), (256, 256, 256), (5, 6, 7)]:
    a, b = (numpy.random.default_rng(0).random(shape, dtype="float32") for shape in ((m, k), (k, n)))
    assert abs(lib.matmul(a, b) - a.astype("float64") @ b).max() < 1e-3
print(lib.misses())
"""


def test_a_library_is_used_without_the_compiler(library: Path) -> None:
    assert in_child(CALL, library) == "{'matmul m=5 n=6 k=7 dtype=float32': 1}\n"


def test_a_library_brings_the_runtime_that_it_needs(library: Path) -> None:
    """Where apache-tvm is not installed, and from wherever the folder lies."""
    hidden = "import importlib.util\nfind = importlib.util.find_spec\n"
    hidden += "importlib.util.find_spec = lambda name, *rest: None if name == 'tvm' else find(name, *rest)\n"
    checks = "maps = open('/proc/self/maps').read()\nassert sys.argv[1] + '/libtvm_runtime.so' in maps\n"
    assert in_child(hidden + CALL + checks, library.resolve())


def test_a_relative_path_and_a_link_are_followed(library: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(library)
    code = "import os; os.chdir(sys.argv[2])\n" + CALL
    assert in_child(code, "./link", tmp_path, PYTHONPATH=str(ROOT))


def test_the_tests_of_calls_pass_without_the_compiler(library: Path) -> None:
    """Once more, in a process that has the library alone."""
    files = ["test_arrays.py", "test_dispatch.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parent,
        env={**os.environ, LIBRARY: str(library), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_two_libraries_live_side_by_side(library: Path, copy: Path) -> None:
    import numpy as np

    a = np.ones((8, 8), "float32")
    first, second = tvmops.load(library), tvmops.load(copy)
    assert (first.matmul(a, a) == second.matmul(a, a)).all()
    assert first.path != second.path
