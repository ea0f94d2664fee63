"""Sizes in bytes, times, figures and factors as people read them: 1.80 MB, 2G; 2:05; 0.4400; 1.94x faster. And cores."""

from __future__ import annotations

import math
import os
import re
from fractions import Fraction
from typing import TYPE_CHECKING

from rich import filesize

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.text import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "byte_size",
    "clock",
    "cores",
    "duration",
    "figure",
    "milliseconds",
    "parse_byte_size",
    "plain_zero",
    "points",
    "ratio",
]

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_WRITTEN = re.compile(
    r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(?:(?P<power>[KMGT])(?P<binary>i?)B?|B|bytes?)", re.IGNORECASE
)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def byte_size(count: int, digits: int = 3, *, up: bool = False) -> str:
    """``count`` bytes with ``digits`` that count, in powers of 1000: ``36 bytes``, ``323 kB``, ``1.80 MB``, ``14.0 MB``.

    Rounded ``up`` where it is a bound: what is shown, given back, is then large enough.
    """
    step = 10 ** max(0, len(str(count)) - digits)
    shown = -(-count // step) * step if up else round(count / step) * step
    return filesize.decimal(shown, precision=max(0, digits - 1 - (len(str(shown)) - 1) % 3))


def milliseconds(seconds: float) -> str:
    """Milliseconds with three digits that count: ``0.0512``, ``1.23``, ``123``, ``1234``."""
    found = 1e3 * seconds
    if not found > 0:
        return "0"
    return f"{found:.{min(6, max(0, 2 - math.floor(math.log10(found))))}f}"


def duration(seconds: float) -> str:
    """``40.0 ms`` below a tenth of a second, ``12.3 s`` below a minute, then ``2:05`` and ``1:02:05``."""
    if seconds < 0.0995:
        return f"{milliseconds(seconds)} ms" if seconds > 0 else "0 ms"
    return f"{seconds:.1f} s" if seconds < 59.95 else clock(seconds)


def clock(seconds: float) -> str:
    """``0:05``, ``2:05`` and ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def figure(value: float, beside: Iterable[float] = (), digits: int = 4, sign: str = "") -> str:
    """``value`` as one of a table: ``0.4400`` where ``0.4667`` is ``beside`` it, whole where all are whole: ``3``, ``12``.

    Args:
        value: the figure.
        beside: the others.
        digits: that count, zeros at its end among them.
        sign: "+" for a change.
    """
    whole = all(math.isfinite(x) and float(x).is_integer() and abs(x) < 10**6 for x in (value, *beside))
    return plain_zero(value, f"{sign}.0f" if whole else f"{sign}#.{digits}g").removesuffix(".")


def plain_zero(value: float, form: str) -> str:
    """``value`` in the format ``form``; what is shown as 0 has no minus: ``-1e-9`` as ``+.4f`` is ``+0.0000``."""
    text = format(value, form)
    return format(0.0, form) if float(text) == 0 else text


def points(change: float) -> str:
    """A change of a share in points with its sign: ``+0.40 points``, and never ``-0.00``."""
    return f"{plain_zero(100 * change, '+.2f')} points"


def parse_byte_size(option: str, text: str) -> int:
    """The bytes that ``text`` says, such as 2GB, 1.8 MB, 512MiB or 2G; ``option`` is named where it says none.

    Written here: rich has no counterpart of what it shows, and humanfriendly, which has one, was last released in 2021.

    Raises:
        SettingsError: it is no size.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"{option} {quoted(text)}: expected a size such as 2GB or 1.8MB")
    base = 1024 if match["binary"] else 1000
    # Exactly: as floats 1.001 times 1000 is less than 1001.
    return int(Fraction(match["number"]) * base ** _POWERS[(match["power"] or "").upper()])


def ratio(before: float, after: float, less: str, more: str) -> str:
    """``3.10x smaller``, or ``1.20x larger`` where ``after`` is; ``the same`` where that would be 1.00x.

    The one notation for factors, of times (``faster``, ``slower``) as of sizes: no reader has to know what was divided by what.
    """
    if max(before, after) < 1.005 * min(before, after):
        return "the same"
    return f"{before / after:.2f}x {less}" if after <= before else f"{after / before:.2f}x {more}"
