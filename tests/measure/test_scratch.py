"""The scratch folder goes with its run, even with one that was killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tvmops.measure.failure import describe, one_line, tells_of_memory
from tvmops.measure.scratch import Scratch

CHILD = """
import os, signal, sys, tempfile
tempfile.tempdir = sys.argv[1]
from tvmops.measure.scratch import Scratch
scratch = Scratch()
(scratch.path / "kernel.so").write_text("x")
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def run_child(folder: Path, ending: str) -> None:
    subprocess.run([sys.executable, "-c", CHILD + ending, str(folder)], timeout=60, stderr=subprocess.DEVNULL)


def test_a_closed_scratch_is_gone(temporary: Path) -> None:
    scratch = Scratch()
    (scratch.path / "folder").mkdir()
    scratch.close()
    scratch.close()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("ending", ["", "raise ValueError", "sys.exit(3)"])
def test_a_run_that_ends_leaves_nothing(temporary: Path, ending: str) -> None:
    run_child(temporary, ending)
    assert list(temporary.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next(temporary: Path) -> None:
    run_child(temporary, "os.kill(os.getpid(), signal.SIGKILL)")
    assert len(list(temporary.iterdir())) == 1
    scratch = Scratch()
    assert list(temporary.iterdir()) == [scratch.path]
    scratch.close()


def test_the_folder_of_a_run_that_lives_is_left_alone(temporary: Path) -> None:
    first = Scratch()
    run_child(temporary, "")
    second = Scratch()
    assert first.path.is_dir()
    first.close()
    second.close()


@pytest.mark.parametrize("name", ["tvmops-cuda-x", "tvmops-", "other"])
def test_what_is_no_scratch_folder_is_left_alone(temporary: Path, name: str) -> None:
    (temporary / name).mkdir()
    Scratch().close()
    assert (temporary / name).is_dir()


def test_a_failure_is_told_on_one_line_with_its_end() -> None:
    error = ValueError("what\n  is wrong: " + "x " * 5000 + "the\treason")
    text = describe(error)
    assert text.startswith("ValueError: what is wrong: x x")
    assert text.endswith("x the reason")
    assert len(text) < 650
    assert one_line("short") == "short"


def test_words_of_memory_are_known() -> None:
    assert tells_of_memory("terminate called after throwing an instance of 'std::bad_alloc'")
    assert tells_of_memory(describe(MemoryError()))
    assert not tells_of_memory("bad luck")
