from __future__ import annotations

import pytest

from tvmops import gpu
from tvmops.machine import missing_features, this_machine


@pytest.mark.parametrize(
    "here, code, runs",
    [
        ((9, 0), "sm_90a", True),
        ((9, 0), "sm_90", True),
        ((9, 0), "sm_80", False),  # machine code of another major number
        ((8, 9), "sm_80", True),
        ((8, 0), "sm_86", False),
        ((10, 0), "sm_90a", False),
        ((10, 0), "sm_100a", True),
        ((9, 0), "avx2", False),
    ],
)
def test_code_runs_where_its_capability_is(
    here: tuple[int, int], code: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "capabilities", lambda: (here,))
    assert gpu.runs(code) is runs
    assert missing_features([code], this_machine()) == (
        [] if runs or code in this_machine().features else [code]
    )


def test_without_a_device_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "capabilities", tuple)
    assert not gpu.runs("sm_90a")
