"""Lines and tables on the terminal.

Names of nodes and tensors, paths and messages of libraries are text from outside. All that is shown passes one of three places,
which write out its control characters: :func:`say` (lines, errors, warnings, log records), the console of :func:`show` and of
progress, and the formatter of other packages' log records.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

import click

from mrecg_onnx.converters.errors import MrecgError
from mrecg_onnx.converters.garbage import collecting_seldom
from mrecg_onnx.converters.text import bounded, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = [
    "FORCE",
    "OWN_PROCESS",
    "PRESET",
    "QUIET",
    "TAKEN",
    "VERBOSE",
    "OutputError",
    "alone_on_stdout",
    "asked",
    "is_quiet",
    "open_streams",
    "put",
    "say",
    "show",
    "silence",
    "standard_error",
    "warn",
]

#: Columns where no terminal says how wide it is: names are not cut in files and pipes. COLUMNS goes before it.
WIDE = 240
#: Fewer break words letter by letter, and are no terminal: they are as good as not said.
NARROWEST = 20
#: What a command's context keeps of how it was asked to talk: nothing but errors, with details, JSON alone on stdout; and
#: whether it may write over results.
QUIET, VERBOSE, TAKEN, FORCE = (f"mrecg_onnx.{name}" for name in ("quiet", "verbose", "stdout", "force"))
#: Where it keeps the stream that JSON goes to.
_JSON_STREAM = "mrecg_onnx.stream"
#: The object of a command's context where the process is there for the command alone.
OWN_PROCESS = "mrecg_onnx.own_process"
#: Options that a preset stands for, and that were not given in its place.
PRESET = "mrecg_onnx.preset"


def asked(key: str) -> bool:
    """Whether the command at work was called with the flag that ``key`` stands for."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(key))


def is_quiet() -> bool:
    """Whether the command was asked to say nothing but what went wrong."""
    return asked(QUIET)


class OutputError(MrecgError):
    """Standard output takes no more."""


def say(text: str = "", *, err: bool = True, color: str | None = None) -> None:
    """Print one line, on stderr, or on stdout unless that is quiet or holds JSON.

    What stderr does not take is lost: no work of hours ends because its log cannot be written.

    Raises:
        OutputError: stdout does not take it.
        BrokenPipeError: nobody reads stdout any more.
    """
    if not err:
        if not is_quiet() and not asked(TAKEN):
            put(printable(text), color)
        return
    try:
        click.secho(printable(text), fg=color, err=True)
    except OSError:
        silence(sys.stderr)


def put(text: str, color: str | None = None) -> None:
    """Print on stdout, whatever was asked for.

    Raises:
        OutputError: it does not take it.
        BrokenPipeError: nobody reads it any more.
    """
    context = click.get_current_context(silent=True)
    kept: TextIO | None = None if context is None else context.meta.get(_JSON_STREAM)
    stream = kept or sys.stdout
    with _printing(stream):
        click.secho(text, file=stream, fg=color)


@contextmanager
def alone_on_stdout(ctx: click.Context) -> Iterator[None]:
    """Leave stdout to JSON, where the command was asked for that: what else is printed there goes to stderr.

    Libraries print on the descriptor itself, some of it when the process ends (gloo under torchrun). In a process of the
    command's own the descriptor leads to stderr from here to the end; that of a host is its own.
    """
    if not ctx.meta.get(TAKEN):
        yield
        return
    ctx.meta[_JSON_STREAM] = _moved(sys.stdout) if ctx.find_root().obj is OWN_PROCESS else sys.stdout
    with redirect_stdout(sys.stderr):
        yield


def _moved(stream: TextIO) -> TextIO:
    """Another stream to where ``stream`` writes, whose descriptor is another name of stderr's from now on."""
    try:
        number, errors = stream.fileno(), sys.stderr.fileno()
    except (OSError, ValueError):  # none of the system's
        return stream
    stream.flush()
    moved = os.fdopen(os.dup(number), "w", encoding=stream.encoding, errors=stream.errors)
    os.dup2(errors, number)
    return moved


@contextmanager
def _printing(stream: TextIO) -> Iterator[None]:
    """Say that it was stdout that failed."""
    try:
        yield
    except OSError as error:
        silence(stream)
        if error.errno == errno.EPIPE:
            raise
        raise OutputError(f"standard output cannot be written: {error.strerror or error}") from error


def open_streams() -> None:
    """Open what was closed when the program began: files opened later would get its number, and what is printed with it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


def silence(stream: TextIO | None) -> None:
    """Let what is printed on ``stream`` go nowhere: what it still holds would fail again when the program ends."""
    try:
        number = stream.fileno() if stream is not None else -1
    except (OSError, ValueError):  # none of the system's
        return
    if number >= 0:
        opened = os.open(os.devnull, os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)


def warn(message: str) -> None:
    """One yellow line on stderr."""
    if is_quiet():
        return
    say(bounded(f"Warning: {' '.join(message.split())}"), color="yellow")


def standard_error() -> Console:
    """Where progress is shown."""
    return _console(sys.stderr)


def show(*tables: RenderableType) -> None:
    """Print tables on stdout, unless that is quiet or holds JSON."""
    if is_quiet() or asked(TAKEN):
        return
    out = _console(sys.stdout)
    with collecting_seldom(), _printing(sys.stdout):
        if out.is_terminal:
            out.print(_spaced(tables), end="", crop=False)  # what is to be copied is whole: the terminal breaks it
            return
        with out.capture() as capture:  # its end looks whether the stream still takes anything
            out.print(_spaced(tables), end="", crop=False)
    for line in capture.get().splitlines():
        say(line.rstrip(), err=False)  # rich fills lines up with spaces


def _spaced(tables: Sequence[RenderableType]) -> RenderableType:
    """``tables`` one below the other, with one empty line where two of them have one each, and none above the first."""
    from rich.segment import Segment

    class Spaced:
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            empty = True
            for table in tables:
                for line in Segment.split_lines(console.render(table, options)):
                    before, empty = empty, not any(segment.text.strip() for segment in line)
                    if not (before and empty):
                        yield from line
                        yield Segment.line()

    return Spaced()


def _columns() -> int:
    """How wide what goes to a file or a pipe may be: as the environment says, where that is a width that a table has."""
    said = os.environ.get("COLUMNS", "")
    found = int(said) if said.isascii() and said.isdigit() and len(said) < len("10000") else 0
    return found if found >= NARROWEST else WIDE


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
            for segment in super().render(renderable, options):
                text, style, control = segment
                if (
                    control or text.isprintable() or text == "\n"
                ):  # most, and each passes here once for every table around it
                    yield segment
                    continue
                yield Segment("\n".join(map(printable, text.split("\n"))), style, control)

    width = None if stream.isatty() else _columns()
    return Plain(file=stream, width=width, markup=False, emoji=False, highlight=False)
