from __future__ import annotations

from pathlib import Path

import pytest

from tests.libraries import default_record, matmul, one_generic_kernel, write_log
from tests.shared import made_once
from tvmops.library.export import export
from tvmops.targets import target

WIDE, NARROW = "x86-64-v4", "x86-64-v3"


@pytest.fixture(scope="session")
def two_targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library for AVX2 and AVX-512, of two products on the one and one of them on the other.

    It holds the widest generic kernel of each alone.
    """
    return made_once(tmp_path_factory, "two", _two_targets) / "library"


def _two_targets(folder: Path) -> None:
    both, one = matmul(17, 31, 61), matmul(256, 256, 256)
    machines = [target(NARROW), target(WIDE)]
    records = [
        default_record(both, machines[0]),
        *(default_record(work, machines[1]) for work in (both, one)),
    ]
    log = write_log(folder / "log.jsonl", *records)
    with one_generic_kernel(), pytest.warns(UserWarning, match="was not tuned for target"):
        export([both, one], machines, [log], folder / "library")
