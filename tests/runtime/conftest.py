from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import tvmops
from tests.shared import made_once

LIBRARY = "TVMOPS_TEST_LIBRARY"  # where a parent test run has exported one
if LIBRARY in os.environ:
    sys.modules["torch"] = None  # type: ignore[assignment]  # tvm_ffi imports it for seconds


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a library that holds `tests.libraries.TUNED`."""
    if LIBRARY in os.environ:
        return Path(os.environ[LIBRARY])
    from tests.libraries import TUNED, exported

    def make(folder: Path) -> None:
        exported(folder / "library", list(TUNED), tvmops.target("native"))

    return made_once(tmp_path_factory, "tuned", make) / "library"


@pytest.fixture
def lib(library: Path) -> tvmops.Library:
    """That library, loaded anew: nothing was called on it yet."""
    return tvmops.load(library)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a test run that was given its library, nothing may have imported the compiler."""
    if LIBRARY in os.environ and "tvm" in sys.modules:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
