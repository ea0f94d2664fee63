"""Runs whose memory has no room for cached activations, as one has that is nearly too small for the network."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import psutil

from mrecg_onnx.machine import Run, cache

if TYPE_CHECKING:
    import pytest

__all__ = ["COMMAND_LINE", "cache_nothing", "have_free"]

#: The command line with such a memory, for a process of its own; options follow.
COMMAND_LINE = (
    sys.executable,
    "-c",
    "from mrecg_onnx.machine import Run; Run.cache_budget = lambda _: 0; from mrecg_onnx.commands import main; main()",
)


def cache_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cached activation goes to files."""
    monkeypatch.setattr(Run, "cache_budget", lambda _: 0)


def have_free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The machine says that ``size`` bytes are free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=size, total=10**13))
    monkeypatch.setattr(cache, "_free_in_group", lambda *_: sys.maxsize)
