"""The runtime for another architecture: from a folder that the user names, or from TVM's package by pip."""

from __future__ import annotations

import platform
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from tvmops.errors import RuntimeDownloadError
from tvmops.measure import runtimes
from tvmops.measure.runtimes import runtime_file

OTHER = "libtvm_runtime-other.so"


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TVMOPS_RUNTIMES", raising=False)


def test_this_machine_has_its_own() -> None:
    assert runtime_file(platform.machine()).is_file()


def test_a_folder_that_the_user_names_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMOPS_RUNTIMES", str(tmp_path))
    (tmp_path / OTHER).touch()
    assert runtime_file("other") == tmp_path / OTHER


def test_it_is_downloaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []

    def fetch(version: str, arch: str, folder: Path, name: str) -> None:
        downloads.append((version, arch))
        with zipfile.ZipFile(folder / "apache_tvm.whl", "w") as wheel:
            wheel.writestr("tvm/lib/libtvm_runtime.so", f"runtime for {arch}")

    monkeypatch.setattr(runtimes, "_fetch_wheel", fetch)
    for arch in ("one", "two", "one"):
        assert runtime_file(arch).read_text() == f"runtime for {arch}"
    assert [arch for _, arch in downloads] == ["one", "two"]


def test_without_pip_the_error_names_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(
        RuntimeDownloadError, match=r"\$TVMOPS_RUNTIMES names a folder that holds libtvm_runtime-other"
    ):
        runtime_file("other")
    assert not list(tmp_path.rglob(OTHER))
