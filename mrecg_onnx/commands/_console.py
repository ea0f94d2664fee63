"""What the commands share towards the terminal: one-line errors, warnings, tables and JSON files.

Names of nodes and tensors, paths and messages of libraries are text from outside. All that is shown passes one of three places,
which write out its control characters: :func:`say` (lines, errors, warnings, log records), the console of :func:`show` and of
progress, and the formatter of other packages' log records.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import sys
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from mrecg_onnx.converters.errors import ExportError, MrecgError, SettingsError
from mrecg_onnx.converters.files import check_writable, write_whole
from mrecg_onnx.converters.text import printable
from mrecg_onnx.machine import byte_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console, RenderableType
    from rich.table import Table

__all__ = [
    "Failure", "Group", "Interrupted", "check_writes", "grid", "guarded", "mebibytes", "ratio", "rows", "say", "show",
    "standard_error", "warn", "write_json",
]  # fmt: skip

#: Columns where no terminal says how wide it is: names are not cut in files and pipes.
WIDE = 240


def say(text: str = "", *, err: bool = True, color: str | None = None) -> None:
    """Print one line, on stderr or on stdout."""
    click.secho(printable(text), fg=color, err=err)


# --- errors ----------------------------------------------------------------------------------------------------------


class Failure(click.ClickException):
    """One line on stderr and exit code 1."""

    prefix = "Error: "

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def show(self, file: Any = None) -> None:  # noqa: ARG002 - click's signature
        """Print the line."""
        say(f"{self.prefix}{self.message}")


class UsageFailure(Failure):
    """The same with exit code 2: the call is wrong, not what it was given."""

    exit_code = 2


class Interrupted(Failure):
    """Ctrl-C is no error."""

    prefix = "Interrupted: "


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn click's usage errors, which take four lines, into one."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "mrecg-onnx"
        message = error.format_message().rstrip(".")
        raise UsageFailure(f"{message} ('{command} --help' lists what there is)") from error


class Group(click.Group):
    """A group whose usage errors, and those of its commands, take one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; what the terminal's encoding does not have is written out instead of failing."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the group's own options."""
        with _one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and run a command."""
        with _one_line():
            return super().invoke(ctx)


@contextmanager
def guarded(*, debug: bool, writes: Sequence[Path] = ()) -> Iterator[None]:
    """Run a command's work: whatever goes wrong in it ends in one line and an exit code.

    Args:
        debug: show the traceback too.
        writes: files the command may write, so that an interruption can say whether it has.

    Raises:
        Failure: anything went wrong.
    """
    before = [_state(path) for path in writes]
    try:
        with _messages(debug=debug):
            yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except MrecgError as error:
        _show_traceback(debug)
        kind = UsageFailure if error.exit_code == UsageFailure.exit_code else Failure
        raise kind(str(error)) from error
    except KeyboardInterrupt as error:
        _show_traceback(debug)
        written = [str(p) for p, old in zip(writes, before, strict=True) if _state(p) != old]
        raise Interrupted(f"{' and '.join(written) or 'nothing'} was written") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:  # "| head": click ends quietly
            raise
        _show_traceback(debug)
        hint = "" if debug else " (run with --debug for the traceback)"
        raise Failure(f"unexpected failure: {type(error).__name__}: {error}{hint}") from error


def _show_traceback(debug: bool) -> None:
    if debug:
        for line in traceback.format_exc().rstrip("\n").split("\n"):
            say(line)


def _state(path: Path) -> tuple[int, int, int] | None:
    """Tells one content of a file from the next; files are replaced, not written into."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


# --- warnings --------------------------------------------------------------------------------------------------------


def warn(message: str) -> None:
    """One yellow line on stderr."""
    say(f"Warning: {' '.join(message.split())}", color="yellow")


class _Lines(logging.Handler):
    """The package's log on stderr; warnings as warnings, each once, the rest (with --debug) as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record, unless the result at the end says the same."""
        if record.levelno < logging.WARNING:
            say(f"{record.name}: {record.getMessage()}")
        elif record.name != "mrecg_onnx.quantization":  # the warnings of the verification: the summary has them
            if record.getMessage() not in self.said:  # a folder may be looked through twice
                warn(record.getMessage())
            self.said.add(record.getMessage())


class _Foreign(logging.Formatter):
    """Log records of other packages, and Python's warnings, whose texts may quote the model."""

    def format(self, record: logging.LogRecord) -> str:
        """Keep the lines of a record, and nothing else that is not text."""
        return "\n".join(map(printable, super().format(record).split("\n")))


@contextmanager
def _messages(*, debug: bool) -> Iterator[None]:
    """Show this package's warnings, and those of others only with ``debug``."""
    ours, root = logging.getLogger("mrecg_onnx"), logging.getLogger()
    lines: logging.Handler = _Lines()
    others: logging.Handler = logging.StreamHandler(sys.stderr) if debug else logging.NullHandler()
    others.setFormatter(_Foreign())
    others.addFilter(lambda record: not record.name.startswith("mrecg_onnx"))
    level = ours.level
    ours.addHandler(lines)
    root.addHandler(others)  # without any, logging's last resort prints to stderr
    ours.setLevel(logging.INFO if debug else logging.WARNING)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            logging.captureWarnings(True)
            try:
                yield
            finally:
                logging.captureWarnings(False)
    finally:
        ours.setLevel(level)
        ours.removeHandler(lines)
        root.removeHandler(others)


# --- tables ----------------------------------------------------------------------------------------------------------


def standard_error() -> Console:
    """Where progress is shown."""
    return _console(sys.stderr)


def show(*tables: RenderableType) -> None:
    """Print tables on stdout."""
    out = _console(sys.stdout)
    if out.is_terminal:
        out.print(*tables)
        return
    with out.capture() as capture:
        out.print(*tables)
    for line in capture.get().splitlines():
        say(line.rstrip(), err=False)  # rich fills lines up with spaces


def _console(stream: TextIO) -> Console:
    """A console that prints names as they are, control characters written out: no markup, emoji or colouring of numbers."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Any:
            """Make text of a string, such as a table's cell, before its width is measured."""
            return super().render_str(printable(text), **options)

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            """Let nothing through that came another way."""
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else "\n".join(map(printable, text.split("\n"))), style, control)

    width = None if stream.isatty() else WIDE
    return Plain(file=stream, width=width, markup=False, emoji=False, highlight=False)


def grid(pairs: Mapping[str, str | Sequence[str]]) -> Table:
    """Keys and values without lines; a value of several lines stays in its column, an empty one is left out."""
    from rich.console import Group as Stack
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in pairs.items():
        lines = [value] if isinstance(value, str) else list(value)
        if lines and lines != [""]:
            style = "yellow" if key.startswith("warning") else None
            table.add_row(key, Stack(*lines), style=style)
    return table


def rows(
    title: str, header: Sequence[str], content: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)
) -> RenderableType:
    """A titled table whose columns ``left`` are text; the others are numbers, set to the right."""
    from rich import box
    from rich.console import Group as Stack
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i in left else "right", overflow="fold")
    for row in content:
        table.add_row(*row)
    return Stack(Text(title, style="bold"), table) if title else table  # a table's own title wraps at its width


def mebibytes(size: int) -> str:
    """Bytes for people."""
    return byte_size(size, "MiB") if size >= 2**20 else byte_size(size, "KiB", 1)


def ratio(before: float, after: float, less: str, more: str) -> str:
    """``3.10x smaller``, or ``1.20x larger`` where ``after`` is."""
    return f"{before / after:.2f}x {less}" if after <= before else f"{after / before:.2f}x {more}"


# --- JSON ------------------------------------------------------------------------------------------------------------


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
