"""One line and an exit code for whatever goes wrong in a command, and a line for every warning."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from mrecg_onnx.commands._console import OWN_PROCESS, OutputError, open_streams, say, silence, warn
from mrecg_onnx.commands._help import Context
from mrecg_onnx.commands._signals import Stopped, stoppable
from mrecg_onnx.converters.errors import DataError, MrecgError, first_line
from mrecg_onnx.converters.text import LONGEST_LINE, at_the_terminal, bounded, did_you_mean, printable, quoted
from mrecg_onnx.machine import is_first

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Failure", "Group", "UsageFailure", "guarded", "interrupted"]


class Failure(click.ClickException):
    """One line on stderr and exit code 1; ``choices``, the end of the message, is not cut."""

    prefix = "Error: "

    def __init__(self, message: str, choices: str = "") -> None:
        said = " ".join(message.removesuffix(choices).split())
        super().__init__(bounded(said, LONGEST_LINE - len(self.prefix)) + printable(choices))

    def show(self, file: Any = None) -> None:  # noqa: ARG002 - click's signature
        """Print the line."""
        say(f"{self.prefix}{self.message}")


class UsageFailure(Failure):
    """The same with exit code 2: the call is wrong, not what it was given."""

    exit_code = 2


class Interrupted(Failure):
    """Ctrl-C is no error, nor is another signal that asks to end: the exit code says which one it was."""

    prefix = "Interrupted: "
    exit_code = 130

    def show(self, file: Any = None) -> None:
        """Print the line, once of several processes."""
        if is_first():
            super().show(file)


class _Terminated(Interrupted):
    exit_code = 143


class _HungUp(Interrupted):
    exit_code = 129


_BY_NAME = {"SIGTERM": _Terminated, "SIGHUP": _HungUp}


def interrupted(message: str, by: KeyboardInterrupt) -> Interrupted:
    """What to raise where a signal came; ``message`` says what is there."""
    name = signal.Signals(by.number).name if isinstance(by, Stopped) else "SIGINT"
    kind = _BY_NAME.get(name)
    return Interrupted(message) if kind is None else kind(f"{name}, {message}")


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn click's usage errors, which take four lines, into one."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except KeyboardInterrupt as error:
        raise interrupted("nothing was written", error) from error
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "mrecg-onnx"
        message = _unknown(error) or error.format_message().rstrip(".")
        raise UsageFailure(f"{message} ('{command} --help' lists what there is)") from error


def _unknown(error: click.UsageError) -> str:
    """What to say of a name that there is not, with the one that was meant (click names three, by the alphabet); else nothing."""
    if error.ctx is None:
        return ""
    if isinstance(error, click.exceptions.NoSuchCommand):
        assert isinstance(error.ctx.command, click.Group)
        what, name, known = "command", error.command_name, list(error.ctx.command.commands)
    elif isinstance(error, click.NoSuchOption):
        every = [name for one in error.ctx.command.get_params(error.ctx) for name in (*one.opts, *one.secondary_opts)]
        what, name, known = "option", error.option_name, [one for one in every if one.startswith("--")]
    else:
        return ""
    if isinstance(error, click.NoSuchOption) and (others := _with_option(error.ctx, name)):
        return f"No such option '{name}' here: it is an option of {', '.join(others)}"
    begun = sorted((one for one in known if one.startswith(name)), key=len)
    hint = f"; did you mean '{begun[0]}'?" if begun else did_you_mean(name, known)
    return f"No such {what} '{name}'{hint}"


def _with_option(ctx: click.Context, name: str) -> list[str]:
    """Other commands that have an option of this name."""
    root = ctx.find_root().command
    commands = root.commands if isinstance(root, click.Group) else {}
    return [
        command
        for command, one in commands.items()
        if any(name in (*parameter.opts, *parameter.secondary_opts) for parameter in one.params)
    ]


class Group(cloup.Group):
    """A group whose usage errors, and those of its commands, take one line."""

    context_class = Context

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; what the terminal's encoding does not have is written out instead of failing."""
        if not kwargs.get("standalone_mode", True):  # a host calls: streams and signals are its own
            return super().main(*args, **kwargs)
        open_streams()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        with stoppable():
            try:
                return super().main(*args, obj=OWN_PROCESS, **kwargs)
            except OSError as error:  # help, which click prints
                silence(sys.stdout)
                Failure(f"standard output cannot be written: {error.strerror or error}").show()
                sys.exit(Failure.exit_code)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; ``help COMMAND`` is what many type for ``COMMAND --help``."""
        return super().parse_args(ctx, [*args[1:], "--help"] if args[:1] == ["help"] else args)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the group's own options."""
        with _one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and run a command."""
        with _one_line():
            return super().invoke(ctx)


@contextmanager
def guarded(*, debug: bool, writes: Sequence[Path] = (), kept: Callable[[], str] | None = None) -> Iterator[None]:
    """Run a command's work: whatever goes wrong in it ends in one line and an exit code.

    Args:
        debug: show the traceback too.
        writes: files the command may write, so that an interruption can say whether it has.
        kept: what is left of work that was not finished, for whoever interrupts it.

    Raises:
        Failure: anything went wrong.
    """
    with at_the_terminal(), _one_failure(debug, writes, kept):
        yield


@contextmanager
def _one_failure(debug: bool, writes: Sequence[Path], kept: Callable[[], str] | None) -> Iterator[None]:
    before = [_state(path) for path in writes]
    try:
        with _messages(debug=debug):
            _require_folder()
            yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except OutputError as error:
        _show_traceback(debug)
        raise Failure(f"{error}{_written(writes, before, '; {} was written')}") from error
    except MrecgError as error:
        _show_traceback(debug)
        kind = UsageFailure if error.exit_code == UsageFailure.exit_code else Failure
        raise kind(str(error), getattr(error, "choices", "")) from error
    except KeyboardInterrupt as error:
        _show_traceback(debug)
        written = _written(writes, before, "{} was written")
        left = f"; {kept()}" if kept is not None and not written else ""
        raise interrupted(f"{written or 'nothing was written'}{left}", error) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:  # "| head": click ends quietly
            raise
        _show_traceback(debug)
        if isinstance(error, OSError) and error.errno in _NO_PATHS:
            raise Failure(
                f"{quoted(os.fsdecode(error.filename or ''))}: {error.strerror}; give another path"
            ) from error
        if _out_of_memory(error):
            raise Failure(f"there is not enough memory ({first_line(error)[:120]}); {_LESS}") from error
        hint = "" if debug else " (run with --debug for the traceback)"
        raise Failure(f"unexpected failure: {type(error).__name__}: {error}{hint}") from error


def _require_folder() -> None:
    """Refuse to work in a folder that was removed: paths cannot be told from there."""
    try:
        Path.cwd()
    except OSError as error:
        raise DataError(f"the current folder cannot be used ({error.strerror}): change to another one") from error


#: What no file system takes for a path: a name too long, links in a circle.
_NO_PATHS = frozenset({errno.ENAMETOOLONG, errno.ELOOP})
#: What libraries say where the system gives them no memory: torch, C++, oneDNN, Python's threads, and C code that forgot to.
_NO_MEMORY = (
    "can't allocate memory",
    "bad_alloc",
    "could not create a primitive",
    "can't start new thread",
    "error return without exception set",
    "Failed to allocate memory",
)
_LESS = "use fewer --samples, a smaller --batch-size or --memory, or a machine with more (--debug shows where)"


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of the machine or of a GPU: torch has a class for the latter and none for the former."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, (RuntimeError, SystemError)) and any(text in str(error) for text in _NO_MEMORY)


def _written(writes: Sequence[Path], before: Sequence[tuple[int, int, int] | None], sentence: str) -> str:
    """``sentence`` with those of ``writes`` that are not as they were ``before``; empty where all are."""
    changed = [str(p) for p, old in zip(writes, before, strict=True) if _state(p) != old]
    if len(changed) > 1:
        sentence = sentence.replace(" was ", " were ")
    return sentence.format(" and ".join(changed)) if changed else ""


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
