"""Workloads from texts and TOML files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvmops.errors import SuiteError, WorkloadError
from tvmops.suites import read_specs
from tvmops.workloads import workload

SQUARE = workload("matmul", m=8, n=8, k=8)
FLAT = workload("matmul", m=1, n=8, k=8)
TABLE = '[[workload]]\nop = "matmul"\nm = 8\nn = 8\nk = 8\n'


def test_texts_and_files_in_order_with_weights_added_up(tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(f"{TABLE}weight = 2.5\n{TABLE}")
    assert read_specs([str(FLAT), str(suite), str(FLAT)]) == {FLAT: 2.0, SQUARE: 3.5}
    assert list(read_specs([str(FLAT), str(suite)])) == [FLAT, SQUARE]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workload = [", "is no TOML"),
        ("", "holds nothing; expected [[workload]] tables"),
        ("[workload]\nop = 1", "holds workload; expected [[workload]] tables"),
        (f'name = "x"\n{TABLE}', "holds name, workload; expected"),
        ("[[workload]]\nm = 1", "workload 1 has no op"),
        (f"{TABLE}weight = 0", "workload 1: weight is 0; expected a number above 0"),
        (f"{TABLE}weight = true", "workload 1: weight is True"),
        (f"{TABLE}{TABLE}p = 1", "workload 2: matmul: field 'p' is 1"),
        (f"{TABLE[:-6]}k = 0", "workload 1: matmul: field 'k' is 0"),
        ("workload = [3]", "workload 1 has no op"),
    ],
)
def test_what_is_wrong_with_a_suite(text: str, said: str, tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(text)
    with pytest.raises(SuiteError) as caught:
        read_specs([str(suite)])
    assert str(caught.value).startswith(f"suite file {suite}: ")
    assert said in str(caught.value)


def test_a_suite_that_is_not_there() -> None:
    with pytest.raises(SuiteError, match="No such file"):
        read_specs(["missing.toml"])


def test_a_text_that_is_no_workload() -> None:
    with pytest.raises(WorkloadError):
        read_specs(["matmul m=8"])
