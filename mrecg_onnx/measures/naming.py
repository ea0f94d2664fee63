"""A metric by its name: a ready one, or ``module:function``, the user's own code, which is imported because he names it."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
import uuid
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from mrecg_onnx.converters.errors import SettingsError, first_line
from mrecg_onnx.converters.files import no_such
from mrecg_onnx.converters.text import did_you_mean, quoted
from mrecg_onnx.measures.metric import Metric
from mrecg_onnx.measures.ready import READY

if TYPE_CHECKING:
    from collections.abc import Callable

    from mrecg_onnx.measures.metric import Accumulating

__all__ = ["AnyMetric", "metric_key", "metric_of"]

#: What ``metric=`` takes.
AnyMetric: TypeAlias = "Metric | str | Callable[[Any, Any], Any] | Accumulating | type[Accumulating] | None"


def metric_of(
    given: AnyMetric,
    *,
    lower_is_better: bool | None = None,
) -> Metric | None:
    """The metric that is meant.

    Args:
        given: a metric, a function or an object that is one, the name of a ready one (:data:`READY`), ``"module:function"``
            (imported from the current folder or the environment) or ``"file.py:function"``; None for none.
        lower_is_better: what the command line says of it.

    Raises:
        SettingsError: it is none, cannot be imported, or a package is missing that it needs.
    """
    if given is None:
        return None
    known = _named(given) if isinstance(given, str) else given
    found = known if isinstance(known, Metric) else Metric(known)
    if lower_is_better is None or found.lower_is_better == lower_is_better:
        return found
    return dataclasses.replace(found, lower_is_better=lower_is_better)


def _named(text: str) -> Metric:
    module, colon, attribute = text.rpartition(":")
    if not colon:
        row = next((row for name, row in READY.items() if name.lower() == text.lower()), None)
        if row is None:
            raise SettingsError(
                f"metric {quoted(text)} is unknown: there are {', '.join(READY)}; your own is module:function"
                f"{did_you_mean(text, READY)}"
            )
        row.require()
        return row.metric()
    loaded = _loaded(module, text)
    where: Any = loaded
    for part in attribute.split("."):
        if not hasattr(where, part):
            near = difflib.get_close_matches(part, [n for n in dir(where) if not n.startswith("_")], n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise SettingsError(f"metric {quoted(text)}: {quoted(module)} has no {quoted(part)}{hint}")
        where = getattr(where, part)
    if isinstance(where, ModuleType):
        raise SettingsError(f"metric {quoted(text)} is a module: name a function in it, module:function")
    if isinstance(where, Metric):
        return dataclasses.replace(where, spec=text)
    return Metric(where, spec=text)


def _loaded(name: str, text: str) -> ModuleType:
    """The module, of the current folder before the environment.

    The folder goes to the end of the path where modules are looked for: what the named module imports beside it is found, and
    nothing in the folder stands in the way of a package.

    Raises:
        SettingsError: there is none, or it fails as it is imported.
    """
    file = Path(name)
    folder = (file.parent if name.endswith(".py") else Path()).resolve()
    if name.endswith(".py"):
        if not file.is_file():
            raise SettingsError(f"metric {no_such(name, 'check the path in front of the function')}")
        name = file.stem
    elif not all(part.isidentifier() for part in name.split(".")):
        raise SettingsError(f"metric {quoted(text)}: expected module:function, file.py:function or a ready one's name")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    first = name.partition(".")[0]
    spec = PathFinder.find_spec(first, [str(folder)])
    try:
        if spec is not None and spec.origin is not None and spec.loader is not None:
            there = sys.modules.get(first)
            kept = first == __package__.partition(".")[0] or (there is not None and first in sys.stdlib_module_names)
            if not kept and getattr(there, "__file__", None) != spec.origin:
                made = importlib.util.module_from_spec(spec)
                sys.modules[first] = made
                try:
                    spec.loader.exec_module(made)
                except BaseException:
                    del sys.modules[first]
                    raise
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise SettingsError(
                f"metric {quoted(text)}: there is no module {quoted(error.name)} in the current folder or the environment"
            ) from error
        raise SettingsError(f"metric {quoted(text)}: {quoted(name)} cannot be imported: {first_line(error)}") from error
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {first_line(error)} ({Path(frame.filename).name}, line {frame.lineno})"
        raise SettingsError(f"metric {quoted(text)}: {quoted(name)} cannot be imported: {said}") from error


def metric_key(metric: Metric | None) -> str | None:
    """Changes with the metric, for whoever keeps what it said: its name and the file that it stands in.

    What has no file, or holds values of its own (objects, closures, functions made of others), is another one every time.
    """
    if metric is None:
        return None
    said = f"{metric.name} {metric.lower_is_better} {metric.percent} {metric.key}"
    score = metric.score
    if inspect.isfunction(score) and score.__closure__ is None:
        try:
            source = Path(inspect.getsourcefile(score) or "")
            text = source.read_bytes()
        except (OSError, TypeError):
            text = b""
        if text:
            known = hashlib.sha256(f"{said} {score.__qualname__}".encode() + text).hexdigest()
            return f"{metric.name} {known[:16]}"
    if metric.spec in READY:
        return f"{metric.name} {metric.spec}"
    return f"{metric.name} {uuid.uuid4().hex}"
