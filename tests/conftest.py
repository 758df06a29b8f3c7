"""What all tests share."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--library", metavar="FOLDER", help="what tests.device.library exported, for the tests marked device"
    )


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep measured peaks of a test run to that run."""
    os.environ["TVMOPS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
