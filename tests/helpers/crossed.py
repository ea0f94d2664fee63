"""Tests of all pairs of two lists: plain pytest takes each member of both once or more, ``-m slow`` the other pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from _pytest.mark.structures import ParameterSet

__all__ = ["crossed", "diagonal"]


def diagonal(first: Sequence[object], second: Sequence[object]) -> set[tuple[int, int]]:
    """Pairs of indices in which each index of both lists stands, as few as there are members of the longer one."""
    return {(i % len(first), i % len(second)) for i in range(max(len(first), len(second)))}


def crossed(first: Iterable[object], second: Iterable[object], *, flat: bool = False) -> list[ParameterSet]:
    """All pairs as parameters of a test; ``flat``: members of ``second`` are tuples, each of whose items is a parameter."""
    rows, columns = list(first), list(second)
    fast = diagonal(rows, columns)
    return [
        pytest.param(
            row,
            *(column if flat and isinstance(column, tuple) else (column,)),
            marks=[] if (i, j) in fast else pytest.mark.slow,
        )
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
