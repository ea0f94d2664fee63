"""Lines that have to fit: what matters stays, names are shortened in the middle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["LEAST_NAME", "Room", "filled", "fitted", "shortened"]

#: Columns below which what is left of a name says nothing.
LEAST_NAME = 7
_BETWEEN = "  "
#: A name in a table has as many columns, of so many, that the first so many names there differ.
MOST_NAME, COMPARED = 32, 200
#: Columns that a name in a table, or text that goes on in a second line, has at least; and that a word there has at most, longer
#: ones are shortened as names are.
LEAST_CELL, LONGEST_WORD = 16, 24


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


def filled(parts: Iterable[str], width: int) -> list[str]:
    """Lines of ``width`` columns with commas between ``parts``, none of which is broken; one that is wider has its own line."""
    from rich.cells import cell_len

    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1]) + len(", ,") + cell_len(part) <= width:
            lines[-1] += f", {part}"
        else:
            lines = [*lines[:-1], *(f"{line}," for line in lines[-1:]), part]
    return lines


@dataclass(frozen=True)
class Room:
    """How the columns of a table share a width.

    Attributes:
        header: their headings; they are broken between words alone.
        content: rows of cells.
        names: columns whose cells may be shortened in the middle.
        wraps: columns whose cells may go on in a second line.
        mark: what stands for what was cut.
        whole: nothing is cut.
    """

    header: Sequence[str]
    content: Sequence[Sequence[str]]
    names: Sequence[int]
    wraps: Sequence[int]
    mark: str = "…"
    whole: bool = False

    @cached_property
    def natural(self) -> list[int]:
        """What each would take."""
        from rich.cells import cell_len

        return [max(map(cell_len, (self.header[i], *self._cells(i)))) for i in range(len(self.header))]

    @cached_property
    def least(self) -> list[int]:
        """What each needs."""
        return [min(self.natural[i], max(self._least(i), _longest(self.header[i]))) for i in range(len(self.header))]

    def _cells(self, column: int) -> list[str]:
        return [row[column] for row in self.content]

    def _least(self, column: int) -> int:
        from rich.cells import cell_len

        if column in self.names and not self.whole:
            few = list(dict.fromkeys(self._cells(column)))[:COMPARED]
            widths = range(LEAST_CELL, MOST_NAME)
            return next((w for w in widths if len({shortened(name, w) for name in few}) == len(few)), MOST_NAME)
        if column in self.wraps:
            longest = max(map(_longest, self._cells(column)))
            return max(LEAST_CELL, longest if self.whole else min(LONGEST_WORD, longest))
        return max(map(cell_len, self._cells(column)))

    def columns(self, width: int, less: Iterable[str]) -> list[int]:
        """Those that there is room for when the ones called ``less`` go, one after the other; none where that is not enough."""
        kept = list(range(len(self.header)))
        for gone in (None, *less):
            kept = [i for i in kept if self.header[i] != gone]
            if sum(self.least[i] for i in kept) + len(_BETWEEN) * (len(kept) - 1) <= width:
                return kept
        return []

    def shared(self, columns: Sequence[int], width: int) -> dict[int, int]:
        """What each of ``columns`` gets: what it needs, and an equal share of what is left until it has all it would take."""
        given = {i: self.least[i] for i in columns}
        left = width - sum(given.values()) - len(_BETWEEN) * (len(columns) - 1)
        while left > 0 and (short := [i for i in columns if given[i] < self.natural[i]]):
            for i in short[:left]:
                given[i] += 1
            left -= len(short[:left])
        return given

    def cut(self, row: Sequence[str], given: Mapping[int, int]) -> list[str]:
        """A row whose cells fit into the widths ``given``."""
        cells = list(row)
        for i, width in given.items():
            if i in self.names:
                cells[i] = shortened(cells[i], width, self.mark)
            elif i in self.wraps and _longest(cells[i]) > width:
                cells[i] = " ".join(shortened(word, width, self.mark) for word in cells[i].split())
        return cells


def _longest(text: str) -> int:
    """The widest word."""
    from rich.cells import cell_len

    return max(map(cell_len, text.split()), default=0)
