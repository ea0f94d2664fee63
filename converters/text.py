"""Text from outside (names in a model, files, messages that quote either), made fit to be shown."""

from __future__ import annotations

import difflib
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "LONGEST_LINE",
    "at_the_terminal",
    "bounded",
    "called",
    "counted",
    "did_you_mean",
    "first_of",
    "printable",
    "quoted",
    "with_arguments",
    "with_article",
]

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


#: An option of the command line in a sentence, and what :func:`with_arguments` adds to one.
_OPTION = re.compile(r"(?<![\w'\"-])--([a-z][a-z0-9-]*[a-z0-9])")
_ADDED = re.compile(r" \(in Python: [a-zA-Z0-9_=, ]+(?:\([a-z_=, ]+\))?\)")
#: Options that are fields of ``Preprocess``.
_PIXELS = frozenset({"mean", "std", "scale", "resize", "crop", "layout", "color", "interpolation"})
#: Options that are no arguments: what only a terminal has.
_TERMINAL = frozenset({"debug", "json", "report", "plot", "force"})
_faces = {"terminal": False}


@contextmanager
def at_the_terminal() -> Iterator[None]:
    """Within it sentences are read by somebody who gives options: :func:`with_arguments` adds nothing."""
    before, _faces["terminal"] = _faces["terminal"], True
    try:
        yield
    finally:
        _faces["terminal"] = before


def called(field: str) -> str:
    """What a field of settings is called by who is spoken to: ``--batch-size`` at the terminal, ``batch_size`` in Python."""
    return f"--{field.replace('_', '-')}" if _faces["terminal"] else field


def with_arguments(text: str) -> str:
    """``text`` and, in brackets behind it, what the options in it are called in Python: nothing is added at a terminal.

    A sentence that quotes others says it once, for all of them.
    """
    text = _ADDED.sub("", text)
    names = [name.replace("-", "_") for name in dict.fromkeys(_OPTION.findall(text)) if name not in _TERMINAL]
    if _faces["terminal"] or not names:
        return text
    pixels = [f"{name}=" for name in names if name in _PIXELS]
    others = [f"{name}=" for name in names if name not in _PIXELS and not (name == "preprocess" and pixels)]
    whole = [f"preprocess=Preprocess({', '.join(pixels)})"] if pixels else []
    return f"{text} (in Python: {', '.join([*others, *whole])})"


def first_of(texts: Sequence[str], most: int = 3) -> str:
    """The first ``most`` of ``texts``, and how many more there are."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


#: Written with a vowel in front and spoken without one, and the other way round.
_SPOKEN = re.compile(r"(?!uint|uni|use)[aeiou]|ndarray", re.IGNORECASE)


def with_article(word: str) -> str:
    """``an int``, ``a tuple``, ``an ndarray``, ``a uint8``."""
    return f"{'an' if _SPOKEN.match(word) else 'a'} {word}"


def counted(number: int, what: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


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
