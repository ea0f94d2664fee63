"""What a call or a command reads, which nothing it writes may take the place of."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mrecg_onnx.converters.choices import SettingsGroup
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.kinds import ARRAY_SUFFIXES, IMAGE_SUFFIXES, is_file
from mrecg_onnx.converters.text import bounded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Read", "Reads", "require_path"]

#: Parameters that name models, beside which their tensors may lie.
_RESULT = "result"
_MODELS = frozenset({"model", "fp32", "quantized", "against", "files", _RESULT})
#: Parameters that name what is written.
_WRITTEN = frozenset({"output", "checkpoint", "command", "progress"})
# Lists in lists: pairs of a path and a target in a list, in a tuple with labels.
_DEPTH = 2


def require_path(name: str, path: object) -> None:
    """Refuse what is no path, before anything is done.

    Raises:
        SettingsError: what is called ``name`` is none; bytes are none, either.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise SettingsError(f"{name} is {bounded(repr(path), 80)}: it must be a path, as text or pathlib.Path")


class Read(NamedTuple):
    """A file or a folder that is read.

    Attributes:
        name: what names it: an option, or a parameter in Python.
        path: as it was given, labels with what is said behind them (``boxes.json:order``, ``masks/:_m.png``).
        model: it is a model.
    """

    name: str
    path: str
    model: bool = False


@dataclass(frozen=True)
class Reads:
    """All that is read.

    Attributes:
        files: each with what names it.
        folder: where relative paths begin: a result may be saved when the process is elsewhere.
    """

    files: tuple[Read, ...] = ()
    folder: str = ""

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Reads:
        """Whatever arguments name, by parameter: paths, lists and dicts of paths, arrays in files, results, files in settings.

        A word among them (a metric's name) is no file but by chance, and then no output either.
        """
        found = (read for name, value in given.items() if name not in _WRITTEN for read in _paths(name, value))
        try:
            folder = os.fspath(Path.cwd())
        except OSError:  # it is gone, and relative paths lead nowhere
            folder = ""
        return cls(tuple(found), folder)

    def check(self, path: str | os.PathLike[str], option: str = "") -> None:
        """Refuse to write over one of them.

        Args:
            path: what will be written; where nothing is, nothing is lost.
            option: what names it, for messages.

        Raises:
            SettingsError: it is no path; or a model is there, or its tensors, images, arrays, labels, rules or options that
                are read.
        """
        require_path(option or "path", path)
        if not is_file(path):
            return
        what = self._taken(Path(path))
        if what:
            raise SettingsError(f"{option} {os.fspath(path)} {what}: choose another file".lstrip())

    def check_folder(self, path: str | os.PathLike[str], option: str) -> None:
        """Refuse a folder for results in one that is searched for data: pictures of the results would be among them.

        Args:
            path: the folder that will be written to.
            option: what names it, for messages.

        Raises:
            SettingsError: it is a folder of data, or lies in one.
        """
        real = os.path.realpath(path)
        for read in self.files:
            there = self._there(read) if not read.model else None
            if there is not None and Path(there).is_dir() and Path(real).is_relative_to(there):
                raise SettingsError(
                    f"{option} {os.fspath(path)} is or lies in {read.path}, which is searched for data ({read.name}): "
                    "choose another folder"
                )

    def _taken(self, path: Path) -> str:
        """What the file at ``path`` is to those who read it; nothing where they do not."""
        from mrecg_onnx.converters.external import external_files  # noqa: PLC0415 - onnx comes with it: help does not wait

        real, data = os.path.realpath(path), path.suffix.lower() in IMAGE_SUFFIXES + ARRAY_SUFFIXES
        models = [read.path for read in self.files if read.model and "\0" not in read.path]
        if any(real == os.path.realpath(Path(self.folder, model)) for model in models):
            return "is the model itself" if len(models) == 1 else "is one of the models"
        for model in dict.fromkeys(models):
            if real in map(os.path.realpath, external_files(Path(self.folder, model))):
                return f"has tensors of {model}"
        for read in self.files:
            there = self._there(read) if not read.model else None
            if there == real:
                return f"is read, too ({read.name})"
            if there is not None and data and Path(real).is_relative_to(there):
                return f"is in {read.path}, which is read ({read.name})"
        return ""

    def _there(self, read: Read) -> str | None:
        """The file or folder that is meant, without what labels say behind it; None where there is none."""
        path = read.path
        while path and "\0" not in path:
            whole = Path(self.folder, path)
            if os.path.lexists(whole):
                return os.path.realpath(whole)  # unlike resolve: links in a circle are no error
            path = path.rpartition(":")[0]
        return None


def _paths(name: str, value: object, depth: int = 0) -> Iterator[Read]:
    """Files and folders that the argument ``value`` of the parameter ``name`` names."""
    model = name in _MODELS
    if isinstance(value, str | os.PathLike):
        yield Read(name, os.fsdecode(value), model)
    elif isinstance(value, np.memmap):
        if value.filename is not None:
            yield Read(name, os.fsdecode(value.filename))
    elif isinstance(value, SettingsGroup):
        words = {field.name: getattr(value, field.name) for field in fields(value)}
        yield from (read for field, word in words.items() if isinstance(word, str) for read in _paths(field, word))
        yield from (
            Read(field, word.source) for field, word in words.items() if isinstance(getattr(word, "source", None), str)
        )
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            if isinstance(one, str | os.PathLike) or (depth < _DEPTH and not isinstance(one, int | float)):
                yield from _paths(name, one, depth + 1)
    elif model:
        from mrecg_onnx.converters.made import Made, holds_model  # noqa: PLC0415 - as above

        known = getattr(value, "reads", None)
        if isinstance(known, Reads) and name == _RESULT:  # what it was made of is read again
            yield from (read._replace(path=os.fspath(Path(known.folder, read.path))) for read in known.files)
        if isinstance(value, Made) and value.output is not None and holds_model(value):
            yield Read(name, os.fsdecode(value.output), model)
