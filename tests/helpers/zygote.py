"""A process that has imported everything and forks a child for every command line: a fresh process without its imports.

usage: python -c 'from helpers.zygote import serve; serve()'

Requests and answers are lines of JSON on stdin and stdout. It makes no session and runs no network, so no thread of it computes
or holds a lock, and what it forks is what a new process would be (a test compares the two). Linux only: process file descriptors,
adopted orphans.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import re
import resource
import select
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["serve"]

#: prctl: children of a child that has ended become ours, not init's.
PR_SET_CHILD_SUBREAPER = 36
#: How long what a command started may take to end after it, in seconds.
GRACE_S = 3.0
#: Imported where they are installed only, or no module at all.
LEFT_OUT = ("mrecg_onnx.__main__", "mrecg_onnx.litert", "mrecg_onnx.comparing.plots", "mrecg_onnx.running.worker")


def _peak() -> float:
    """Largest memory of this program in 2^20 bytes; what rusage says is also that of whoever started it."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) / 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve() -> None:
    """Answer requests until there are none."""
    import_everything()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, every page
    threads = len(list(Path("/proc/self/task").iterdir()))
    answer({"megabytes": _peak(), "threads": threads})
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            become(request)  # does not return
        answer(watch(child, request["seconds"]))


def answer(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def import_everything() -> None:
    """What commands import when they run, too."""
    import mrecg_onnx

    for module in pkgutil.walk_packages(mrecg_onnx.__path__, "mrecg_onnx."):
        if not module.name.startswith(LEFT_OUT):
            importlib.import_module(module.name)
    for name in ("rich.table", "rich.live", "rich.progress", "onnx.reference", "torch.fx.experimental.proxy_tensor"):
        importlib.import_module(name)


# --- the child -------------------------------------------------------------------------------------------------------


def become(request: dict[str, Any]) -> None:
    """Run one command line, with its own folder, streams, environment and limits, and end."""
    os.setsid()
    os.chdir(request["folder"])
    for name, value in request["env"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    tempfile.tempdir = None  # found anew, as TMPDIR says here: libraries may have asked for it when they were imported
    for stream, target, flags in (
        (0, request["stdin"] or os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        file = os.open(target, flags, 0o600)
        os.dup2(file, stream)
        os.close(file)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_limit"], request["cpu_limit"] + 1))
    if request["address_space"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["address_space"], request["address_space"]))
    if request["fresh"]:
        # Paths that the tests put in front are not those of a user.
        os.environ.pop("PYTHONPATH", None)
        os.execv(sys.executable, [sys.executable, "-m", "mrecg_onnx", *request["arguments"]])
    sys.stdin = io.TextIOWrapper(io.FileIO(0, "r", closefd=False))
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
    leave(ending(request))


def ending(request: dict[str, Any]) -> int:
    """Run the command and give its exit code, as the interpreter makes it."""
    import traceback

    from mrecg_onnx.commands import main

    try:
        exec(compile(request["before"], "before", "exec"), {})
        main(args=request["arguments"], prog_name="mrecg-onnx")
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")
        return 1
    except BaseException:  # noqa: BLE001 - the interpreter shows whatever it is
        traceback.print_exc()
        return 1
    return 0


def leave(code: int) -> None:
    """End as the interpreter does (threads, exit functions, streams), but for taking its modules apart, which takes longer."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


# --- its parent ------------------------------------------------------------------------------------------------------


def watch(child: int, seconds: float) -> dict[str, Any]:
    """Wait for a child, at most so long, and say what it took and what it left running."""
    ended = os.pidfd_open(child)
    hung = not select.select([ended], [], [], seconds)[0]
    os.close(ended)
    if hung:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "hung": hung,
        "cpu_s": used.ru_utime + used.ru_stime,
        "megabytes": used.ru_maxrss / 1024,
        "left": orphans(),
    }


def orphans() -> list[str]:
    """Processes that the child left running, by name, after some grace; they are ended."""
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not children():
            return []
        time.sleep(0.02)
    names = []
    for process in children():
        with contextlib.suppress(OSError):
            names.append(Path(f"/proc/{process}/comm").read_text().strip())
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    return names


def children() -> list[int]:
    """Processes whose parent this one is."""
    me = os.getpid()
    return [int(number) for number in Path(f"/proc/self/task/{me}/children").read_text().split()]
