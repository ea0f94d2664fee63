"""Torch and what is built on it, imported as fast as they can be, and not in silence."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from mrecg_onnx.commands._console import is_quiet, say
from mrecg_onnx.commands._errors import UsageFailure
from mrecg_onnx.converters.errors import DataError, ModelError
from mrecg_onnx.converters.files import irregular, require_model
from mrecg_onnx.data import find_files, require_labels

__all__ = ["loading"]

#: What takes the time; where it is there, nobody waits.
_HEAVY = "torch"
_WORDS = "starting ..."
#: Parameters of commands that name files of models, and data.
_MODELS, _DATA = ("model", "fp32", "quantized", "file", "files", "against"), ("calib", "data")


@contextmanager
def loading() -> Iterator[None]:
    """Say that the command starts, where there is what it reads; on a terminal the line goes away when it has.

    The collector of garbage waits while modules are imported, and passes by what they made from then on: nothing of it is
    garbage, and looking through it again and again takes a quarter of the import (.6 of 2.8 s).

    Raises:
        UsageFailure: a model, data or labels that the command was given are not there.
    """
    try:
        _look()
    except (ModelError, DataError) as error:
        raise UsageFailure(str(error)) from error
    waits = not gc.isenabled()
    gc.disable()
    try:
        with _announced():
            yield
    finally:
        gc.freeze()
        if not waits:
            gc.enable()


def _look() -> None:
    """A path that was mistyped is told at once and not seconds later."""
    context = click.get_current_context(silent=True)
    given = {} if context is None else context.params
    for name in _MODELS:
        for path in given[name] if isinstance(given.get(name), tuple) else [given.get(name)]:
            if path is not None:
                require_model(path)
    for name in _DATA:
        path = given.get(name)
        if isinstance(path, Path) and (not path.exists() or irregular(path) is not None):
            find_files(path)
    if isinstance(given.get("labels"), Path):
        require_labels(given["labels"])


@contextmanager
def _announced() -> Iterator[None]:
    """Without rich, whose import would come first."""
    if _HEAVY in sys.modules or is_quiet():
        yield
    elif not sys.stderr.isatty():
        say(_WORDS)
        yield
    else:
        sys.stderr.write(_WORDS)
        sys.stderr.flush()
        try:
            yield
        finally:
            sys.stderr.write("\r" + " " * len(_WORDS) + "\r")
            sys.stderr.flush()
