"""The house as its files say it: rooms, doors and who imports whom."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import grimp

PACKAGE = "mrecg_onnx"
ROOT = Path(__file__).parents[2]
#: The one room whose files others may import: it lies beside the package in a checkout and knows nothing of it.
OPEN = f"{PACKAGE}.converters"


def install(folder: Path) -> Path:
    """Copies the package into ``folder`` as it is installed (converters inside it), with the contracts beside it."""
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=without)
    shutil.copytree(ROOT / "converters", folder / PACKAGE / "converters", ignore=without)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@contextmanager
def _found_in(folder: Path) -> Iterator[None]:
    """Lets ``find_spec`` find the package in ``folder``, not the one that this process has imported."""
    imported = sys.modules.pop(PACKAGE, None)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if imported is not None:
            sys.modules[PACKAGE] = imported


def import_graph(folder: Path) -> grimp.ImportGraph:
    """Every import of the package in ``folder``; nothing of it is run."""
    with _found_in(folder):
        return grimp.build_graph(PACKAGE, cache_dir=None)


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """``lint-imports`` on the package in ``folder`` with the contracts beside it."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


def room_of(module: str) -> str:
    """``mrecg_onnx.data.labels`` lies in ``mrecg_onnx.data``; a file that lies in no room is its own."""
    return ".".join(module.split(".")[:2])


def _arrows(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            yield importer, imported


def beside_the_door(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    """Imports of a room's file from outside: (importer, file)."""
    return [
        (importer, imported)
        for importer, imported in _arrows(graph)
        if room_of(imported) not in {room_of(importer), imported, OPEN}
    ]


def by_their_own_door(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    """Files that import their own room, (file, room): which file of it they need does not show, and a circle would not either."""
    return [(importer, imported) for importer, imported in _arrows(graph) if imported == room_of(importer) != importer]


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
