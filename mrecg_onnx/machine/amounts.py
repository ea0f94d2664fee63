"""Sizes in bytes, short times and factors as people read write them: 1.80 MB, 323 kB, 2G; 1.23 ms; 1.94x faster; and cores."""

from __future__ import annotations

import math
import os
import re
from fractions import Fraction

from rich import filesize

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.text import quoted

__all__ = ["byte_size", "cores", "milliseconds", "parse_byte_size", "plain_zero", "points", "ratio"]

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
