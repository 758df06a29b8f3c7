"""What all tests share."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

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


@pytest.fixture(scope="session", autouse=True)
def quick_macros() -> None:
    """Find the parser of a kernel's macro by its frame alone.

    TVM asks for the source of each frame above as well, and these are many under pytest: that took
    longer than all else of making a kernel.
    """
    parser = sys.modules.get("tvm.script.parser.core.parser")
    if parser is not None:
        assert callable(parser.ScriptMacro._find_parser_def)
        parser.ScriptMacro._find_parser_def = _find_parser


def _find_parser(macro: Any) -> Any:
    frame = sys._getframe()
    while frame.f_globals.get(macro.parser_object_name) is None:
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_globals[macro.parser_object_name]
