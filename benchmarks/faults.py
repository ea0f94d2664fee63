"""Faults by injection: runs that are killed, interrupted, starved of disk or memory, or come two at a time.

usage: python benchmarks/faults.py [--only NAME...] [--moments 40] [--pairs 20] [--seed 0]

Everything is done on the sample with few iterations, in processes forked from one that has imported all (torchrun's excepted). A
fault is survived where no file is half-written, the temporary folders hold nothing after the next start, an error takes one line,
and, where a run can go on, the file that it ends with is that of an undisturbed run, byte for byte.

What is not possible where it runs (mounting a small disk, a control group) is left out, and the row says so. There is no GPU: its
running out of memory is raised in the place where torch would. The clock is set back for the process alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import psutil
import torch
from _memory import caching
from _record import by, header
from filelock import FileLock
from onnx import numpy_helper

from mrecg_onnx.commands import main as command_line
from mrecg_onnx.commands._files import write_json
from mrecg_onnx.comparing import compare, draw_timings
from mrecg_onnx.converters import save
from mrecg_onnx.converters.files import sweep, write_whole
from mrecg_onnx.learning import checkpoint as checkpoints
from mrecg_onnx.learning import loop
from mrecg_onnx.machine import locked
from mrecg_onnx.network import State
from mrecg_onnx.progress import UnitResult
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating.benchmarking import Timing

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[1]
MODEL, CALIB, DATA = (str(ROOT / "samples" / name) for name in ("digits.onnx", "calib", "val"))
FAST = ["--method", "brecq", "--iters", "4", "--samples", "16", "--threads", "1", "--equalize", "off", "--range", "mse"]
OUT, UNITS = "out.onnx", "units"
#: Seconds within which a process has to have ended that lost another, or its parent.
BOUND = 30.0


@dataclass
class Row:
    """One kind of fault.

    Attributes:
        fault: in words.
        injected: how often.
        survived: how often nothing was lost.
        says: what the user sees, once each.
        failed: what went wrong, for whoever looks for it.
        left_out: why it was not tried.
    """

    fault: str
    injected: int = 0
    survived: int = 0
    says: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left_out: str = ""

    def count(self, faults: list[str], says: str = "") -> None:
        """One injection and what was wrong afterwards."""
        self.injected += 1
        self.survived += not faults
        self.failed += faults
        words = re.sub(r"\d+ units? (is|are)", "N units are", says)
        words = re.sub(r"process \d+ on \S+ since [\d-]+ [\d:]+", "process PID on HOST since TIME", words)
        words = re.sub(re.escape(tempfile.gettempdir()) + r"/[^\s']*/", "", words)
        if words and words not in self.says:
            self.says.append(words)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {k: v for k, v in vars(self).items() if v or k in {"fault", "injected", "survived"}}


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a process ended: exit code, negative for a signal, and what it said."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The error."""
        return next((one for one in reversed(self.err.splitlines()) if one.startswith(("Error", "Interrupted"))), "")

    def faults(self) -> list[str]:
        """What of it is not as it has to be."""
        found = [
            text for text in ("Traceback", "unexpected failure", "Exception ignored") if text in self.err + self.out
        ]
        lines = [one for one in self.err.splitlines() if one.startswith(("Error", "Interrupted"))]
        if self.code > 0 and len(lines) != 1:
            found.append(f"{len(lines)} lines of error")
        return [f"{one}: {self.err[-300:]}" for one in found]


class Child:
    """A forked process in ``folder`` that does ``work``; what it says goes to files."""

    def __init__(self, folder: Path, work: Callable[[], Any]) -> None:
        self.folder, self.said = folder, folder.parent / f"{folder.name}.said{time.monotonic_ns()}"
        self.said.mkdir()
        for name in ("out", "err"):
            (self.said / name).touch()
        (folder / "tmp").mkdir(exist_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            self._run(work)

    def _run(self, work: Callable[[], Any]) -> None:
        code = 1
        try:
            os.chdir(self.folder)
            for name, handler in (
                ("SIGINT", signal.default_int_handler),
                ("SIGTERM", signal.SIG_DFL),
                ("SIGHUP", signal.SIG_DFL),
            ):
                signal.signal(getattr(signal, name), handler)  # in the background they are ignored
            os.environ["TMPDIR"], tempfile.tempdir = str(self.folder / "tmp"), None
            for number, name in ((1, "out"), (2, "err")):
                opened = os.open(self.said / name, os.O_WRONLY | os.O_CREAT)
                os.dup2(opened, number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            work()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException as error:  # noqa: BLE001 - a benchmark of errors
            print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def signal(self, number: int) -> None:
        """Send it one; it may have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = 300.0) -> Ended:
        """Wait for its end."""
        until = time.monotonic() + seconds
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > until:
                self.signal(signal.SIGKILL)
            time.sleep(0.005)
        out, err = ((self.said / name).read_text(errors="replace") for name in ("out", "err"))
        shutil.rmtree(self.said)
        return Ended(os.waitstatus_to_exitcode(found[1]), out, err)


def command(*arguments: str) -> Callable[[], None]:
    """What runs the command line."""
    return lambda: command_line(list(arguments), prog_name="mrecg-onnx")


def quantizing(out: str = OUT, *more: str) -> Callable[[], None]:
    return command("quantize", MODEL, "--calib", CALIB, *FAST, "--force", "-o", out, *more)


def run(folder: Path, work: Callable[[], Any]) -> Ended:
    return Child(folder, work).wait()


# --- what must hold --------------------------------------------------------------------------------------------------


class Sample:
    """An undisturbed run: its file, and what it takes.

    Attributes:
        cpu_s: CPU seconds of a run; moments are counted in them, as the machine may do other things.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, iter(range(10**6))
        place = self.place()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = run(place, quantizing(OUT, "--checkpoint", UNITS))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if ended.code:
            raise SystemExit(f"the undisturbed run fails: {ended.err}")
        self.file = (place / OUT).read_bytes()

    def moment(self, child: Child, share: float) -> None:
        """Wait until ``child`` has done that share of a run, or has ended."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(child.pid)
            while process.status() != psutil.STATUS_ZOMBIE:
                times = process.cpu_times()
                if times.user + times.system >= share * self.cpu_s:
                    return
                time.sleep(0.002)

    def place(self) -> Path:
        """An empty folder."""
        made = self.folder / str(next(self.numbers))
        made.mkdir()
        return made

    def check(self, place: Path, *, complete: bool = False) -> list[str]:
        """Whether the file there is that of the undisturbed run, or, unless ``complete``, none."""
        path = place / OUT
        if not path.exists():
            return ["no file was written"] if complete else []
        return [] if path.read_bytes() == self.file else ["the file is another one, or half of one"]

    def goes_on(self, place: Path) -> list[str]:
        """Whether the same command goes on there and ends as if nothing had been, with nothing left behind."""
        ended = run(place, quantizing(OUT, "--checkpoint", UNITS))
        found = [f"the next run fails: {ended.err[-300:]}"] if ended.code else self.check(place, complete=True)
        return found + left(place)


def left(place: Path) -> list[str]:
    """What lies there that should not."""
    names = [str(p.relative_to(place)) for p in place.rglob("*") if ".mrecg-" in p.name or p.name.startswith(".lock")]
    names += [f"tmp/{p.name}" for p in (place / "tmp").iterdir() if p.name not in {"pymp-", "torchinductor_root"}]
    return [f"left behind: {names[:3]}"] if names else []


# --- killed at any moment --------------------------------------------------------------------------------------------


def killed(sample: Sample, args: argparse.Namespace) -> Iterator[Row]:
    row = Row("SIGKILL at a random moment of a run with --checkpoint, then the same command again")
    draw = random.Random(args.seed)
    while row.injected < args.moments:
        place = sample.place()
        child = Child(place, quantizing(OUT, "--checkpoint", UNITS))
        sample.moment(child, 0.98 * draw.random())
        child.signal(signal.SIGKILL)
        if child.wait().code == -signal.SIGKILL:  # else it was faster than it was measured
            row.count(sample.check(place) + sample.goes_on(place))
        shutil.rmtree(place)
    row.says.append("nothing; the next run goes on with the units that are kept")
    yield row


#: Calls between which a process that writes can be killed.
STEPS = [(os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (Path, "write_bytes"),
    (Path, "open"), (tempfile, "mkdtemp"), (shutil, "rmtree")]  # fmt: skip


def killed_at(step: int, work: Callable[[], Any]) -> Callable[[], None]:
    """``work``, killed before its call number ``step`` of those in STEPS, or behind it where it is odd."""

    def patched() -> None:
        calls = iter(range(10**9))

        def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                for behind in (False, True):
                    made = real(*arguments, **options) if behind else None
                    if next(calls) == step:
                        os.kill(os.getpid(), signal.SIGKILL)
                return made

            return call

        for owner, name in STEPS:
            setattr(owner, name, wrapped(getattr(owner, name)))
        work()

    return patched


@dataclass
class Write:
    """A kind of write: ``make(folder, version)`` does it, ``look(folder)`` says which version is there, whole."""

    name: str
    make: Callable[[Path, int], Any]
    look: Callable[[Path], int]
    most: int = 40


def small(version: int) -> onnx.ModelProto:
    """A model of a few kilobytes that is another one in each version."""
    model = onnx.load(MODEL)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(version * numpy_helper.to_array(tensor), tensor.name))
    return model


def look_model(folder: Path) -> int:
    found = onnx.load(folder / "m.onnx")
    onnx.checker.check_model(found, full_check=True)
    whole = [t.raw_data for t in found.graph.initializer]
    return next(v for v in (1, 2) if whole == [t.raw_data for t in small(v).graph.initializer])


def make_data(folder: Path, version: int) -> None:
    save.EXTERNAL_DATA_BYTES = 1000
    save.save_model(small(version), folder / "m.onnx")


def make_unit(folder: Path, version: int) -> None:
    kept = checkpoints.Checkpoint(folder / "units", {"a": 1})
    result = UnitResult("u", ("u",), version, 0.0, 0.0, "learned", 0.0, 0.0)
    kept.save("reconstruct", 0, State({}, {}, {"u": torch.full((1000,), float(version))}), result)


def look_unit(folder: Path) -> int:
    found = checkpoints.Checkpoint(folder / "units", {"a": 1}).load("reconstruct", 0, ("u",), torch.device("cpu"))
    assert found is not None
    assert float(found[1].biases["u"].mean()) == found[0].iters
    return found[0].iters


def make_description(folder: Path, version: int) -> None:
    with locked(folder / "units", "it"):
        checkpoints.Checkpoint(folder / "units", {"a": "x" * 5000})
    (folder / "done").write_text(str(version))


def look_description(folder: Path) -> int:
    path = folder / "units" / "run.json"
    assert not path.exists() or json.loads(path.read_text()) == {"a": "x" * 5000}
    return 1 + (folder / "done").exists()


def make_json(folder: Path, version: int) -> None:
    write_json({"version": version, "much": [version] * 5000}, folder / "r.json")


def look_json(folder: Path) -> int:
    found = json.loads((folder / "r.json").read_text())
    assert found["much"] == [found["version"]] * 5000
    return int(found["version"])


def make_plot(folder: Path, version: int) -> None:
    one = Timing("a", "cpu", 1, 1, 10, version / 1e3, version / 1e3, version / 1e3, 1.0, 1.0)
    draw_timings(SimpleNamespace(files=[SimpleNamespace(name="a")], timings=[one]), folder / "p.png")  # type: ignore[arg-type]


def look_plot(folder: Path) -> int:
    from PIL import Image  # noqa: PLC0415

    with Image.open(folder / "p.png") as found:
        found.load()
    same = (
        (folder / "p.png").read_bytes() == (folder / "old.png").read_bytes() if (folder / "old.png").exists() else True
    )
    if not (folder / "old.png").exists():
        shutil.copy(folder / "p.png", folder / "old.png")
    return 1 if same else 2


def make_tflite(folder: Path, version: int) -> None:
    with contextlib.suppress(SystemExit):  # click's end of what worked
        command(
            "convert", str(folder / f"q{version}.onnx"), "--to", "tflite", "--force", "-o", str(folder / "m.tflite")
        )()


def look_bytes(folder: Path, name: str) -> int:
    """Which of the two versions, that are kept beside, a file is."""
    found = (folder / name).read_bytes()
    return next(v for v in (1, 2) if found == (folder / f"{v}.{name}").read_bytes())


TABLE = ("comparison.md", "comparison.csv", "comparison.json")


def comparing(folder: Path, version: int) -> None:
    settings = Settings(iters=5, samples=16, threads=1, equalize="off", range="mse", range_samples=16)
    compare(MODEL, CALIB, DATA, folder / "out", methods=["nearest", "aciq"][:version], bits=["W4A4"],
        settings=settings, limit=20, repeats=0)  # fmt: skip


def look_table(folder: Path) -> int:
    found = []
    for name in TABLE:
        path = folder / "out" / name
        shutil.copy(path, folder / name)
        found.append(look_bytes(folder, name))
    return max(found)


WRITES = [
    Write("a model", lambda folder, v: save.save_model(small(v), folder / "m.onnx"), look_model),
    Write("a model and its tensors in a second file", make_data, look_model),
    Write("a unit of a checkpoint", make_unit, look_unit),
    Write("the description of a checkpoint", make_description, look_description),
    Write("a report in JSON", make_json, look_json),
    Write("a plot", make_plot, look_plot, 16),
    Write("a file for LiteRT", make_tflite, lambda folder: look_bytes(folder, "m.tflite"), 12),
    Write("the table of compare", comparing, look_table, 24),
]


def killed_in_writes(sample: Sample, _: argparse.Namespace) -> Iterator[Row]:
    for module in (
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "mrecg_onnx.litert",
        "mrecg_onnx.conversion",
    ):
        importlib.import_module(module)  # once, not in every process
    for write in WRITES:
        row, template = Row(f"SIGKILL inside the write of {write.name}, between any two of its steps"), sample.place()
        problem = _first_version(write, template)
        if problem:
            row.left_out = problem
            yield row
            continue
        total = _steps(write, template, sample)
        for step in sorted({round(i) for i in np.linspace(0, total - 1, min(total, write.most))}):
            place = sample.place()
            shutil.copytree(template, place, dirs_exist_ok=True)
            ended = run(place, killed_at(step, partial(write.make, place, 2)))
            if ended.code == 0:  # it had fewer steps this time: the names it tried were free
                continue
            found = [] if ended.code == -signal.SIGKILL else [f"step {step}: code {ended.code}: {ended.err[-200:]}"]
            for what in (partial(write.look, place), partial(write.make, place, 2), partial(_is_new, write, place)):
                ended = run(place, what)
                found += [f"step {step}: {ended.err[-200:]}"] if ended.code else []
            sweep(place)
            row.count(found + left(place))
            shutil.rmtree(place)
        row.says.append("nothing; the old file or the new one is there, whole")
        yield row


def _is_new(write: Write, place: Path) -> None:
    found = write.look(place)
    assert found == 2, f"version {found} is there after the next write"


def _first_version(write: Write, template: Path) -> str:
    """Put the old version into ``template``; why that cannot be done, empty where it can."""
    if write.make is make_tflite:
        for version in (1, 2):
            settings = Settings(
                method="nearest", wbits=2 * version, samples=16, threads=1, equalize="off", range_samples=16
            )
            quantize(MODEL, CALIB, settings, output=template / f"q{version}.onnx")
    if write.make in {make_tflite, comparing}:
        for version in (2, 2, 1):  # what was kept is said to be
            ended = run(template, lambda version=version: write.make(template, version))
            if ended.code:
                return ended.err[-200:]
            for name in ("m.tflite",) if write.make is make_tflite else TABLE:
                place = template if write.make is make_tflite else template / "out"
                shutil.copy(place / name, template / f"{version}.{name}")
        return ""
    ended = run(template, lambda: write.make(template, 1)) if write.make is not make_description else None
    if ended is not None and ended.code:
        return ended.err[-200:]
    if write.make is make_plot:
        look_plot(template)
    return ""


def _steps(write: Write, template: Path, sample: Sample) -> int:
    """How many steps the second version takes."""
    place = sample.place()
    shutil.copytree(template, place, dirs_exist_ok=True)

    def counted() -> None:
        calls = [0]

        def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                calls[0] += 2
                return real(*arguments, **options)

            return call

        real = {(owner, name): getattr(owner, name) for owner, name in STEPS}
        for (owner, name), function in real.items():
            setattr(owner, name, wrapped(function))
        write.make(place, 2)
        for (owner, name), function in real.items():
            setattr(owner, name, function)
        print(calls[0])

    ended = run(place, counted)
    if ended.code:
        raise SystemExit(f"{write.name}: {ended.err}")
    return int(ended.out.split()[-1])


# --- interrupted -----------------------------------------------------------------------------------------------------


def interrupted(sample: Sample, args: argparse.Namespace) -> Iterator[Row]:
    draw = random.Random(args.seed + 1)
    for name, code in (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)):
        row = Row(f"{name} at a random moment")
        for number in range(6):
            place, kept = sample.place(), ["--checkpoint", UNITS] if number % 2 else []
            child = Child(place, quantizing(OUT, *kept))
            sample.moment(child, draw.uniform(0.1, 0.9))
            child.signal(getattr(signal, name))
            begin = time.monotonic()
            ended = child.wait()
            found = sample.check(place, complete=ended.code == 0) + left(place) + ended.faults()
            found += [] if ended.code in {0, code} else [f"exit code {ended.code}"]
            found += [f"took {time.monotonic() - begin:.0f} s"] if time.monotonic() - begin > BOUND else []
            row.count(found + (sample.goes_on(place) if kept else []), ended.line)
            shutil.rmtree(place)
        yield row
    row = Row("a second signal right behind the first")
    for number in range(4):
        place = sample.place()
        child = Child(place, quantizing(OUT, "--checkpoint", UNITS))
        sample.moment(child, draw.uniform(0.1, 0.9))
        child.signal(signal.SIGTERM)
        time.sleep(0.01 * number)
        child.signal(signal.SIGTERM)
        ended = child.wait()
        codes = {0, 143, -signal.SIGTERM}
        found = [] if ended.code in codes else [f"exit code {ended.code}"]
        row.count(found + sample.check(place) + sample.goes_on(place), ended.line)
        shutil.rmtree(place)
    yield row


# --- disk and memory -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[bool]:
    """A small disk at ``place``, where that is allowed."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(place)], check=False)


def disk_full(sample: Sample, _: argparse.Namespace) -> Iterator[Row]:
    row = Row("a disk (tmpfs) with 0 to 400 KB left for output and checkpoint")
    for kilobytes in (0, 8, 40, 60, 100, 160, 250, 400):
        place = sample.place()
        with mounted(place, "size=4m") as possible:
            if not possible:
                row.left_out = "mounting is not allowed here"
                break
            _fill(place / "filling", kilobytes)
            ended = run(place, quantizing(OUT, "--checkpoint", UNITS))
            found = sample.check(place, complete=ended.code == 0) + left(place) + ended.faults()
            (place / "filling").unlink()
            row.count(found + sample.goes_on(place), ended.line)
    yield row
    row = Row("files limited to a few bytes (RLIMIT_FSIZE)")
    for limit in (0, 500, 3000, 20_000, 45_000):
        place = sample.place()

        def limited(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            quantizing(OUT, "--checkpoint", UNITS)()

        ended = run(place, limited)
        row.count(sample.check(place, complete=ended.code == 0) + left(place) + sample.goes_on(place), ended.line)
    yield row
    row = Row("a temporary folder without room for cached activations")
    for kilobytes in (0, 100):
        place = sample.place()
        (place / "tmp").mkdir()
        with mounted(place / "tmp", "size=1m") as possible:
            if not possible:
                row.left_out = "mounting is not allowed here"
                break
            _fill(place / "tmp" / "filling", kilobytes)
            with caching(room=0):  # what is forked has none either
                ended = run(place, quantizing(OUT, "--checkpoint", UNITS))
            (place / "tmp" / "filling").unlink()
            row.count(
                sample.check(place, complete=ended.code == 0) + left(place) + ended.faults() + sample.goes_on(place),
                ended.line,
            )
    yield row


def _fill(path: Path, kilobytes: int) -> None:
    """Fill a disk but for ``kilobytes``."""
    free = shutil.disk_usage(path.parent).free
    path.write_bytes(bytes(max(0, free - kilobytes * 1024)))


def read_only(sample: Sample, _: argparse.Namespace) -> Iterator[Row]:
    for what, more in (("output", []), ("checkpoint", ["--checkpoint", "locked/units"])):
        row, place = Row(f"a read-only folder for the {what}"), sample.place()
        (place / "locked").mkdir()
        with mounted(place / "locked", "ro,size=1m") as possible:
            if possible:
                ended = run(place, quantizing(OUT if more else "locked/out.onnx", *more))
                found = [] if ended.code in {1, 2} else [f"exit code {ended.code}"]
                row.count(found + ended.faults() + left(place) + sample.check(place), ended.line)
            else:
                row.left_out = "mounting is not allowed here"
        yield row


def memory(sample: Sample, _: argparse.Namespace) -> Iterator[Row]:
    row = Row("a limit of address space (ulimit -v), 20 to 400 MB above what the imports take")
    for megabytes in (20, 60, 120, 200, 300, 400):
        place = sample.place()

        def limited(megabytes: int = megabytes) -> None:
            now = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20, resource.RLIM_INFINITY))
            quantizing(OUT, "--checkpoint", UNITS)()

        ended = run(place, limited)
        row.count(sample.check(place, complete=ended.code == 0) + ended.faults() + sample.goes_on(place), ended.line)
    yield row
    row = Row("a control group with 20 to 80 MB for what comes behind the imports")
    for megabytes in (20, 40, 80):
        group = _group(megabytes)
        if group is None:
            row.left_out = "control groups cannot be made here"
            break
        place = sample.place()

        def confined(group: Path = group) -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            quantizing(OUT, "--checkpoint", UNITS)()

        ended = run(place, confined)
        found = [] if ended.code in {0, 1, -signal.SIGKILL} else [f"exit code {ended.code}"]
        row.count(
            found + sample.check(place, complete=ended.code == 0) + ended.faults() + sample.goes_on(place), ended.line
        )
        if ended.code == -signal.SIGKILL and "nothing: the system kills it" not in row.says:
            row.says.append("nothing: the system kills it")
        with contextlib.suppress(OSError):
            group.rmdir()
    yield row


def _group(megabytes: int) -> Path | None:
    """A control group of that much memory, of either version."""
    for root, name in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        if not (root / "cgroup.procs").exists():
            continue
        group = root / f"mrecg-{os.getpid()}-{megabytes}"
        try:
            group.mkdir()
            if (group / name).exists():
                (group / name).write_text(str(megabytes * 2**20))
                return group
            group.rmdir()
        except OSError:
            continue
    return None


def gpu_memory(sample: Sample, _: argparse.Namespace) -> Iterator[Row]:
    row = Row("a GPU that has room for 16, 4 or 1 of 32 images of an iteration, or for none (raised where torch would)")
    for most in (16, 4, 1, 0):
        place = sample.place()

        def limited(most: int = most) -> None:
            real = loop.Loop.loss

            def loss(self: loop.Loop, batch: Any) -> Any:
                if len(next(iter(batch.values()))) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                return real(self, batch)

            loop.Loop.loss = loss  # type: ignore[method-assign]
            quantizing(OUT)()

        ended = run(place, limited)
        wanted = 0 if most else 1
        found = [] if ended.code == wanted else [f"exit code {ended.code}: {ended.err[-300:]}"]
        if wanted == 0:
            onnx.checker.check_model(onnx.load(place / OUT), full_check=True)
        told = next((one for one in reversed(ended.err.splitlines()) if "ran out of memory" in one), "")
        row.count(found + ended.faults() + left(place) + ([] if told else ["nothing was said"]), told)
    yield row


# --- several at a time -----------------------------------------------------------------------------------------------

RANKS = ["--standalone", "--nproc-per-node", "2", "--monitor-interval", "3"]


def ranks(sample: Sample, _: argparse.Namespace) -> Iterator[Row]:
    """One of two processes of torchrun is killed, then torchrun itself."""
    options = [a if a != "4" else "40" for a in FAST]
    arguments = ["quantize", MODEL, "--calib", CALIB, *options, "--force", "-o", OUT, "--checkpoint", UNITS]
    environment = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE"}} | {"OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", *RANKS, str(ROOT / "cli.py"), *arguments]

    def launched(place: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            start, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    whole = sample.place()
    _, said = (process := launched(whole)).communicate()
    if process.returncode:
        yield Row(
            "a process of torchrun is killed",
            left_out=" ".join(line for line in said.splitlines() if "rror" in line)[:300],
        )
        return
    reference = (whole / OUT).read_bytes()
    for victim in ("1", "0", "torchrun"):
        name = f"rank {victim} of two under torchrun" if victim != "torchrun" else "torchrun, which has two ranks,"
        row, place = Row(f"{name} is killed, then the same command again"), sample.place()
        process = launched(place)
        members = _ranks_of(process, place)
        target = process.pid if victim == "torchrun" else members[victim].pid
        os.kill(target, signal.SIGKILL)
        begin = time.monotonic()
        try:
            _, said = process.communicate(timeout=2 * BOUND)
            _, alive = psutil.wait_procs(list(members.values()), timeout=BOUND)
        except subprocess.TimeoutExpired:
            process.kill()
            said, alive = process.communicate()[1], list(members.values())
        alive = [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        seconds = time.monotonic() - begin
        for one in alive:
            one.kill()
        lines = [line for line in said.splitlines() if line.startswith(("Error: ", "Interrupted: "))]
        found = [f"still there after {seconds:.0f} s"] if alive else []
        found += (
            [f"{len(lines)} lines of error: {said[-500:]}"] if len(lines) > 1 or (victim == "1" and not lines) else []
        )
        found += ["a file was written"] if (place / OUT).exists() else []
        again = launched(place)
        _, said = again.communicate()
        found += [] if again.returncode == 0 else [f"the next run fails: {said[-300:]}"]
        found += [] if (place / OUT).exists() and (place / OUT).read_bytes() == reference else ["another file"]
        (place / "tmp").mkdir(exist_ok=True)
        row.count(found + left(place), next(iter(lines), "nothing of its own; torchrun names the signal"))
        row.says.append(f"ended after {seconds:.0f} s")
        yield row


def _ranks_of(process: subprocess.Popen[str], place: Path) -> dict[str, psutil.Process]:
    """The processes of a job by rank, once the first unit is kept."""
    until = time.monotonic() + 120
    while not list(place.glob(f"{UNITS}/*.pt")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    found = {}
    for one in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found[one.environ().get("RANK", "")] = one
    return found


def clock(sample: Sample, _: argparse.Namespace) -> Iterator[Row]:
    row = Row("the clock is set back by a year between an interrupted run and the next, then ahead")
    for seconds in (-3.2e7, 3.2e7):
        place = sample.place()
        child = Child(place, quantizing(OUT, "--checkpoint", UNITS))
        sample.moment(child, 0.7)
        child.signal(signal.SIGKILL)
        child.wait()
        for path in place.rglob("*"):  # what is there is of the future, or of long ago
            os.utime(path, (time.time() - seconds,) * 2, follow_symlinks=False)

        def shifted(seconds: float = seconds) -> None:
            real = time.time
            time.time = lambda: real() + seconds
            quantizing(OUT, "--checkpoint", UNITS)()

        ended = run(place, shifted)
        found = [f"exit code {ended.code}: {ended.err[-300:]}"] if ended.code else sample.check(place, complete=True)
        row.count(found + left(place))
    row.says.append("nothing")
    yield row


def pairs(sample: Sample, args: argparse.Namespace) -> Iterator[Row]:
    row = Row("two runs in one checkpoint folder, started in the same instant")
    for _ in range(args.pairs):
        place = sample.place()
        gate = place.parent / f"{place.name}.gate"

        def waiting(out: str, gate: Path = gate) -> Callable[[], None]:
            def work() -> None:
                while not gate.exists():
                    pass
                quantizing(out, "--checkpoint", UNITS)()

            return work

        children = [Child(place, waiting(out)) for out in (OUT, "other.onnx")]
        time.sleep(0.2)
        gate.touch()
        ended = [child.wait() for child in children]
        found = [] if sorted(e.code for e in ended) in ([0, 0], [0, 1]) else [f"exit codes {[e.code for e in ended]}"]
        for one, out in zip(ended, (OUT, "other.onnx"), strict=True):
            found += one.faults()
            path = place / out
            found += [] if path.exists() == (one.code == 0) else [f"{out} is there: {path.exists()}"]
            found += ["another file"] if path.exists() and path.read_bytes() != sample.file else []
        row.count(found + left(place), next((e.line for e in ended if e.code), ""))
        shutil.rmtree(place)
    yield row


def parents(sample: Sample, _: argparse.Namespace) -> Iterator[Row]:
    place = sample.place()
    ended = run(place, quantizing(OUT))
    rows = {
        "runtimes": ["runtimes", OUT, "--only", "onnxruntime", "--timeout", "200"],
        "compare": [
            "compare",
            MODEL,
            "--calib",
            CALIB,
            "--data",
            DATA,
            "--methods",
            "brecq",
            "--iters",
            "100000",
            "-o",
            "cmp",
        ],
    }
    for name, arguments in rows.items():
        row = Row(f"{name} is killed while a process of its own works for it")
        for _ in range(2):
            child = Child(place, command(*arguments))
            until, mine = time.monotonic() + 60, []
            while not mine and time.monotonic() < until:
                with contextlib.suppress(psutil.Error):
                    mine = psutil.Process(child.pid).children(recursive=True)
                time.sleep(0.01)
            time.sleep(0.5)
            child.signal(signal.SIGKILL)
            child.wait()
            begin = time.monotonic()
            _, alive = psutil.wait_procs(mine, timeout=BOUND)
            alive = [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
            found = [f"{len(alive)} of {len(mine)} still there after {time.monotonic() - begin:.0f} s"] if alive else []
            found += [] if mine else ["it had none"]
            ended = run(place, command("inspect", MODEL))  # the next start in the temporary folder
            row.count(found + ended.faults())
        row.says.append("nothing")
        yield row


# --- all of it -------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Sample, argparse.Namespace], Iterator[Row]]] = {
    "killed": killed, "writes": killed_in_writes, "signals": interrupted, "disk": disk_full, "read-only": read_only,
    "memory": memory, "gpu": gpu_memory, "ranks": ranks, "clock": clock, "pairs": pairs, "parents": parents,
}  # fmt: skip


def page(result: dict[str, Any]) -> str:
    """The table."""
    heading = ["| fault | injected | survived | what the user sees |", "|---|---|---|---|"]
    lines = ["# Faults injected", "", by(result["header"]), "", *heading]
    for row in result["rows"]:
        said = "; ".join(one.replace("|", "\\|") for one in row.get("says", []))
        said = f"not tried: {row['left_out']}" if row.get("left_out") and not row["injected"] else said
        lines.append(f"| {row['fault']} | {row['injected']} | {row['survived']} | {said} |")
    total, survived = (sum(row[name] for row in result["rows"]) for name in ("injected", "survived"))
    return "\n".join([*lines, "", f"{survived} of {total} survived."]) + "\n"


def keep(path: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    """Put the rows of a kind in the place of its last ones; another process may do so with another kind."""
    with FileLock(Path(tempfile.gettempdir()) / "mrecg_faults.lock"):
        old = json.loads(path.read_text())["rows"] if path.exists() else []
        merged = [row for row in old if row["kind"] != kind] + rows
        merged.sort(key=lambda row: list(KINDS).index(row["kind"]))
        result = {"header": header() | {"command": "python benchmarks/faults.py"}, "rows": merged}
        write_whole(path, json.dumps(result, indent=1) + "\n")
        write_whole(path.with_suffix(".md"), page(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=KINDS, help="these kinds alone; the others keep their rows")
    parser.add_argument("--moments", type=int, default=40, help="moments at which a run is killed")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of runs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    fine = True
    with tempfile.TemporaryDirectory() as name:
        sample = Sample(Path(name))
        print(f"an undisturbed run: {sample.cpu_s:.1f} CPU s", flush=True)
        for kind in args.only or KINDS:
            rows = []
            for row in KINDS[kind](sample, args):
                rows.append({"kind": kind, **row.to_json()})
                fine &= row.survived == row.injected
                print(json.dumps(rows[-1]), flush=True)
            keep(RESULTS / "faults.json", kind, rows)
    sys.exit(not fine)


if __name__ == "__main__":
    main()
