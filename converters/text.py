"""Text from outside (names in a model, files, messages that quote either), made fit to be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["first_of", "printable"]


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
