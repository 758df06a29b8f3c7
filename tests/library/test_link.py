"""Whatever links on the machine is found; where nothing does, the error says what to install."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tvmops
from tvmops.errors import LinkError, NoCrossLinkerError, NoLinkerError
from tvmops.measure.link import find_linker, link
from tvmops.workloads import workload


@pytest.fixture(autouse=True)
def _forget_linkers() -> Iterator[None]:
    find_linker.cache_clear()
    yield
    find_linker.cache_clear()


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH; no $CC, no `ziglang`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else find(name))
    return folder


def install(folder: Path, *names: str) -> None:
    """Put tools there that note how they were called, and make their output."""
    for name in names:
        tool = folder / name
        tool.write_text(f'#!/bin/sh\necho "$0 $*" >> {folder}/calls\n: > "$3"\n')
        tool.chmod(0o755)


@pytest.mark.parametrize(
    "installed, chosen, bare",
    [
        (["cc", "gcc", "clang", "ld.lld", "ld"], "cc", "ld.lld"),
        (["gcc", "ld"], "gcc", "ld"),
        (["clang"], "clang", "clang"),
        (["ld.lld", "ld"], "ld.lld", "ld.lld"),
        (["lld", "ld"], "lld", "lld"),
        (["ld"], "ld", "ld"),
    ],
)
def test_the_best_tool_there_is_is_chosen(tools: Path, installed: list[str], chosen: str, bare: str) -> None:
    install(tools, *installed)
    assert find_linker()[0] == str(tools / chosen)
    assert find_linker(bare=True)[0] == str(tools / bare)


def test_lld_is_told_to_be_a_gnu_linker(tools: Path) -> None:
    install(tools, "lld")
    assert find_linker() == (str(tools / "lld"), "-flavor", "gnu")


def test_cc_goes_before_all_others(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tools, "cc", "my-gcc")
    monkeypatch.setenv("CC", "my-gcc")
    assert find_linker() == (str(tools / "my-gcc"),)


def test_cc_may_hold_arguments(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tools, "cc", "ccache")
    monkeypatch.setenv("CC", "ccache gcc -m64")
    assert find_linker() == (str(tools / "ccache"), "gcc", "-m64")


def test_ziglang_serves_where_nothing_else_does(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "ziglang" else None)
    assert find_linker() == (sys.executable, "-m", "ziglang", "cc")
    install(tools, "ld")
    find_linker.cache_clear()
    assert find_linker() == (str(tools / "ld"),)


@pytest.mark.usefixtures("tools")
def test_without_any_the_error_says_what_to_install(tmp_path: Path) -> None:
    for call in (find_linker, lambda: link([], tmp_path / "k.so")):
        with pytest.raises(NoLinkerError) as caught:
            call()
        text = str(caught.value)
        assert "install a C compiler (gcc or clang), or lld, or `pip install ziglang`" in text
        for tried in ("cc", "gcc", "clang", "ld.lld", "ziglang"):
            assert tried in text


@pytest.mark.usefixtures("tools")
def test_without_any_nothing_is_tuned(tmp_path: Path) -> None:
    """One error, not a log of configs that could not be built."""
    work = workload("matmul", m=8, n=8, k=8)
    with pytest.raises(NoLinkerError):
        tvmops.tune(work, log=tmp_path / "log.jsonl", trials=2)
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_a_tool_installed_later_is_found(tools: Path) -> None:
    with pytest.raises(NoLinkerError):
        find_linker()
    install(tools, "gcc")
    assert find_linker() == (str(tools / "gcc"),)


def test_the_tool_is_called_with_objects_and_output(tools: Path, tmp_path: Path) -> None:
    install(tools, "cc")
    link([tmp_path / "a.o", tmp_path / "b.o"], tmp_path / "k.so")
    expected = f"{tools}/cc -shared -o {tmp_path}/k.so {tmp_path}/a.o {tmp_path}/b.o\n"
    assert (tools / "calls").read_text() == expected


def test_what_a_linker_complains_of_is_passed_on(tmp_path: Path) -> None:
    bad = tmp_path / "bad.o"
    bad.write_text("no object")
    with pytest.raises(LinkError) as caught:
        link([bad], tmp_path / "k.so")
    assert str(tmp_path / "k.so") in str(caught.value)
    assert "bad.o" in str(caught.value)


@pytest.mark.parametrize("bare", [False, True])
def test_the_linkers_of_this_machine_make_a_library(tmp_path: Path, bare: bool) -> None:
    compiler = os.environ.get("CC", "cc")
    source = tmp_path / "k.c"
    source.write_text("int answer(void) { return 42; }")
    try:
        subprocess.run([compiler, "-c", "-fPIC", "-o", str(tmp_path / "k.o"), str(source)], check=True)
    except OSError:
        pytest.skip("needs a C compiler to make an object")
    link([tmp_path / "k.o"], tmp_path / "k.so", bare)
    assert ctypes.CDLL(str(tmp_path / "k.so")).answer() == 42


OTHER = "aarch64" if platform.machine() == "x86_64" else "x86_64"
CROSS = f"{OTHER}-linux-gnu-"


@pytest.mark.parametrize(
    "installed, chosen",
    [
        ([f"{CROSS}gcc", f"{CROSS}ld", "ld.lld"], f"{CROSS}ld"),
        ([f"{CROSS}gcc", "ld.lld"], "ld.lld"),  # without that architecture's C library a compiler can't link
        ([f"{CROSS}gcc"], f"{CROSS}gcc"),
    ],
)
@pytest.mark.parametrize("bare", [False, True])
def test_another_architecture_has_tools_of_its_own(
    tools: Path, monkeypatch: pytest.MonkeyPatch, installed: list[str], chosen: str, bare: bool
) -> None:
    install(tools, "cc", "ld", *installed)
    monkeypatch.setenv("CC", "cc")
    assert find_linker(bare, OTHER) == (str(tools / chosen),)


def test_ziglang_is_told_of_another_architecture(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "ziglang" else None)
    assert find_linker(arch=OTHER)[-2:] == ("-target", f"{OTHER}-linux-gnu")


def test_without_a_cross_linker_the_error_says_what_to_install(tools: Path) -> None:
    install(tools, "cc", "ld")
    with pytest.raises(NoCrossLinkerError, match=f"binutils-{OTHER}-linux-gnu or gcc-{OTHER}-linux-gnu"):
        find_linker(arch=OTHER)
