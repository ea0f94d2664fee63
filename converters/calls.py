"""Calls from Python that are wrong in themselves: a setting among arguments, a number for a path, an input as output."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from mrecg_onnx.converters.choices import SettingsGroup, settled
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.reads import Reads, require_path
from mrecg_onnx.converters.results import Result
from mrecg_onnx.converters.text import bounded, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["takes"]

P = ParamSpec("P")
R = TypeVar("R")
#: Words of annotations that are checked here; what else a parameter takes, its function knows.
_WORDS = {"bool": bool, "int": int, "float": float, "str": str, "Path": os.PathLike, "None": types.NoneType}
#: How annotations of what is called begin.
_CALLED = ("Report", "Callable[")


class _Plain(NamedTuple):
    """What a parameter takes whose values are plain.

    Attributes:
        kinds: types of its value, or of each where it takes several.
        made: classes among them that are none of Python's own.
        one: a value alone is taken.
        several: a sequence of them is.
    """

    kinds: frozenset[type]
    made: tuple[type, ...]
    one: bool
    several: bool


def takes(**kinds: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that says where an argument belongs which the function does not have, and sees to it that inputs stay.

    An argument ``output`` may be no file that another one names, and a result knows these: it is not saved over one either.
    Numbers, texts, paths and what is called are checked by the annotations, and handed on as Python's own.

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
            given = {name: _checked(name, parameters, kinds, value, function.__name__) for name, value in given.items()}
            reads, output = Reads.of(given), given.get("output")
            if isinstance(output, str | os.PathLike):
                reads.check(output, "output")
            named = {name: given[name] for name in kwargs}
            made = function(*(given[name] for name, _ in zip(parameters, args, strict=False)), **named)  # type: ignore[arg-type]
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


def _checked(name: str, parameters: Any, classes: dict[str, type], value: Any, function: str) -> Any:
    """``value`` for the parameter ``name`` as the function takes it.

    Raises:
        SettingsError: it is of another kind.
    """
    annotation = parameters[name].annotation
    if annotation.startswith(_CALLED):
        if callable(value) or (value is None and parameters[name].default is None):
            return value
        hint = ", such as print" if name == "progress" else ""
        raise SettingsError(f"{name} of {function} is {_shown(value)}: it must be a function{hint}")
    plain = _plain(annotation, tuple(classes.values()))
    if plain is None:
        return value
    alone = value is None or isinstance(value, (str, bytes, *plain.made)) or not isinstance(value, Iterable)
    if not plain.several or (alone and plain.one):
        return _one(f"{name} of {function}", value, plain)
    if value is None and types.NoneType in plain.kinds:
        return value
    if alone:
        hint = f": [{_shown(value)}]" if isinstance(value, str) else ""
        raise SettingsError(f"{name} of {function} is {_shown(value)}: it must be a list{hint}")
    values = tuple(_one(f"{name}[{place}] of {function}", one, plain) for place, one in enumerate(value))
    if plain.one and not values:
        raise SettingsError(f"{name} of {function} is empty: give at least one")
    return values


def _one(what: str, value: Any, plain: _Plain) -> Any:
    if isinstance(value, plain.made) or (value is None and types.NoneType in plain.kinds):
        return value
    if os.PathLike in plain.kinds:
        require_path(what, value)
        return value
    own = plain.kinds - {*plain.made}
    if own <= {types.NoneType}:
        raise SettingsError(f"{what} is {_shown(value)}: it must be mrecg_onnx.{plain.made[0].__name__}(...)")
    return settled(what, value, own)


@functools.cache
def _plain(annotation: str, classes: tuple[type, ...]) -> _Plain | None:
    """What ``int | Sequence[int] | None`` and the like say, ``classes`` among them; None where there is more to know."""
    known = _WORDS | {one.__name__: one for one in classes if not issubclass(one, SettingsGroup)}
    single, _, rest = annotation.partition("Sequence[")
    inner, _, behind = rest.partition("]")
    words = {word.strip() for part in (single, inner, behind) for word in part.split(" | ")} - {""}
    if not words <= known.keys():
        return None
    made = tuple(known[word] for word in sorted(words - _WORDS.keys()))
    return _Plain(frozenset(known[word] for word in words), made, bool(single.strip()), bool(rest))


def _shown(value: Any) -> str:
    return bounded(repr(value), 80)
