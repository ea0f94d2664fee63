"""Groups of settings: frozen dataclasses whose fields say which values they take, checked as soon as one is made.

It stands on the ground floor because every floor has settings.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import os
import sys
import types
import typing
from dataclasses import dataclass
from typing import Any

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.text import bounded, called

__all__ = ["AtLeast", "Between", "OneOf", "SettingsGroup", "require_number", "settled"]


def require_number(name: str, value: object) -> None:
    """Refuse what cannot be compared with a number.

    Raises:
        SettingsError: ``value``, of the field called ``name``, is none.
    """
    if not isinstance(value, numbers.Real):
        raise SettingsError(f"{name} is {bounded(repr(value), 80)}: it must be a number")


@dataclass(frozen=True)
class OneOf:
    """A word among ``words``."""

    words: tuple[str, ...]

    def __init__(self, *words: str) -> None:
        object.__setattr__(self, "words", words)

    def check(self, name: str, value: str) -> None:
        """Refuse any other.

        Raises:
            SettingsError: ``value``, of the field called ``name``, is another.
        """
        if value not in self.words:
            shown = f"'{value}'" if isinstance(value, str) else bounded(repr(value), 80)
            raise SettingsError.among(f"{name} is {shown}", self.words, value)


@dataclass(frozen=True)
class AtLeast:
    """A finite number from ``low`` on."""

    low: float

    def check(self, name: str, value: float) -> None:
        """Refuse any below, NaN and infinity.

        Raises:
            SettingsError: ``value``, of the field called ``name``, is one.
        """
        require_number(name, value)
        if not self.low <= value < math.inf:
            raise SettingsError(f"{name} is {value}: it must be {self.low:g} or more")


@dataclass(frozen=True)
class Between:
    """A number from ``low`` to ``high``, both included."""

    low: float
    high: float

    def check(self, name: str, value: float) -> None:
        """Refuse any outside, and NaN.

        Raises:
            SettingsError: ``value``, of the field called ``name``, is one.
        """
        require_number(name, value)
        if not self.low <= value <= self.high:
            raise SettingsError(f"{name} is {value}: it must lie between {self.low:g} and {self.high:g}")


@dataclass(frozen=True, kw_only=True)
class SettingsGroup:
    """Base of a room's settings.

    A field is ``Annotated[int, Between(2, 8)]`` or the like where it does not take every value of its type; None fits where it is
    the default. A group inherits those of lower rooms that its room reads, too.
    """

    def __init_subclass__(cls) -> None:
        """A dataclass would write a representation of its own, of all fields."""
        super().__init_subclass__()
        cls.__repr__ = SettingsGroup.__repr__  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        """Check every field, then what holds between them.

        Raises:
            SettingsError: a value is of another type or out of its range, or contradicts another.
        """
        group: Any = type(self)  # as any: mypy takes the hash of a dataclass for that of its class
        ranged = {field.name for field, _ in _restricted(group)}
        for name, kinds in _plain(group):
            if name in ranged and str in kinds:
                continue  # words are compared below
            value = settled(called(name), _chosen(getattr(self, name), kinds), kinds)
            if isinstance(value, float) and not math.isfinite(value) and name not in ranged:
                raise SettingsError(f"{called(name)} is {value}: it must be a finite number")
            object.__setattr__(self, name, value)
        for field, allowed in _restricted(group):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                allowed.check(called(field.name), value)
        self.check()

    def __repr__(self) -> str:
        """As it would be written: fields at their defaults are left out."""
        given = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != _default(field)
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def check(self) -> None:
        """What holds between fields, or is no range; a group that has such rules calls those of its bases first.

        Raises:
            SettingsError: it does not hold.
        """


def _chosen(value: Any, kinds: frozenset[type]) -> Any:
    """None for the command line's word where that is what a field of numbers takes: the run chooses."""
    return None if value == "auto" and types.NoneType in kinds and str not in kinds else value


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def settled(name: str, value: Any, kinds: frozenset[type]) -> Any:
    """``value`` as one of the types ``kinds``: numpy's numbers and 4.0 for a whole number as Python's, paths as texts.

    Raises:
        SettingsError: what is called ``name`` is none.
    """
    if value is None and types.NoneType in kinds:
        return None
    if bool in kinds:
        if isinstance(value, bool) or type(value).__name__ in {"bool", "bool_"}:  # numpy has one, too
            return bool(value)
        wanted = "True or False"
    elif kinds & {int, float}:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            wanted = "a number"
        elif int in kinds and isinstance(value, numbers.Integral):
            return int(value)
        elif float not in kinds and float(value).is_integer():
            return int(float(value))
        elif float in kinds or not math.isfinite(value):
            try:
                return float(value)
            except OverflowError:  # a whole number beyond all floats
                wanted = f"within {sys.float_info.max:.0e}"
        else:
            wanted = "a whole number"
    elif isinstance(value, str | os.PathLike):
        return os.fspath(value)
    else:
        wanted = "a text"
    raise SettingsError(f"{name} is {bounded(repr(value), 80)}: it must be {wanted}")


@functools.cache
def _plain(group: type[SettingsGroup]) -> tuple[tuple[str, frozenset[type]], ...]:
    """The fields of ``group`` that take numbers, texts or True and False, with their types."""
    hints, found = typing.get_type_hints(group), []
    for field in dataclasses.fields(group):
        kinds = frozenset(typing.get_args(hints[field.name]) or (hints[field.name],))
        if kinds <= {bool, int, float, str, types.NoneType}:
            found.append((field.name, kinds))
    return tuple(found)


@functools.cache
def _restricted(group: type[SettingsGroup]) -> tuple[tuple[dataclasses.Field[Any], OneOf | AtLeast | Between], ...]:
    """The fields of ``group`` that do not take every value, with what they take, in their order."""
    hints = typing.get_type_hints(group, include_extras=True)
    return tuple(
        (field, allowed)
        for field in dataclasses.fields(group)
        for allowed in getattr(hints[field.name], "__metadata__", ())
        if isinstance(allowed, OneOf | AtLeast | Between)
    )
