"""What the checks on a device share: the library, given by `--library` or exported here."""

from __future__ import annotations

from pathlib import Path

import pytest

import tvmops
from tvmops.runtime.load import Library


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a library that `tests.device.library` wrote."""
    given = request.config.getoption("--library")
    if given is not None:
        return Path(given)
    pytest.importorskip("tvm", reason="no --library is given, and there is no compiler to export one")
    from tests.device.library import make_library

    return make_library(tmp_path_factory.mktemp("device") / "library")


@pytest.fixture(scope="session")
def lib(library: Path) -> Library:
    return tvmops.load(library)
