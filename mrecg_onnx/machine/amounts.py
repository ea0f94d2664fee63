"""Sizes in bytes and short times as people read and write them: 1.80 MB, 4.00 MiB, 2G; 1.23 ms."""

from __future__ import annotations

import math
import re

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.text import quoted

__all__ = ["byte_size", "file_size", "milliseconds", "parse_byte_size", "points"]

_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
_WRITTEN = re.compile(r"^([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*(K|M|G|T)(i?)B?$", re.IGNORECASE)


def byte_size(count: float, unit: str, digits: int = 2) -> str:
    """``count`` bytes in ``unit``, one of KB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (powers of 1024)."""
    return f"{count / _bytes_of(unit):.{digits}f} {unit}"


def file_size(count: int) -> str:
    """The size of a file in MiB, a small one's in KiB, with digits enough to compare it with another."""
    return byte_size(count, "MiB") if count >= 2**20 else byte_size(count, "KiB", 1)


def milliseconds(seconds: float) -> str:
    """Milliseconds with three digits that count: ``0.0512``, ``1.23``, ``123``, ``1234``."""
    found = 1e3 * seconds
    if not found > 0:
        return "0"
    return f"{found:.{min(6, max(0, 2 - math.floor(math.log10(found))))}f}"


def points(change: float) -> str:
    """A change of a share in points with its sign: ``+0.40 points``, and never ``-0.00``."""
    return f"{round(100 * change, 2) + 0.0:+.2f} points"


def parse_byte_size(option: str, text: str) -> int:
    """The bytes that ``text`` says, such as 2GB, 1.8 MB, 512MiB or 2G; ``option`` is named where it says none.

    Raises:
        SettingsError: it is no size.
    """
    match = _WRITTEN.match(text.strip())
    if match is None or not math.isfinite(float(match[1])):
        raise SettingsError(f"{option} {quoted(text)}: expected a size such as 2GB or 1.8MB")
    return int(float(match[1]) * _bytes_of(f"{match[2].upper()}{match[3]}B"))


def _bytes_of(unit: str) -> int:
    base = 1000 if len(unit) == 2 else 1024
    power: int = base ** _POWERS[unit[0]]
    return power
