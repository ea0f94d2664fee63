"""What every result of a call can do: be written as JSON, and as a page to look at."""

from __future__ import annotations

import json
import math
import pkgutil
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mrecg_onnx.converters.errors import ExportError
from mrecg_onnx.converters.files import followed, write_whole
from mrecg_onnx.converters.kinds import require_kind
from mrecg_onnx.converters.reads import Reads

__all__ = ["Pictured", "Printed", "Result", "json_text", "write_text"]

#: What makes pages. It lies above all results, which know that there is one and no more: it is looked up when it is asked for.
_PAGES = "mrecg_onnx.reporting:report"


class Printed:
    """What prints a few lines, and shows the first one where it is no more than looked at."""

    def __repr__(self) -> str:
        """The first line of what ``print`` shows; models and figures have too many."""
        return f"<{type(self).__name__}: {str(self).partition(chr(10))[0]}>"

    @abstractmethod
    def __str__(self) -> str:
        """A few lines for people."""


class Result(Printed):
    """What a call found.

    Attributes:
        reads: what the call read, which :meth:`save` does not write over; empty where something else made it.
    """

    reads: ClassVar[Reads] = Reads()

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything found, as plain data."""

    def save(self, path: str | Path) -> Path:
        """Write everything found as JSON, as ``--json`` does; the file appears whole or not at all.

        Returns:
            The path.

        Raises:
            SettingsError: what the call read is there, or another model, array or image.
            ExportError: it cannot be written.
        """
        self.reads.check(path)
        require_kind(path, "JSON")
        return write_text(json_text(self.to_json()) + "\n", path)


class Pictured(Result):
    """A result that can be looked at."""

    def report(self, path: str | Path, **more: Any) -> Path:
        """Write a page to look at, one HTML file, as ``--report`` does (the extra ``report``).

        Args:
            path: the file.
            more: what else :func:`mrecg_onnx.report` takes, such as ``data`` and ``labels`` to measure on.

        Returns:
            The path.

        Raises:
            SettingsError: jinja2 or matplotlib is missing, or what is read is there.
            ExportError: it cannot be written.
            MrecgError: models or data cannot be read again.
        """
        pkgutil.resolve_name(_PAGES)(self, path, **more)
        return Path(path)


def json_text(data: Mapping[str, Any]) -> str:
    """``data`` as JSON; inf and nan become null."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def write_text(text: str, path: str | Path) -> Path:
    """Write ``text`` to ``path``, whole or not at all, and give it back.

    Raises:
        ExportError: the file cannot be written.
    """
    try:
        write_whole(followed(path), text)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from error
    return Path(path)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
