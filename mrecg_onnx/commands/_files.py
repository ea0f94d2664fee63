"""Files that a command writes: checked before the work, JSON after it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrecg_onnx.commands._console import FORCE, asked, put
from mrecg_onnx.converters.errors import ExportError, SettingsError
from mrecg_onnx.converters.files import check_writable, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["STDOUT", "check_new", "check_writes", "write_json"]

#: What --json takes for standard output.
STDOUT = Path("-")


def check_writes(writes: Mapping[str, Path | None], models: Sequence[Path], called: str = "one of the models") -> None:
    """Refuse to write over a model, and to find out after the work that a file cannot be written.

    Args:
        writes: what the command will write, by option; None for what it will not.
        models: what it reads.
        called: how one of them is called.

    Raises:
        SettingsError: a path is that of one of ``models``.
        ExportError: no file can be written there.
    """
    for option, path in writes.items():
        if path is None or path == STDOUT:
            continue
        if os.path.realpath(path) in set(
            map(os.path.realpath, models)
        ):  # unlike resolve: links in a circle are no error
            raise SettingsError(f"{option} {path} is {called}: choose another file")
        check_writable(path)


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
    text = json.dumps(_finite(data), indent=2, allow_nan=False)
    if path == STDOUT:
        put(text)
        return
    try:
        write_whole(path, text + "\n")
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
