"""Files that a command writes: checked before the work, JSON after it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from mrecg_onnx.converters.errors import ExportError, SettingsError
from mrecg_onnx.converters.files import check_writable, write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["check_writes", "write_json"]


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
        if path is None:
            continue
        if path.resolve() in {model.resolve() for model in models}:
            raise SettingsError(f"{option} {path} is {called}: choose another file")
        check_writable(path)


def write_json(data: Mapping[str, Any], path: Path) -> None:
    """Write ``data`` to ``path``, whole or not at all; numbers that JSON does not have (inf, nan) become null.

    Raises:
        ExportError: the file cannot be written.
    """
    text = json.dumps(_finite(data), indent=2, allow_nan=False)
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
