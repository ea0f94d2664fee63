"""Lines that have to fit: what matters stays, names are shortened in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["fitted", "shortened"]

#: Columns below which what is left of a name says nothing.
LEAST_NAME = 7
_BETWEEN = "  "


def shortened(name: str, width: int, mark: str = "…") -> str:
    """``name`` within ``width`` columns: its middle gives way to ``mark``, as the ends tell names apart."""
    from rich.cells import cell_len

    if cell_len(name) <= width:
        return name
    room = width - cell_len(mark)
    if room <= 0:
        return ""
    front, back = name, name[::-1]
    while cell_len(front) > (room + 1) // 2:
        front = front[:-1]
    while cell_len(back) > room - cell_len(front):
        back = back[:-1]
    return front + mark + back[::-1]


def fitted(width: int, kept: Sequence[str], name: str = "", extra: Sequence[str] = (), mark: str = "…") -> str:
    """One line of ``width`` columns: all of ``kept``, then of ``name`` what there is room for, then of ``extra`` what fits whole.

    ``kept`` is never cut: where it is wider, so is the line.
    """
    from rich.cells import cell_len

    line = _BETWEEN.join(kept)
    room = width - cell_len(line) - len(_BETWEEN)
    if name and room >= min(LEAST_NAME, cell_len(name)):
        line += _BETWEEN + shortened(name, room, mark)
    for part in extra:
        if cell_len(line) + len(_BETWEEN) + cell_len(part) <= width:
            line += _BETWEEN + part
    return line
