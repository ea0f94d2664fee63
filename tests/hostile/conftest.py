"""Hostile input: every case ends in one line and an exit code, with nothing written, left behind or taken beyond its bounds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers.hostile import Hostile, Zygote

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """The process that cases are forked from."""
    from helpers.hostile import Zygote

    process = Zygote()
    yield process
    process.close()


@pytest.fixture
def hostile(zygote: Zygote, tmp_path: Path, request: pytest.FixtureRequest) -> Hostile:
    """Runs a case in a folder of its own and checks what came of it."""
    from helpers.hostile import Hostile

    return Hostile(zygote, tmp_path / "place", request.path.name)
