"""Files that a command writes: checked before the work, against all that it reads, JSON after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrecg_onnx.commands._console import FORCE, asked, put
from mrecg_onnx.commands._errors import UsageFailure
from mrecg_onnx.converters.errors import ExportError, ModelError, MrecgError, SettingsError
from mrecg_onnx.converters.files import check_writable, followed, irregular, require_model
from mrecg_onnx.converters.kinds import require_kind
from mrecg_onnx.converters.reads import Read, Reads
from mrecg_onnx.converters.results import json_text, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["CONFIG", "STDOUT", "Extras", "check_new", "check_writes", "write_json"]

#: What --json takes for standard output.
STDOUT = Path("-")
#: Where a command's context keeps the file of options that it was given.
CONFIG = "mrecg_onnx.config"
#: Options with the kinds of what they write (:data:`mrecg_onnx.converters.kinds.KINDS`).
_KINDS = {"--json": "JSON", "--report": "page", "--plot": "picture"}
#: Parameters of commands with what they write.
_WRITTEN = frozenset({"out", "folder", "json_file", "report_file", "plot_file", "checkpoint"})


def check_writes(writes: Mapping[str, Path | None], models: Sequence[Path]) -> None:
    """Refuse to write over what the command reads, and to find out after the work that a file cannot be written.

    What it reads is the models, the files that their tensors lie in, and whatever its options name: images, arrays, labels,
    rules, preprocessing, other options.

    Args:
        writes: what the command will write, by option; None for what it will not.
        models: what it reads.

    Raises:
        SettingsError: a path is that of a file which is read.
        UsageFailure: it is a folder's, or leads to none.
        ExportError: no file can be written there.
    """
    for model in models:
        try:  # of a mistyped name nothing else is worth saying
            require_model(model)
        except ModelError as error:
            raise UsageFailure(str(error)) from error
    reads = Reads((*(Read("", str(model), model=True) for model in models), *_inputs()))
    for option, path in writes.items():
        if path is None or path == STDOUT:
            continue
        reads.check(path, option)
        try:
            check_writable(path)
        except ExportError as error:  # a path that was mistyped, as of what is read, or a failure
            if path.is_dir() or irregular(path) is not None or not followed(path).parent.is_dir():
                raise UsageFailure(str(error)) from error
            raise
        if option in _KINDS:
            require_kind(path, _KINDS[option], option)


def _inputs() -> Iterator[Read]:
    """Whatever options of the command at work name, but for what it writes."""
    context = click.get_current_context(silent=True)
    if context is None:
        return
    if context.meta.get(CONFIG) is not None:
        yield Read("--config", str(context.meta[CONFIG]))
    for parameter in context.command.params:
        if not isinstance(parameter, click.Option) or parameter.name in _WRITTEN:
            continue
        given = context.params.get(parameter.name or "")
        for one in given if isinstance(given, tuple) else (given,):
            # A name of a method or a target is no file but by chance, and then no output either.
            if isinstance(one, str | Path):
                yield Read(max(parameter.opts, key=len), str(one))


def check_new(path: Path) -> None:
    """Refuse to write over a result, unless --force was given.

    Raises:
        SettingsError: there is a file.
    """
    if path.is_file() and not asked(FORCE):
        raise SettingsError(f"{path} is there already: --force writes over it, --output names another file")


class Extras:
    """What is written behind the work, pages and JSON: where one cannot be, what was found is shown all the same."""

    def __init__(self) -> None:
        self._failed: list[MrecgError] = []

    def write(self, path: Path | None, make: Callable[[Path], object]) -> Path | None:
        """Have ``make`` write ``path`` where there is one; what was written, None where nothing was."""
        if path is None:
            return None
        try:
            make(path)
        except MrecgError as error:
            self._failed.append(error)
            return None
        return path

    def settle(self, kept: str = "") -> None:
        """Say what could not be written, after all else was shown; ``kept`` is there, and what helps.

        Raises:
            ExportError: something could not be.
        """
        if self._failed:
            first = self._failed[0]
            raise ExportError(f"{first}; {kept}" if kept else str(first)) from first


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
