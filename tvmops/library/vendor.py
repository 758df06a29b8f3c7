"""The half that uses libraries, as a package of another name: nothing else need be installed."""

from __future__ import annotations

import ast
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_HALF = _ROOT / "runtime"


def vendored(package: str) -> dict[str, bytes]:
    """Return the modules that using a library needs, by path below `package`, which they import from."""
    found: dict[Path, str] = {}
    waiting = sorted(_HALF.rglob("*.py"))
    while waiting:
        path = waiting.pop()
        if path in found or path == _ROOT / "__init__.py":
            continue
        source = path.read_text()
        nodes = [node for node in ast.walk(ast.parse(source)) if _is_ours(node)]
        found[path] = _renamed(source, nodes, package)
        waiting.extend(each for node in nodes for each in _imported(node))
    sources = {str(path.relative_to(_ROOT)): source.encode() for path, source in found.items()}
    return {"__init__.py": b'"""tvmops: the half that uses libraries."""\n', **sources}


def _is_ours(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tvmops"


def _imported(node: ast.AST) -> list[Path]:
    """Return the files of a `from tvmops... import ...`: the packages above and what is imported."""
    assert isinstance(node, ast.ImportFrom) and node.module
    parts = node.module.split(".")[1:]
    places = [_ROOT.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    places += [_ROOT.joinpath(*parts, alias.name) for alias in node.names]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return [file for file in files if file.is_file()]


def _renamed(source: str, nodes: list[ast.AST], package: str) -> str:
    lines = source.splitlines(keepends=True)
    for node in nodes:
        assert isinstance(node, ast.ImportFrom)
        lines[node.lineno - 1] = lines[node.lineno - 1].replace("from tvmops", f"from {package}", 1)
    return "".join(lines)
