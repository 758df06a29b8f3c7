from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """Run parallel loops on threads: TVM's own count would be one on a machine of two cores."""
    from tvmops.runtime.backend import load_backend, ready_threads

    load_backend()
    ready_threads()
