"""Files that a command writes: checked before the work, against all that it reads, JSON after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrecg_onnx.commands._console import FORCE, asked, put
from mrecg_onnx.commands._errors import UsageFailure
from mrecg_onnx.converters.errors import ExportError, SettingsError
from mrecg_onnx.converters.files import check_writable, followed, irregular
from mrecg_onnx.converters.results import json_text, write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["CONFIG", "STDOUT", "check_new", "check_writes", "write_json"]

#: What --json takes for standard output.
STDOUT = Path("-")
#: Where a command's context keeps the file of options that it was given.
CONFIG = "mrecg_onnx.config"
#: Parameters of commands with what they write.
_WRITTEN = frozenset({"out", "folder", "json_file", "report_file", "plot_file", "checkpoint"})


def check_writes(writes: Mapping[str, Path | None], models: Sequence[Path], called: str = "one of the models") -> None:
    """Refuse to write over what the command reads, and to find out after the work that a file cannot be written.

    What it reads is the models, the files that their tensors lie in, and whatever its options name: images, arrays, labels,
    rules, preprocessing, other options.

    Args:
        writes: what the command will write, by option; None for what it will not.
        models: what it reads.
        called: how one of them is called.

    Raises:
        SettingsError: a path is that of a file which is read.
        UsageFailure: it is a folder's, or leads to none.
        ExportError: no file can be written there.
    """
    for option, path in writes.items():
        if path is None or path == STDOUT:
            continue
        if _same(path, models):
            raise SettingsError(f"{option} {path} is {called}: choose another file")
        if path.is_file():
            what = _read_from(path, models)
            if what:
                raise SettingsError(f"{option} {path} {what}: choose another file")
        try:
            check_writable(path)
        except ExportError as error:  # a path that was mistyped, as of what is read, or a failure
            if path.is_dir() or irregular(path) is not None or not followed(path).parent.is_dir():
                raise UsageFailure(str(error)) from error
            raise


def _same(path: Path, others: Iterable[Path]) -> bool:
    # Unlike resolve: links in a circle are no error.
    return os.path.realpath(path) in set(map(os.path.realpath, others))


def _read_from(path: Path, models: Sequence[Path]) -> str:
    """What the command reads of the file at ``path``, which is no model; nothing where it does not."""
    from mrecg_onnx.converters.external import external_files
    from mrecg_onnx.data import ARRAY_SUFFIXES, IMAGE_SUFFIXES

    for model in models:
        if _same(path, external_files(model)):
            return f"has tensors of {model}"
    for name, given in _inputs():
        if _same(path, [given]):
            return f"is read, too ({name})"
        inside = given.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(given))
        if inside and path.suffix.lower() in IMAGE_SUFFIXES + ARRAY_SUFFIXES:
            return f"is in {given}, which is read ({name})"
    return ""


def _inputs() -> Iterator[tuple[str, Path]]:
    """Files and folders that options of the command at work name, but for those that it writes."""
    from mrecg_onnx.data import labels_path

    context = click.get_current_context(silent=True)
    if context is None:
        return
    if context.meta.get(CONFIG) is not None:
        yield "--config", context.meta[CONFIG]
    for parameter in context.command.params:
        if not isinstance(parameter, click.Option) or parameter.name in _WRITTEN:
            continue
        given = context.params.get(parameter.name or "")
        for one in given if isinstance(given, tuple) else (given,):
            # Whatever is there: a name of a method or a target is none but by chance, and then no output either.
            path = labels_path(Path(one)) if isinstance(one, str | Path) else None
            if path is not None and os.path.lexists(path):
                yield max(parameter.opts, key=len), path


def check_new(path: Path) -> None:
    """Refuse to write over a result, unless --force was given.

    Raises:
        SettingsError: there is a file.
    """
    if path.is_file() and not asked(FORCE):
        raise SettingsError(f"{path} is there already: --force writes over it, --output names another file")


def write_json(data: Mapping[str, Any], path: Path) -> None:
    """Write ``data`` to ``path``, whole or not at all, or to stdout where it is ``-``; inf and nan become null.

    Raises:
        ExportError: the file cannot be written.
    """
    text = json_text(data)
    if path == STDOUT:
        put(text)
        return
    write_text(text + "\n", path)
