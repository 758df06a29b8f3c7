"""The linked folders are found, shipped, and imported by one name; using needs no compiler."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import tvmops

ROOT = Path(__file__).parent.parent
LINKS = ("schedules", "targets", "tuning_logs")
SHIPPED = ("tvmops/schedules/cpu/gemm.py", "tvmops/targets/znver4.toml", "tvmops/tuning_logs/__init__.py")
BUILD = "import setuptools.build_meta as b; print(b.build_sdist('dist'), b.build_wheel('dist'))"


@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_relative_and_resolves(name: str) -> None:
    link = ROOT / "tvmops" / name
    assert link.readlink() == Path("..", name)
    assert link.resolve(strict=True) == ROOT / name


@pytest.mark.parametrize("name", LINKS)
def test_ruff_bans_the_other_name_of_a_linked_folder(name: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", "any.py", "-"]
    done = subprocess.run(command, cwd=ROOT, input=f"import {name}\n", capture_output=True, text=True)
    assert done.returncode == 1
    assert "TID251" in done.stdout and f"import tvmops.{name}" in done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist and a wheel of this tree, built from a copy of it."""
    tree = tmp_path_factory.mktemp("build") / "tree"
    skip = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "quickstart")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=skip)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sdist, wheel = done.stdout.split()[-2:]
    return tree / "dist" / sdist, tree / "dist" / wheel


@pytest.mark.parametrize("path", SHIPPED)
def test_the_wheel_holds_the_linked_folders(distributions: tuple[Path, Path], path: str) -> None:
    assert path in zipfile.ZipFile(distributions[1]).namelist()


@pytest.mark.parametrize("path", SHIPPED)
def test_the_sdist_holds_the_linked_folders(distributions: tuple[Path, Path], path: str) -> None:
    with tarfile.open(distributions[0]) as sdist:
        assert sdist.getmember(f"tvmops-{tvmops.__version__}/{path}").isfile()


def test_the_wheel_holds_every_file_of_the_package(distributions: tuple[Path, Path]) -> None:
    kept = subprocess.run(
        ["git", "ls-files", "tvmops", *LINKS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if kept.returncode != 0:
        pytest.skip("not a git checkout")
    shipped = zipfile.ZipFile(distributions[1]).namelist()
    files = [path if path.startswith("tvmops/") else f"tvmops/{path}" for path in kept.stdout.splitlines()]
    wanted = [path for path in files if Path(path).suffix in (".py", ".toml", ".typed")]
    assert len(wanted) > 60
    assert [path for path in wanted if path not in shipped] == []


@pytest.mark.parametrize("code", ["import tvmops", "import tvmops.cli.main", "import tvmops.report.compare"])
def test_importing_the_light_half_imports_no_compiler(code: str) -> None:
    code = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tvm" not in json.loads(done.stdout)
