"""One line and an exit code for whatever goes wrong in a command, and a line for every warning."""

from __future__ import annotations

import errno
import io
import logging
import sys
import traceback
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from mrecg_onnx.commands._console import say, warn
from mrecg_onnx.converters.errors import MrecgError
from mrecg_onnx.converters.text import LONGEST_LINE, bounded, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Failure", "Group", "Interrupted", "guarded"]


class Failure(click.ClickException):
    """One line on stderr and exit code 1."""

    prefix = "Error: "

    def __init__(self, message: str) -> None:
        super().__init__(bounded(" ".join(message.split()), LONGEST_LINE - len(self.prefix)))

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
