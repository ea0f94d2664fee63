"""Calls from Python that are wrong in themselves: a setting among arguments, a path in place of settings, an input as output."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mrecg_onnx.converters.choices import SettingsGroup
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.reads import Reads
from mrecg_onnx.converters.results import Result
from mrecg_onnx.converters.text import bounded, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["takes"]

P = ParamSpec("P")
R = TypeVar("R")


def takes(**kinds: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that says where an argument belongs which the function does not have, and sees to it that inputs stay.

    An argument ``output`` may be no file that another one names, and a result knows these: it is not saved over one either.

    Args:
        kinds: dataclasses by the parameters that take one, or by the field of the settings that does. What is given to a
            parameter of settings must be settings.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            _check_names(function.__name__, parameters, kinds, args, kwargs)
            given = {**dict(zip(parameters, args, strict=False)), **kwargs}
            for name, kind in kinds.items():
                if issubclass(kind, SettingsGroup):
                    _check_settings(function.__name__, parameters, name, kind, given.get(name))
            reads, output = Reads.of(given), given.get("output")
            if isinstance(output, str | os.PathLike):
                reads.check(output, "--output")
            made = function(*args, **kwargs)
            if isinstance(made, Result):
                object.__setattr__(made, "reads", reads)  # results are frozen, and this is no finding
            return made

        return checked

    return decorate


def _check_names(
    function: str, parameters: Any, kinds: dict[str, type], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    placed = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    if len(args) > len(placed):
        rest = [name for name in parameters if name not in placed]
        raise TypeError(
            f"{function} takes {', '.join(placed) or 'nothing'} by place, and what else there is by name"
            + (f": {rest[0]}=..." if rest else "")
        )
    for name in kwargs:
        if name in parameters:
            continue
        for parameter, kind in kinds.items():
            if name in _fields(kind):
                holder = f"{parameter}={kind.__name__}({name}=...)"
                if parameter not in parameters:  # itself a field of the settings
                    holder = f"settings={kinds['settings'].__name__}({holder})"
                raise TypeError(f"{function} has no '{name}', a field of {kind.__name__}: {holder}")
        hint = did_you_mean(name, [*parameters, *(field for kind in kinds.values() for field in _fields(kind))], ": ")
        raise TypeError(f"{function} has no '{name}'{hint} It takes {', '.join(parameters)}".replace("' It", "': it"))


def _fields(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _check_settings(function: str, parameters: Any, name: str, kind: type, value: Any) -> None:
    if value is None or isinstance(value, kind):
        return
    given = bounded(repr(value), 80)
    own = f"{kind.__name__}(**{given})" if isinstance(value, dict) else f"{kind.__name__}(wbits=4, abits=8)"
    path = isinstance(value, str | os.PathLike) and "output" in parameters
    place = f"; a file to write is output={given}" if path else ""
    raise SettingsError(f"{name} of {function} is {given}: give mrecg_onnx.{own}{place}")
