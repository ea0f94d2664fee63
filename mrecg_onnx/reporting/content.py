"""What a page is made of: plain parts that any command fills and one template draws.

Text in them is what it is: names of a model, messages, paths. The template escapes all of it; only :attr:`Figure.drawings` are
markup, and :mod:`mrecg_onnx.reporting.figures` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mrecg_onnx.converters.text import printable

__all__ = [
    "DASH",
    "Cell",
    "Column",
    "Commands",
    "Fact",
    "Figure",
    "Page",
    "Pairs",
    "Part",
    "Picture",
    "Pictures",
    "Section",
    "Table",
    "UnitBox",
    "Units",
    "shown",
]

#: Stands where nothing is known, and between the ends of a range.
DASH = "\N{EN DASH}"
#: Characters of a name that are shown, and those that are kept for whoever points at it.
SHOWN, KEPT = 64, 240
#: Columns from which on they are narrow.
WIDE = 10


def shown(text: str, most: int = SHOWN) -> str:
    """A name as it is shown: control characters written out, and shortened in the middle."""
    text = printable(text[: 4 * KEPT] + text[-KEPT:] if len(text) > 5 * KEPT else text)
    if len(text) <= most:
        return text
    ahead = most // 3
    return f"{text[:ahead]}…{text[len(text) - (most - ahead - 1) :]}"


@dataclass(frozen=True)
class Fact:
    """A figure of the headline: what it is, the figure, and a line below it; ``tone`` is "", "good" or "bad"."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        kind: "text", or "number", which is set to the right and sorted as such.
        hint: what it means, for whoever points at the heading.
        minor: left out on a phone.
    """

    title: str
    kind: str = "text"
    hint: str = ""
    minor: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        order: what it is sorted by, where that is not the text.
        share: length of a bar behind it, 0 to 1; None without.
        heat: how strongly it is coloured, 0 to 1; None without.
        title: more, for whoever points at it.
        tone: "", "bad" or "faint".
    """

    text: str
    order: float | None = None
    share: float | None = None
    heat: float | None = None
    title: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; ``filtered`` has a field to filter them, ``note`` stands below.

    The column that says what a row is stays where it is when the others are scrolled sideways.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    filtered: bool = False
    note: str = ""
    kind: str = "table"

    @property
    def filled(self) -> Table:
        """It without columns in which no row says anything."""
        kept = [i for i in range(len(self.columns)) if any(row[i].text not in {"", DASH} for row in self.rows)]
        if not self.rows or len(kept) == len(self.columns):
            return self
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows)

    @property
    def key(self) -> int:
        """The column that says what a row is: the first text that a phone shows, too; -1 without one."""
        return next((i for i, c in enumerate(self.columns) if c.kind == "text" and not c.minor), -1)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Columns that a phone does not show, but for numbers of rows."""
        return tuple(c.title for c in self.columns if c.minor and c.title != "#")

    @property
    def wide(self) -> bool:
        """Its columns have to be narrow to stand beside each other."""
        return len(self.columns) >= WIDE


@dataclass(frozen=True)
class Figure:
    """A drawing, wide and narrow (SVG text that is trusted), with a caption."""

    drawings: tuple[str, ...]
    caption: str = ""
    title: str = ""
    small: bool = False
    kind: str = "figure"


@dataclass(frozen=True)
class Pairs:
    """Names with values, under a heading where there is one; those that are marked are not the defaults."""

    rows: tuple[tuple[str, str, bool], ...]
    title: str = ""
    kind: str = "pairs"


@dataclass(frozen=True)
class Commands:
    """What is to be copied, whole, with what it is for above it."""

    lead: str
    text: str
    kind: str = "commands"


@dataclass(frozen=True)
class Picture:
    """An image on which two files differ: its source (a data address), what it is called, and guesses with their shares."""

    source: str
    caption: str
    before: tuple[tuple[str, float], ...]
    after: tuple[tuple[str, float], ...]
    label: str = ""
    wide: int = 96
    tall: int = 96


@dataclass(frozen=True)
class Pictures:
    """Images side by side."""

    items: tuple[Picture, ...]
    kind: str = "pictures"


@dataclass(frozen=True)
class UnitBox:
    """A unit in the graph of units: numbers of its members, what it holds, what it reads apart from the unit in front."""

    number: str
    name: str
    detail: str
    joined: bool = False
    reads: str = ""
    title: str = ""


@dataclass(frozen=True)
class Units:
    """Units in order."""

    boxes: tuple[UnitBox, ...]
    kind: str = "units"


Part = Table | Figure | Pairs | Pictures | Units | Commands


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading of its own; ``gallery`` sets its parts side by side."""

    name: str
    title: str
    lead: str = ""
    parts: Sequence[Part] = field(default=())
    gallery: bool = False


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: what the page is about.
        kicker: a few words above the title.
        lead: a sentence below it.
        facts: the headline.
        warnings: what makes figures doubtful, and what did not hold.
        sections: in order; those without parts are left out.
        command: what makes the same again; "" where that is not known.
        environment: versions and kind of machine.
    """

    title: str
    kicker: str
    lead: str
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    command: str
    environment: tuple[tuple[str, str], ...]
