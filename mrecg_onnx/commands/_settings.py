"""The settings made of a command's parameters."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from mrecg_onnx.commands._sections import FIELDS
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.text import quoted
from mrecg_onnx.data import NO_RESIZE, Preprocess, profile
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mrecg_onnx.measures import Metric

__all__ = ["metric_from", "preprocess_from", "settings_from"]

_PREPROCESS = frozenset(Preprocess().to_json())
_SIZE = re.compile(r"^([0-9]{1,9})(?:[x,]([0-9]{1,9}))?$")


def _beside() -> Preprocess:
    """Nothing stated: a file beside the model may say it."""
    return Preprocess(beside=True)


def settings_from(options: Mapping[str, Any]) -> Settings:
    """The settings of a command's parameters; those a command does not have keep their defaults.

    Raises:
        SettingsError: a value is out of range.
    """
    given = {name: value for name, value in options.items() if name in FIELDS}
    return Settings(
        **given,
        exclude=options["exclude"],
        bits=options["bits"],
        preprocess=preprocess_from(options, _beside) or _beside(),
    )


def metric_from(options: Mapping[str, Any]) -> Metric | None:
    """The metric that --metric names; None where it was not given.

    Raises:
        SettingsError: there is none of that name, it cannot be imported, or --lower-is-better stands alone.
    """
    from mrecg_onnx.measures import metric_of

    lower = True if options["lower_is_better"] else None
    if options["metric"] is None:
        if lower:
            raise SettingsError("--lower-is-better says how --metric is to be taken: give that, too")
        return None
    return metric_of(options["metric"], lower_is_better=lower)


def preprocess_from(options: Mapping[str, Any], stored: Callable[[], Preprocess] = Preprocess) -> Preprocess | None:
    """What --preprocess names, else what ``stored`` gives, with the other options put in; None where none was given.

    Raises:
        SettingsError: a value or a file cannot be read.
    """
    given = {name: value for name, value in options.items() if name in _PREPROCESS and value is not None}
    for name, read in (("mean", _numbers), ("std", _numbers), ("scale", _number), ("crop", _size), ("resize", _resize)):
        if name in given:
            given[name] = read(f"--{name}", given[name])
    named = options.get("preprocess")
    if not given and named is None:
        return None
    base = stored() if named is None else profile(named)
    return Preprocess(**given).over(base)


def _number(option: str, text: str) -> float:
    above, _, below = text.partition("/")
    try:
        number = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        raise SettingsError(f"{option} {quoted(text)}: expected a number such as 0.5 or 1/255")
    return number


def _numbers(option: str, text: str) -> tuple[float, ...]:
    return tuple(_number(option, part) for part in text.replace(",", " ").split())


def _resize(option: str, text: str) -> int | tuple[int, int] | str:
    if text == NO_RESIZE:
        return text
    match = _SIZE.match(text)
    if match is None:
        raise SettingsError(
            f"{option} {quoted(text)}: expected a length such as 256, a size such as 224x320 (height x width), or {NO_RESIZE}"
        )
    return _size(option, text) if match[2] else int(match[1])


def _size(option: str, text: str) -> tuple[int, int]:
    match = _SIZE.match(text)
    if match is None:
        raise SettingsError(f"{option} {quoted(text)}: expected a size such as 224 or 224x320 (height x width)")
    return int(match[1]), int(match[2] or match[1])
