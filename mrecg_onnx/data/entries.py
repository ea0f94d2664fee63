"""The entries of a JSON object that anyone may have written, checked as they are taken."""

from __future__ import annotations

import logging
from typing import Any

from mrecg_onnx.converters.errors import SettingsError

__all__ = ["Entries", "short", "short_key"]

logger = logging.getLogger(__name__)

MAX_SIDE = 8192
"""Largest height or width taken from a file: memory for an image is asked for by it."""
#: What stands in these files and changes no pixel.
_IDLE = frozenset({
    "_processor_class", "_valid_processor_keys", "architecture", "architectures", "auto_map", "data_format", "default_to_square",
    "device", "disable_grouping", "do_convert_rgb", "feature_extractor_type", "image_processor_type", "input_data_format",
    "model_type", "num_classes", "num_features", "processor_class", "return_tensors", "transformers_version",
})  # fmt: skip


class Entries:
    """The entries of one JSON object, checked as they are taken; what nobody took is reported in the end."""

    def __init__(self, data: dict[str, Any], where: str) -> None:
        self.data, self.where = data, where
        self.left = set(data) - _IDLE
        self.notes: list[str] = []

    def take(self, key: str) -> Any:
        """The value as it stands; None where there is none."""
        self.left.discard(key)
        return self.data.get(key)

    def wrong(self, key: str, wanted: str) -> SettingsError:
        """What to raise about a value."""
        return SettingsError(f"{self.where}: {key} is {short(self.data.get(key))}: {wanted} is expected")

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.take(key)
        if not isinstance(value, bool | None):
            raise self.wrong(key, "true or false")
        return default if value is None else value

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.take(key)
        if value is None:
            return default
        if not _is_number(value) or value <= 0:
            raise self.wrong(key, "a number above 0")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """One number, or one a channel."""
        value = self.take(key)
        if value is None:
            raise SettingsError(f"{self.where}: {key} is missing: give it as an option of the command")
        values = value if isinstance(value, list) else [value]
        if len(values) not in (1, 3, 4) or not all(_is_number(one) for one in values):
            raise self.wrong(key, "a number, or a list of one for each channel")
        return tuple(float(one) for one in values)

    def side(self, key: str, value: object) -> int:
        """A height or width that stands somewhere in ``key``."""
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
            raise self.wrong(key, f"a size in whole pixels up to {MAX_SIDE}")
        return value

    def word(self, key: str) -> str | None:
        """A string."""
        value = self.take(key)
        if not isinstance(value, str | None):
            raise self.wrong(key, "a word")
        return value

    def report_rest(self) -> None:
        """Name what was left over and would do something: what is false or null would not."""
        rest = sorted(short_key(key) for key in self.left if self.data[key] not in (None, False))
        what = self.notes + ([f"{', '.join(rest)} not applied"] if rest else [])
        if what:
            logger.warning("%s: %s", self.where, "; ".join(what))


def _is_number(value: object) -> bool:
    """Whether it is a finite number; whole ones beyond what a float holds are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e30


def short(value: object) -> str:
    """A value of a file for a message: no control characters, no page of it."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def short_key(key: str) -> str:
    """A key of a file for a message: as it stands where it is a plain name."""
    return key if key.isidentifier() and key.isascii() and len(key) <= 60 else short(key)
