"""Text from outside (names in a model, files, messages that quote either), made fit to be shown."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["LONGEST_LINE", "bounded", "did_you_mean", "first_of", "printable", "quoted"]

LONGEST_LINE = 300
"""So many characters a line has at most that says what is wrong."""

# Longer names are cut where they are quoted.
_LONGEST_NAME = 80
_CUT = " ... "


def printable(text: str) -> str:
    r"""Write out whatever a terminal would obey or hide: control characters, line breaks, marks that turn lines round.

    They become what :func:`repr` makes of them (``\x1b``, ``\n``, ``\u202e``, a lone surrogate of a file name ``\udc80``);
    all else stays, so that doing it twice changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_of(texts: Sequence[str], most: int = 3) -> str:
    """The first ``most`` of ``texts``, and how many more there are."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def did_you_mean(given: object, known: Iterable[str], before: str = "; ") -> str:
    """``before`` and the one of ``known`` that ``given`` was most likely meant to be; empty where none is like it."""
    words = {word.lower(): word for word in known}
    near = difflib.get_close_matches(str(given).lower(), words, n=1, cutoff=0.5)
    return f"{before}did you mean '{words[near[0]]}'?" if near else ""


def quoted(name: str, most: int = _LONGEST_NAME) -> str:
    """``name`` in quotes, fit to be shown, its middle left out where it is long."""
    return f"'{bounded(name, most)}'"


def bounded(text: str, most: int = LONGEST_LINE) -> str:
    """``text`` fit to be shown, in at most ``most`` characters: what is in the middle goes, as ends say what to do."""
    text = printable(text)
    if len(text) <= most:
        return text
    end = (most - len(_CUT)) // 3
    return f"{text[: most - len(_CUT) - end]}{_CUT}{text[-end:]}"
