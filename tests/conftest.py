"""What all tests share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep measured peaks of a test run to that run."""
    os.environ["TVMOPS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
