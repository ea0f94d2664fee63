"""Tables and figures of a command's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

__all__ = ["grid", "rows", "width"]

# What is between the columns of a table.
_BETWEEN = "   "


def grid(pairs: Mapping[str, str | Sequence[str]]) -> Table:
    """Keys and values without lines; a value of several lines stays in its column, an empty one is left out."""
    from rich.console import Group as Stack
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in pairs.items():
        lines = [value] if isinstance(value, str) else list(value)
        if lines and lines != [""]:
            style = "yellow" if key.startswith("warning") else None
            table.add_row(key, Stack(*lines), style=style)
    return table


def rows(
    title: str, header: Sequence[str], content: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)
) -> RenderableType:
    """A titled table whose columns ``left`` are text; the others are numbers, set to the right."""
    from rich import box
    from rich.console import Group as Stack
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i in left else "right", overflow="fold")
    for row in content:
        table.add_row(*row)
    shown = _Quick(table, header, content, left)
    return Stack(Text(title, style="bold"), shown) if title else shown  # a table's own title wraps at its width


@dataclass(frozen=True)
class _Quick:
    """A table of :func:`rows`, set without rich where that needs no thought: for a file or a pipe, in plain letters, wide enough.

    rich takes .2 ms for each cell, which is half of all the time that ``inspect`` takes on 10,000 nodes.
    """

    table: Table
    header: Sequence[str]
    content: Sequence[Sequence[str]]
    left: Sequence[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        lines = [] if options.is_terminal else self._lines(options.max_width)
        if not lines:
            yield self.table
        for line in lines:
            yield Segment(line)
            yield Segment.line()

    def _lines(self, most: int) -> list[str]:
        """The lines that rich makes of the table less the spaces at their ends; none where they are more than ``most`` wide."""
        every = [list(self.header), *map(list, self.content)]
        if not self.content or any(len(row) != len(self.header) for row in every):
            return []
        if not all(cell.isascii() and cell.isprintable() and cell == cell.strip() for row in every for cell in row):
            return []
        widths = [max(map(len, column)) for column in zip(*every, strict=True)]
        total = sum(widths) + len(_BETWEEN) * (len(widths) - 1)
        if 0 in widths or total + 2 > most:
            return []
        header, *content = [" " + _BETWEEN.join(map(self._padded, range(len(row)), row, widths)) for row in every]
        return ["", header, " " + "\u2500" * total, *content, ""]

    def _padded(self, column: int, cell: str, width: int) -> str:
        return cell.ljust(width) if column in self.left else cell.rjust(width)


def width(bits: int) -> str:
    """A number of bits; 32 is float."""
    return "float" if bits == 32 else str(bits)
