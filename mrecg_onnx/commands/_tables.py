"""Tables and figures of a command's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrecg_onnx.commands._console import VERBOSE, WIDE, asked
from mrecg_onnx.commands._fitting import LEAST_NAME, Room, filled, shortened
from mrecg_onnx.converters.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
    from rich.table import Table

__all__ = ["grid", "rows", "width"]

# What is between the columns of a table.
_BETWEEN = "   "
# What is before the lines of a row that is shown as a list.
_INDENT = "  "


def _uncut(options: ConsoleOptions) -> bool:
    """Whether nobody said how wide it may be: in a file or a pipe names stay as they are."""
    return not options.is_terminal and options.max_width >= WIDE


def grid(pairs: Mapping[str, str | Sequence[str]]) -> RenderableType:
    """Keys and values without lines; a value of several lines stays in its column, an empty one is left out."""
    lines = {key: [value] if isinstance(value, str) else list(value) for key, value in pairs.items()}
    return _Pairs({key: value for key, value in lines.items() if value and value != [""]})


@dataclass(frozen=True)
class _Pairs:
    """What :func:`grid` shows, at the width that there is: keys take a third of it at most."""

    pairs: Mapping[str, Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.console import Group as Stack
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        least, keys = max(LEAST_NAME, options.max_width // 3), list(map(printable, self.pairs))
        # More of them where they were the same otherwise.
        most = next(
            (n for n in range(least, 2 * options.max_width // 3) if len({shortened(k, n) for k in keys}) == len(keys)),
            least,
        )
        for key, value in self.pairs.items():
            style = "yellow" if key.startswith("warning") else None
            table.add_row(key if _uncut(options) else shortened(printable(key), most), Stack(*value), style=style)
        yield table


def rows(
    title: str,
    header: Sequence[str],
    content: Sequence[Sequence[str]],
    *,
    left: Sequence[int] = (0,),
    names: Sequence[int] = (0,),
    wraps: Sequence[int] | None = None,
    less: Sequence[str] = (),
    copied: Sequence[int] = (),
) -> RenderableType:
    """A titled table that keeps to the width of the terminal without breaking a word.

    Where there is too little room, ``names`` are shortened in their middle and ``wraps`` go on in a second line; then columns are
    left out in the order of ``less``, and a line says so; where that is not enough, or the command was asked for
    details, each row becomes a list with all of it. In a file or a pipe nothing is cut, unless ``COLUMNS`` says how wide it is.
    What is ``copied`` is whole everywhere: where it is wider than the terminal that breaks it, and copies it as it is.

    Args:
        title: stands above, below an empty line; may be empty.
        header: headings of the columns.
        content: rows of cells.
        left: columns that are text; the others are numbers, set to the right.
        names: columns of names and paths.
        wraps: columns of words; those of ``left`` that are no names by default.
        less: headings of columns that can be missed, the first to go first.
        copied: columns of commands and options.
    """
    from rich.console import Group as Stack
    from rich.text import Text

    names = [i for i in names if i not in copied]
    words = [i for i in left if i not in names and i not in copied] if wraps is None else wraps
    filled_up = [[*row, *[""] * (len(header) - len(row))] for row in content]
    shown = _Rows(
        header, filled_up, tuple(left), tuple(names), tuple(words), tuple(less), asked(VERBOSE), tuple(copied)
    )
    # A table's own title wraps at its width.
    return Stack(Text(), Text(title, style="bold"), shown) if title else shown


@dataclass(frozen=True)
class _Rows:
    """A table of :func:`rows`, laid out when it is known how wide it may be."""

    header: Sequence[str]
    content: Sequence[Sequence[str]]
    left: tuple[int, ...]
    names: tuple[int, ...]
    wraps: tuple[int, ...]
    less: tuple[str, ...]
    whole: bool
    copied: tuple[int, ...] = ()

    @property
    def table(self) -> Table:
        """As rich sets it where all of it fits, or nothing may be cut."""
        return self._table(range(len(self.header)), self.content, {})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.padding import Padding
        from rich.segment import Segment
        from rich.text import Text

        most = options.max_width
        if not options.is_terminal and (lines := self._lines(most)):
            for line in lines:
                yield Segment(line)
                yield Segment.line()
            return
        cells = [[printable(cell) for cell in row] for row in self.content]
        if _uncut(options) or not cells:
            yield self.table
            return
        room = Room(self.header, cells, self.names, self.wraps, "..." if options.ascii_only else "…", self.whole)
        if sum(room.natural) + len(_BETWEEN) * (len(self.header) - 1) + 2 <= most:
            yield self.table
            return
        columns = room.columns(most - 2, () if self.whole else self.less)
        if not columns:
            yield Text()
            for row in cells:
                yield from self._as_list(row, most - len(_INDENT))
            yield Text()
            return
        given = room.shared(columns, most - 2)
        shown = [room.cut(row, given) for row in cells]
        yield self._table(columns, shown, given)
        missing = [name for i, name in enumerate(self.header) if i not in columns]
        notes = ["names are shortened"] if shown != cells else []
        notes += [f"not shown: {'; '.join(missing)}"] if missing else []
        if notes:
            yield Padding(Text(f"{'; '.join(notes)} (-v or a wider terminal shows all)\n", style="dim"), (0, 0, 0, 1))

    def _table(self, columns: Iterable[int], content: Sequence[Sequence[str]], given: Mapping[int, int]) -> Table:
        """The table of some columns; narrow where they are ``given`` widths."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=bool(given))
        for i in columns:
            justify: JustifyMethod = "left" if i in self.left else "right"
            table.add_column(self.header[i], justify=justify, overflow="fold", width=given.get(i))
        for row in content:
            table.add_row(*(row[i] for i in columns))
        return table

    def _as_list(self, row: Sequence[str], most: int) -> Iterator[RenderableType]:
        """A row's name, and below it all else with its heading."""
        from rich.padding import Padding
        from rich.text import Text

        named = min(self.names, default=0) + 1
        yield Text(" ".join(filter(None, row[:named])), style="bold", overflow="ignore" if self.copied else None)
        pairs = zip(self.header[named:], row[named:], strict=True)
        for line in filled([f"{name}: {cell.strip()}" if name else cell for name, cell in pairs if cell.strip()], most):
            yield Padding(Text(line), (0, 0, 0, len(_INDENT)))

    def _lines(self, most: int) -> list[str]:
        """The lines that rich makes of the table less the spaces at their ends; none where they are more than ``most`` wide.

        For a file or a pipe, in plain letters. rich takes .2 ms for each cell, which is half of all the time that ``inspect``
        takes on 10,000 nodes.
        """
        every = [list(self.header), *map(list, self.content)]
        if not self.content:
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
