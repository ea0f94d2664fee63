"""Node and packages of it, where a machine has them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def node_modules(package: str) -> Path:
    """The folder node_modules that holds ``package``; skips the test where there is none."""
    named = os.environ.get("MRECG_NODE_MODULES")
    found = Path(named) if named else ROOT / "samples" / "web" / "node_modules"
    if not (found / package / "package.json").is_file():
        pytest.skip(
            f"no {package}: npm install --no-save --prefix samples/web {package}, or its node_modules in MRECG_NODE_MODULES"
        )
    return found


def node() -> str:
    """The program; skips the test where there is none."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("no Node.js on the path")
    return found
