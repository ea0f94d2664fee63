"""Writing a page: one file without anything beside it, in which nothing that came from a model is markup."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import math
import re
from importlib.resources import files
from typing import TYPE_CHECKING

from mrecg_onnx.converters.errors import ExportError, SettingsError
from mrecg_onnx.converters.files import check_writable, followed, write_whole
from mrecg_onnx.converters.kinds import require_kind
from mrecg_onnx.converters.text import printable
from mrecg_onnx.reporting.content import Table

if TYPE_CHECKING:
    from pathlib import Path

    from markupsafe import Markup

    from mrecg_onnx.reporting.content import Page, Part

__all__ = ["MOST_BYTES", "page_text", "require_packages", "require_page", "write_page"]

#: A page is smaller; parts have bounds of their own that keep it so.
MOST_BYTES = 2_000_000
#: Tables of no more rows are not shortened.
FEWEST_ROWS = 50
#: Tiles of the headline that a row has room for.
TILES = 5


def require_packages() -> None:
    """Refuse, before the work, to write a page without what draws and writes it.

    Raises:
        SettingsError: one is missing.
    """
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(f"a page needs {' and '.join(missing)}: pip install 'mrecg-onnx[report]'")


def require_page(path: str | Path) -> None:
    """Refuse, before the work, a page that could not be written, or that would take the place of something else.

    Raises:
        SettingsError: as :func:`require_packages`; or a model, an array or an image is there.
        ExportError: no file can be written there.
    """
    require_packages()
    require_kind(path, "page")
    check_writable(path)


def page_text(page: Page) -> str:
    """The page as HTML.

    Raises:
        ExportError: it would be larger than :data:`MOST_BYTES`.
    """
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - an extra
    from markupsafe import Markup  # noqa: PLC0415

    folder = files("mrecg_onnx.reporting") / "page"
    template, style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.html", "style.css", "page.js")
    )
    # Everything is escaped but for what stands in this package: the drawings' markup, the style and the script.
    room = Environment(autoescape=True, undefined=StrictUndefined, finalize=_plain, trim_blocks=True)
    room.filters["trusted"] = Markup
    room.filters["breakable"] = _breakable
    room.filters["columns"] = _columns
    room.filters["lines"] = _lines
    room.filters["note"] = _note
    room.filters["figures"] = _figures
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    drawn = room.from_string(template)
    while True:
        text = drawn.render(
            page=page,
            sections=[section for section in page.sections if section.parts or section.lead],
            style=Markup(style),  # noqa: S704 - a file of this package
            script=Markup(script),  # noqa: S704 - likewise
            script_hash=f"sha256-{digest}",
        )
        count = len(text.encode("utf-8"))
        if count <= MOST_BYTES:
            return text
        shorter = _shortened(page)
        if shorter == page:
            raise ExportError(f"the page would have {count} bytes, more than {MOST_BYTES}")
        page = shorter


def _shortened(page: Page) -> Page:
    """The page with half of the rows of every long table, which says so."""

    def half(part: Part) -> Part:
        if not isinstance(part, Table) or len(part.rows) <= FEWEST_ROWS:
            return part
        kept = len(part.rows) // 2
        return dataclasses.replace(
            part, rows=part.rows[:kept], note=f"Only the first {kept} rows: the page would be too large."
        )

    sections = [dataclasses.replace(s, parts=tuple(half(part) for part in s.parts)) for s in page.sections]
    return dataclasses.replace(page, sections=tuple(sections))


def _columns(count: int) -> int:
    """Tiles in a row of the headline, so that rows are as long as each other, or nearly: 7 as 4 and 3, not as 5 and 2."""
    return math.ceil(count / math.ceil(count / TILES)) if count else 1


def _breakable(text: str) -> Markup:
    """A name that may be broken behind its separators."""
    from markupsafe import Markup, escape  # noqa: PLC0415

    parts = re.split(r"(?<=[/_])(?=[^/._])|(?<=\.)(?=[^/._0-9])", printable(text))
    return Markup("<wbr>").join(escape(part) for part in parts)


def _figures(text: str) -> Markup:
    """A figure on one line with its unit; an interval may be on two."""
    from markupsafe import Markup  # noqa: PLC0415

    close, joined = _whole(text), Markup("&nbsp;")
    if " to " in text:
        return Markup(f" to{joined}").join(close.split(" to "))  # noqa: S704 - this package's own
    return joined.join(close.split(" ", 1)) if text[:1] in {*"+-0123456789"} else close


def _note(text: str) -> Markup:
    """A line below a figure: a p stays beside its value."""
    from markupsafe import Markup, escape  # noqa: PLC0415

    return Markup("&nbsp;").join(escape(part) for part in re.split(r"(?<= p) (?=[0-9])", printable(text)))


def _lines(text: str) -> Markup:
    """A text of several lines, each broken only at spaces."""
    from markupsafe import Markup  # noqa: PLC0415

    return Markup("\n").join(map(_whole, text.split("\n")))


def _whole(text: str) -> Markup:
    """Words that a browser would break behind a hyphen (``1.5e-05``, ``--wbits``) or a slash stay whole where they fit a line."""
    from markupsafe import Markup, escape  # noqa: PLC0415

    def whole(word: str) -> Markup:
        breaks = re.search(r"[-/?]", word) and not re.fullmatch(r"-[\d.,]+%?", word)
        return Markup("<span>{}</span>").format(word) if breaks else escape(word)

    return Markup(" ").join(map(whole, printable(text).split(" ")))


def _plain(value: object) -> object:
    """Control characters and halves of characters are written out, wherever a text came from."""
    from markupsafe import Markup  # noqa: PLC0415

    return value if not isinstance(value, str) or isinstance(value, Markup) else printable(value)


def write_page(page: Page, path: str | Path) -> None:
    """Write the page to ``path``, whole or not at all.

    Raises:
        ExportError: it cannot be written.
    """
    text = page_text(page)
    try:
        write_whole(followed(path), text)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
