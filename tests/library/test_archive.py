"""A library in one file: the same for the same content, unpacked once, refused when damaged."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

import tvmops
from tests.libraries import default_record, matmul, write_log
from tests.library.conftest import NARROW
from tvmops.errors import (
    ArgumentError,
    CacheError,
    LibraryDamagedError,
    LibraryMissingError,
    LibraryWriteError,
)
from tvmops.library import write
from tvmops.library.archive import write_zip, zip_folder
from tvmops.library.export import export
from tvmops.manifest import FILE, Manifest
from tvmops.runtime import archive, backend
from tvmops.targets import target


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TVMOPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "libraries"


@pytest.fixture
def packed(two_targets: Path, tmp_path: Path) -> Path:
    zip_folder(two_targets, tmp_path / "lib.zip")
    return tmp_path / "lib.zip"


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("load_backend", "load_kernels"):
        monkeypatch.setattr(backend, name, lambda *_, name=name: pytest.fail(f"{name} was called"))


def product(lib: tvmops.Library) -> bool:
    return bool((lib.matmul(np.ones((17, 61), "float32"), np.ones((61, 31), "float32")) == 61).all())


def test_a_place_that_takes_no_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LibraryWriteError, match=r"file/lib\.zip: cannot be written \(File exists\)"):
        write_zip(tmp_path / "file" / "lib.zip", {})


def test_one_file_is_loaded_as_the_folder_is(two_targets: Path, packed: Path, cache: Path) -> None:
    first, second = tvmops.load(packed), tvmops.load(str(packed))
    assert product(first) and product(second)
    assert first.manifest == Manifest.read(two_targets)
    assert set(cache.iterdir()) == {first.path, second.path, cache / "lock"}, "unpacked once"


def test_the_same_library_is_the_same_file(two_targets: Path, packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two_targets, tmp_path / "copy", copy_function=shutil.copyfile))
    zip_folder(copy, tmp_path / "copy.zip")
    assert packed.read_bytes() == (tmp_path / "copy.zip").read_bytes()


def test_export_writes_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "build_library", lambda module, target, path: path.write_bytes(b"so"))
    there, work = target(NARROW), matmul(4, 5, 6)
    log = write_log(tmp_path / "log.jsonl", default_record(work, there))
    path = tmp_path / "new" / "lib.zip"
    for _ in range(2):
        assert export(work, there, [log], path) == path
        assert [each.name for each in path.parent.iterdir()] == ["lib.zip"]
        assert set(ZipFile(path).namelist()) > {FILE, "libtvm_runtime.so"}
    write_zip(tmp_path / "thesis.zip", {"thesis.txt": b"years of work"})
    with pytest.raises(ArgumentError, match="expected a new folder or zip file, or an earlier library"):
        export(work, there, [log], tmp_path / "thesis.zip")


def test_many_may_unpack_at_once(packed: Path, cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: archive.unpacked(packed), range(16)))
    assert {*folders, cache / "lock"} == set(cache.iterdir())
    assert len(set(folders)) == 1
    assert product(tvmops.load(packed))


def test_a_damaged_cache_is_made_again(packed: Path, two_targets: Path) -> None:
    folder = archive.unpacked(packed)
    for damage in (lambda path: path.write_bytes(b"other"), Path.unlink):
        for path in list(folder.iterdir()):
            damage(path)
            assert archive.unpacked(packed) == folder
            assert path.read_bytes() == (two_targets / path.name).read_bytes()


@pytest.mark.usefixtures("nothing_runs")
class TestRefusals:
    def test_a_flipped_byte_or_a_cut(self, packed: Path, two_targets: Path, cache: Path) -> None:
        """Inside every member, and in the list of them at the end."""
        whole = packed.read_bytes()
        with ZipFile(packed) as members:
            places = [info.header_offset + 60 + info.compress_size // 2 for info in members.infolist()]
        for at in (*places, len(whole) - 10):
            altered = bytearray(whole)
            altered[at] ^= 0x5A
            packed.write_bytes(altered)
            with pytest.raises(LibraryDamagedError, match="nothing was executed"):
                tvmops.load(packed)
        for length in (0, 10, len(whole) // 2, len(whole) - 1):
            packed.write_bytes(whole[:length])
            with pytest.raises(LibraryDamagedError, match=f"file '{packed.name}' is no zip file, or was cut"):
                tvmops.load(packed)

    @pytest.mark.parametrize("name", ["../evil.so", "/tmp/evil.so", "sub/evil.so", "..", "sub/"])
    def test_a_path_that_leaves_the_folder(self, packed: Path, cache: Path, name: str) -> None:
        with ZipFile(packed, "a") as members:
            members.writestr(name, b"")
        with pytest.raises(LibraryDamagedError, match=f"file '{name}' is outside the folder; nothing was"):
            tvmops.load(packed)
        assert not cache.exists()

    def test_a_file_that_the_manifest_does_not_name(self, packed: Path) -> None:
        with ZipFile(packed, "a") as members:
            members.writestr("libevil.so", b"")
        with pytest.raises(LibraryDamagedError, match=r"'libevil.so' is not named by the manifest"):
            tvmops.load(packed)

    def test_a_zip_of_something_else(self, tmp_path: Path) -> None:
        write_zip(tmp_path / "thesis.zip", {"thesis.txt": b"years of work"})
        with pytest.raises(LibraryMissingError, match=f"has no {FILE}; expected what `tvmops export` wrote"):
            tvmops.load(tmp_path / "thesis.zip")

    def test_a_cache_that_can_not_be_written(
        self, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TVMOPS_CACHE", str(packed))
        with pytest.raises(CacheError, match=r"\$TVMOPS_CACHE names another place"):
            tvmops.load(packed)
