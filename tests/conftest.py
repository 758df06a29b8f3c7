"""What all tests share."""

from __future__ import annotations

import os
from collections import Counter

import pytest

_CASES = 4  # of a test of kernels that always run, and every third of those that follow


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--library", metavar="FOLDER", help="what tests.device.library exported, for the tests marked device"
    )
    parser.addoption("--thorough", action="store_true", help="all cases of tests of kernels")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out two thirds of the later cases of kernels' tests, lest a run outlasts 15 minutes."""
    if config.getoption("--thorough") or len(items) < 1000:
        return
    seen: Counter[str] = Counter()
    left: list[pytest.Item] = []
    for item in items:
        if "tests/schedules/" not in item.nodeid:
            continue
        test = item.nodeid.split("[")[0]
        if seen[test] >= _CASES and (seen[test] - _CASES) % 3:
            left.append(item)
        seen[test] += 1
    config.hook.pytest_deselected(items=left)
    gone = set(left)
    items[:] = [item for item in items if item not in gone]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep measured peaks of a test run to that run."""
    os.environ["TVMOPS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
