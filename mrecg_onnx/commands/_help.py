"""Help pages whose lines fit the terminal and can be copied from it."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import cloup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cloup.styling import IStyle

    Definition = tuple[str, str | Callable[[int], str]]

__all__ = ["Context"]

#: Wraps as a letter does, and is as wide: where lines are broken it stands for the hyphens of options.
_UNBROKEN = "\u2011"
#: Columns of a page at most, as without a terminal.
_WIDEST = 80
#: How an example begins, and what its further lines begin with.
_EXAMPLE, _FURTHER = "mrecg-onnx ", "    "
_GOES_ON = " \\"


class _Formatter(cloup.HelpFormatter):
    """Breaks no word at a hyphen, and an example only between its options, behind a backslash."""

    def write_text(self, text: str, style: IStyle | None = None) -> None:
        """Prose, and examples line by line."""
        lines = (_continued(line, self.available_width) for line in text.split("\n"))
        super().write_text(_unbroken("\n".join(lines)), *([] if style is None else [style]))

    def write_dl(
        self,
        rows: Iterable[Definition],
        col_max: int | None = None,
        col_spacing: int | None = None,
        col1_width: int | None = None,
    ) -> None:
        """Options, or commands, with their texts."""
        whole = [(name, _unbroken(text) if isinstance(text, str) else text) for name, text in rows]
        super().write_dl(whole, col_max, col_spacing, col1_width)

    def getvalue(self) -> str:
        """The page."""
        return super().getvalue().replace(_UNBROKEN, "-")


class Context(cloup.Context):
    """What makes such pages."""

    formatter_class = _Formatter

    def get_formatter_settings(self) -> dict[str, Any]:
        """As wide as the terminal, also where a pager shows the page."""
        found = super().get_formatter_settings()
        if found.get("width") is None and not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
            columns = _columns()
            found["width"] = None if columns is None else min(found.get("max_width") or _WIDEST, columns - 1)
        return found


def _columns() -> int | None:
    """Columns of the terminal that errors go to, or that is typed on."""
    for stream in (sys.stderr, sys.stdin):
        with suppress(OSError, ValueError, AttributeError):  # none, or no terminal
            columns = os.get_terminal_size(stream.fileno()).columns
            if columns > 1:
                return columns
    return None


def _unbroken(text: str) -> str:
    return text.replace("-", _UNBROKEN)


def _continued(line: str, width: int) -> str:
    """An example as a shell takes it that is given lines of ``width``; any other line as it is."""
    if not line.startswith(_EXAMPLE) or len(line) <= width:
        return line
    first, *parts = re.split(r" (?=-)", line)  # an option stays with its value
    lines = [first]
    for part in parts:
        longer = f"{lines[-1]} {part}"
        if len(longer) + len(_GOES_ON) > width:
            lines.append(_FURTHER + part)
        else:
            lines[-1] = longer
    return f"{_GOES_ON}\n".join(lines)
