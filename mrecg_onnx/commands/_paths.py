"""Paths on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from mrecg_onnx.converters.text import printable

__all__ = ["FILE", "PATH", "PathOrWord"]

#: Whether a path exists is for the method to say: its message names what was wrong with what.
PATH = click.Path(path_type=Path)


class _FileToWrite(click.Path):
    """A path that a file is written to, and no folder's: ``out/`` where there is none would become a file ``out``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if isinstance(value, str) and value.endswith(("/", os.sep)) and not Path(value).is_dir():
            self.fail(f"there is no folder '{printable(value)}', and a file is written: give its path", param, ctx)
        return super().convert(value, param, ctx)


FILE = _FileToWrite(path_type=Path)


class PathOrWord(click.Path):
    """A path, or a word as it stands: a file or folder of that name is ``./zeroq``."""

    def __init__(self, word: str) -> None:
        super().__init__(path_type=Path)
        self.word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word as a string, anything else as a path."""
        return value if value == self.word else super().convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Paths, and the word where it was begun."""
        if incomplete and self.word.startswith(incomplete):
            return [CompletionItem(self.word)]
        return super().shell_complete(ctx, param, incomplete)
