"""Cases of hostile input: a command line in a folder made for it, and what must come of it.

A case is a row. What it makes is made by a function, at the time of the test; nothing hostile is stored in the repository::

    def cut_off(folder: Path) -> Arguments:
        (folder / "model.onnx").write_bytes(float_model()[:1000])
        return "inspect", "model.onnx"

    CASES = [Case("a model that is cut off", cut_off, says=("model.onnx", "cut off"))]

    @rows(CASES)
    def test_models(case: Case, hostile: Hostile) -> None:
        hostile(case)

:func:`faults` lists what is checked. Every case runs in a process of its own, forked from one that has imported everything
(``helpers/zygote.py``) or, with ``fresh``, started anew. A case that would crash or hang software outside of this package is
not made: its guard is tested with a harmless one, where ``before`` lowers a bound.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Arguments", "Case", "Hostile", "Outcome", "Zygote", "faults", "float_model", "model_and_images", "rows"]

Arguments = Sequence[str | bytes]

#: Longest line of an error, in characters.
LONGEST = 300
#: Characters of our own words that there are, which are listed whole behind it.
CHOICES = 400
#: Lines by which a command without a terminal says where it is: they belong to every one.
PROGRESS = re.compile(r"starting \.\.\.|[a-z]+ \.\.\.|[a-z]+ done in [\d.:]+( m?s)?|[a-z]+: .*[\d.:]+( m?s)? so far")
#: What importing takes in a fresh process, in CPU seconds on a slow machine.
IMPORTS_CPU_S = 12.0
#: Longest that a case may take by the clock, in seconds: the machine may do other things.
CLOCK_S = 180.0
#: Files above this are compared by size and time, in bytes: sparse ones of gigabytes are cheap to make and dear to read.
READ_WHOLE = 32 * 2**20
#: Threads that imports may start: Python's own, and one of ONNX Runtime's that waits.
THREADS = 2
#: Where outcomes are appended as lines of JSON.
OUTCOMES = "MRECG_HOSTILE_JSON"


@dataclass(frozen=True)
class Case:
    """One command line and what must come of it.

    Attributes:
        name: what is hostile, in words; unique in its file.
        make: fills an empty folder, which is the command's current one, and gives the arguments behind ``mrecg-onnx``.
        says: pieces of the line on stderr (with ``code`` 0 of all output).
        code: exit code: 1 what was given is no good, 2 the call is wrong, 0 it works all the same.
        lines: beginnings of further lines that may stand on stderr, such as ``"Warning: "``.
        writes: names (patterns of pathlib) that it may add to its folder; without any, nothing may change in it.
        cpu_s: CPU seconds below which it stays, imports left out.
        megabytes: memory below which it stays, in 2^20 bytes beyond what the imports take.
        env: environment variables, None for one that is not set. What Python or a library reads when it starts needs ``fresh``.
        stdin: what is on standard input; nothing by default.
        before: Python that runs in the process before the command: a bound lowered, a clock set back. Not with ``fresh``.
        fresh: start a new interpreter instead of forking one that has imported everything.
        address_space: RLIMIT_AS in bytes; none by default.
        slow: for ``pytest -m slow`` alone.
    """

    name: str
    make: Callable[[Path], Arguments]
    says: tuple[str, ...] = ()
    code: int = 1
    lines: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    cpu_s: float = 5.0
    megabytes: float = 300.0
    env: Mapping[str, str | None] = field(default_factory=dict)
    stdin: bytes = b""
    before: str = ""
    fresh: bool = False
    address_space: int | None = None
    slow: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        code: exit code, negative for a signal.
        hung: it was ended by the clock.
        cpu_s: CPU seconds of the process and of those that it waited for.
        megabytes: its largest memory (resident), in 2^20 bytes.
        beyond: the same beyond what the imports take.
        stdout, stderr: what it wrote.
        changed: files of its folder that are new, gone or other than before.
        temporary: what it left in the temporary folder.
        running: processes that it left.
    """

    code: int
    hung: bool
    cpu_s: float
    megabytes: float
    beyond: float
    stdout: bytes
    stderr: bytes
    changed: tuple[str, ...]
    temporary: tuple[str, ...]
    running: tuple[str, ...]


def longest(line: str) -> int:
    """Characters that an error's line may have."""
    return LONGEST + (CHOICES if "choose among " in line else 0)


def rows(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Parametrize a test by cases."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases of one name"
    params = [pytest.param(case, id=case.name, marks=pytest.mark.slow if case.slow else ()) for case in cases]
    return pytest.mark.parametrize("case", params)


# --- what is checked -------------------------------------------------------------------------------------------------


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What of an outcome is not as it must be; nothing where all is well."""
    found = []
    if outcome.hung:
        found.append(f"did not end within {CLOCK_S:.0f} s")
    if outcome.code != case.code:
        found.append(f"exit code {outcome.code} instead of {case.code}")
    found += [f"{name}: {text}" for name in ("stdout", "stderr") for text in unreadable(getattr(outcome, name))]
    found += what_it_says(case, outcome)
    found += [f"changed {name}" for name in outcome.changed if not any(Path(name).match(p) for p in case.writes)]
    found += [f"left {name} in the temporary folder" for name in outcome.temporary]
    found += [f"left the process {name}" for name in outcome.running]
    allowed = case.cpu_s + (IMPORTS_CPU_S if case.fresh else 0)
    if outcome.cpu_s > allowed:
        found.append(f"took {outcome.cpu_s:.1f} CPU seconds, {allowed:g} are allowed")
    if outcome.beyond > case.megabytes:
        found.append(f"took {outcome.beyond:.0f} MB beyond the imports, {case.megabytes:g} are allowed")
    return found


def unreadable(written: bytes) -> list[str]:
    """What a terminal would not show as text."""
    try:
        text = written.decode()
    except UnicodeDecodeError as error:
        return [f"not UTF-8: {error}"]
    found = sorted({c for c in text if not (c.isprintable() or c == "\n")})
    return [f"control characters {found}"] if found else []


def what_it_says(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with the lines on stderr, and on stdout where it fails."""
    out, err = outcome.stdout.decode(errors="replace"), outcome.stderr.decode(errors="replace")
    lines = [line for line in err.splitlines() if not PROGRESS.fullmatch(line)]
    found = [f"says {text!r}" for text in ("Traceback", "unexpected failure") if text in out + err]
    said = out + err
    if case.code:
        if outcome.stdout:
            found.append(f"fails and writes on stdout: {out[:LONGEST]!r}")
        said = lines.pop() if lines else ""
        if not said.startswith(("Error: ", "Interrupted: ")):
            found.append(f"the last line is no error: {said[:LONGEST]!r}")
        if len(said) > longest(said):
            found.append(f"{len(said)} characters in the line, {longest(said)} are allowed")
    found += [f"another line: {line!r}" for line in lines if not (case.lines and line.startswith(case.lines))]
    found += [f"does not say {text!r}" for text in case.says if text not in said]
    if found:
        found.append(f"it said: {said!r}")
    return found


# --- running ---------------------------------------------------------------------------------------------------------


class Zygote:
    """The process that cases are forked from; it is started when the first one is."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.megabytes = 0.0

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run one request; a process that has died is started again for the next."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return self._answer(process, request["seconds"] + CLOCK_S)

    def _start(self) -> subprocess.Popen[str]:
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from helpers.zygote import serve; serve()"],
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ready = self._answer(self._process, CLOCK_S)
        assert ready["threads"] <= THREADS, "a process whose threads compute cannot be forked fairly"
        self.megabytes = ready["megabytes"]
        return self._process

    def _answer(self, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline() if select.select([process.stdout], [], [], seconds)[0] else ""
        if not line:
            self.close()
            raise RuntimeError("the process that cases are forked from has ended, or does not answer")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class Hostile:
    """Runs cases in a folder of their own; the fixture ``hostile``."""

    def __init__(self, zygote: Zygote, place: Path, module: str) -> None:
        self._zygote, self._place, self._module = zygote, place, module

    def __call__(self, case: Case) -> Outcome:
        """Run a case and check its outcome.

        Raises:
            AssertionError: it is not as it must be; all that is wrong is said.
        """
        outcome = self.outcome(case)
        found = faults(case, outcome)
        self._keep(case, outcome, found)
        assert not found, "\n".join([case.name, *found])
        shutil.rmtree(self._place, ignore_errors=True)
        return outcome

    def outcome(self, case: Case) -> Outcome:
        """Run a case without checking anything."""
        folder, temporary = (self._place / name for name in ("case", "temporary"))
        for made in (folder, temporary):
            made.mkdir(parents=True)
        (self._place / "stdin").write_bytes(case.stdin)
        arguments = [os.fsdecode(argument) for argument in case.make(folder)]
        before = contents(folder)
        answer = self._zygote.ask(
            {
                "folder": str(folder),
                "arguments": arguments,
                "env": {
                    **{name: str(temporary) for name in ("TMPDIR", "HOME")},
                    "COLUMNS": "80",
                    **case.env,
                },
                "before": case.before,
                "fresh": case.fresh,
                "cpu_limit": int(case.cpu_s * 2 + IMPORTS_CPU_S),
                "address_space": case.address_space,
                "seconds": CLOCK_S,
                **{stream: str(self._place / stream) for stream in ("stdin", "stdout", "stderr")},
            }
        )
        after = contents(folder)
        return Outcome(
            answer["code"],
            answer["hung"],
            answer["cpu_s"],
            answer["megabytes"],
            max(0.0, answer["megabytes"] - self._zygote.megabytes),
            (self._place / "stdout").read_bytes(),
            (self._place / "stderr").read_bytes(),
            tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))),
            tuple(sorted(contents(temporary))),
            tuple(answer["left"]),
        )

    def _keep(self, case: Case, outcome: Outcome, found: Sequence[str]) -> None:
        """Append the outcome to the file that the environment names."""
        if OUTCOMES not in os.environ:
            return
        said = outcome.stderr.decode(errors="replace").splitlines()
        row = {
            "file": self._module,
            "case": case.name,
            "code": outcome.code,
            "says": said[-1] if said else "",
            "cpu_s": round(outcome.cpu_s, 2),
            "mb": round(outcome.megabytes),
            "mb_beyond_imports": round(outcome.beyond),
            "faults": list(found),
        }
        with Path(os.environ[OUTCOMES]).open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # other workers write, too
            file.write(json.dumps(row) + "\n")


def contents(folder: Path) -> dict[str, str]:
    """Every entry below a folder by its path: its kind, and what it holds; nothing is opened but plain files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder)).encode(errors="backslashreplace").decode()
        with contextlib.suppress(FileNotFoundError):
            state = path.lstat()
            kind = stat.filemode(state.st_mode)
            if stat.S_ISLNK(state.st_mode):
                kind += str(path.readlink())
            elif stat.S_ISREG(state.st_mode):
                whole = state.st_size <= READ_WHOLE
                kind += (
                    hashlib.sha256(path.read_bytes()).hexdigest() if whole else f"{state.st_size} {state.st_mtime_ns}"
                )
            found[name] = kind
    return found


# --- what cases begin with -------------------------------------------------------------------------------------------


@cache
def float_model() -> bytes:
    """A small classifier of images of 16 x 16, as a file."""
    from helpers.command_line import classifier

    return classifier().SerializeToString()


def model_and_images(folder: Path, images: int = 4) -> None:
    """Write ``model.onnx`` and ``images/``, both harmless."""
    from helpers.command_line import write_images

    (folder / "model.onnx").write_bytes(float_model())
    write_images(folder / "images", images)
