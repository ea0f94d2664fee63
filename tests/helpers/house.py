"""The house as its files say it: rooms, doors and who imports whom."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import grimp
from draw_architecture import PACKAGE, ROOT, room_of

#: The one room whose files others may import: it lies beside the package in a checkout and knows nothing of it.
OPEN = "converters"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """``lint-imports`` on the package in ``folder``, with the contracts of pyproject.toml."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


def _arrows(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            yield importer, imported


def beside_the_door(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    """Imports of a room's file from outside: (importer, file)."""
    return [
        (importer, imported)
        for importer, imported in _arrows(graph)
        if room_of(imported) not in {room_of(importer), OPEN} and imported.count(".") > 1
    ]


def by_their_own_door(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    """Files that import their own room, (file, room): which file of it they need does not show, and a circle would not either."""
    return [
        (importer, imported)
        for importer, imported in _arrows(graph)
        if imported == f"{PACKAGE}.{room_of(importer)}" != importer
    ]


def by_the_roof(folder: Path) -> list[tuple[str, int, str]]:
    """Uses of the package's public names inside it, (file, line, name): each hides an arrow up to the room that makes it."""
    public, found = set(stub_names(folder / PACKAGE / "__init__.pyi")), []
    for path in sorted((folder / PACKAGE).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == PACKAGE:
                names = [node.attr]
            else:
                continue
            found += [
                (path.relative_to(folder / PACKAGE).as_posix(), node.lineno, name) for name in names if name in public
            ]
    return found


def stub_names(stub: Path) -> list[str]:
    """The names that an ``__init__.pyi`` imports."""
    body = ast.parse(stub.read_text(encoding="utf-8")).body
    return [alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]


@cache
def _taken(path: Path) -> frozenset[tuple[str, str]]:
    """What one file imports from rooms: (room, name)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").startswith(f"{PACKAGE}.")):
            found |= {((node.module or "").removeprefix(f"{PACKAGE}."), alias.name) for alias in node.names}
    return frozenset(found)


def names_taken(files: Iterable[Path], room: str) -> set[str]:
    """The names that ``files`` import from ``room``; of relative imports those of the package's own stub count."""
    return {name for path in files for where, name in _taken(path) if where == room}
