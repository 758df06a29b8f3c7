"""Imports run one way, and using a library needs nothing of the half that makes it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tvmops

PACKAGE = Path(tvmops.__file__).parent

LEAVES = {
    "errors",
    "version",
    "signatures",
    "workloads",
    "records",
    "space",
    "manifest",
    "machine",
    "arm",
    "gpu",
    "logs",
    "buckets",
    "suites",
    "quantize",
    "warn",
}
ORDER = ["leaves", "ops targets runtime", "schedules", "measure", "tuner", "library", "report", "cli"]
RANKS = {part: rank for rank, parts in enumerate(ORDER) for part in parts.split()}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name; the links are followed."""
    found = {}
    for folder, _, files in os.walk(PACKAGE, followlinks=True):
        for file in files:
            path = Path(folder, file)
            if path.suffix == ".py":
                parts = ("tvmops", *path.relative_to(PACKAGE).with_suffix("").parts)
                found[".".join(part for part in parts if part != "__init__")] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The modules that `module` imports, anywhere in its code, but not for types alone."""
    tree = ast.parse(modules()[module].read_text())
    return frozenset(name for node in running_code(tree) for name in imported(node))


def running_code(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    for child in ast.iter_child_nodes(node):
        yield from running_code(child)


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module:
        inner = {f"{node.module}.{alias.name}" for alias in node.names}
        submodules = inner & modules().keys()
        yield from submodules
        if inner - submodules:
            yield node.module


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: its folder, or "leaves"."""
    name = module.split(".")[1]
    return "leaves" if name in LEAVES else name


PARTS = [module for module in modules() if module not in ("tvmops", "tvmops.__main__")]


def test_every_part_has_its_place() -> None:
    assert {part_of(module) for module in PARTS} <= RANKS.keys() | {"tuning_logs"}
    assert {"tvmops.schedules.cpu.gemm", "tvmops.targets", "tvmops.runtime.load"} <= set(PARTS)


@pytest.mark.parametrize("module", PARTS)
def test_imports_run_one_way(module: str) -> None:
    part = part_of(module)
    for name in imports(module):
        if name.startswith("tvmops."):
            other = part_of(name)
            assert other == part or RANKS[other] < RANKS[part], f"{module} imports {name}"
        assert name != "tvmops", f"{module} imports the public face"
        assert name.split(".")[0] not in ("schedules", "targets", "tuning_logs", "tests")


@pytest.mark.parametrize("module", PARTS)
def test_what_is_used_without_the_compiler_does_not_import_it(module: str) -> None:
    if part_of(module) in ("leaves", "runtime", "targets"):
        outside = {name.split(".")[0] for name in imports(module)}
        framework = {part for part in ("torch", "jax") if module.startswith(f"tvmops.runtime.{part}")}
        assert not outside & ({"tvm", "xgboost", "torch", "jax"} - framework)
    if part_of(module) == "runtime":
        if not module.startswith(("tvmops.runtime.torch", "tvmops.runtime.jax")):
            assert not [
                name
                for name in imports(module)
                if name.startswith(("tvmops.runtime.torch", "tvmops.runtime.jax"))
            ]
        ours = {part_of(name) for name in imports(module) if name.startswith("tvmops.")}
        assert ours <= {"leaves", "runtime"}


@pytest.mark.parametrize("module", PARTS)
def test_a_strategy_never_measures(module: str) -> None:
    if module.startswith("tvmops.tuner.strategy"):
        assert not [name for name in imports(module) if name.startswith("tvmops.measure")]


def test_no_circles() -> None:
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in finished:
            return
        for name in imports(module):
            if name in modules() and name != module:
                visit(name, (*path, module))
        finished.add(module)

    for module in PARTS:
        visit(module, ())


def in_child(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_next_to_nothing() -> None:
    loaded = in_child("import sys, tvmops; print(*sys.modules)").split()
    assert "tvmops" in loaded
    assert [name for name in loaded if name.startswith("tvmops.")] == ["tvmops.version"]
    assert not {"tvm", "tvm_ffi", "numpy", "xgboost", "torch"} & set(loaded)


def test_the_public_face_holds_what_it_names() -> None:
    for name in tvmops.__all__:
        assert getattr(tvmops, name) is not None
    assert set(tvmops.__all__) == set(dir(tvmops))
    with pytest.raises(AttributeError, match="no attribute 'tuen'"):
        tvmops.tuen  # noqa: B018
