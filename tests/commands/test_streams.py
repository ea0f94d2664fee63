"""Standard streams that are closed, full, read by nobody, or cannot spell what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")

ROOT = Path(__file__).resolve().parents[2]
INSPECT = ("inspect", "model.onnx")


def command(*arguments: str, shell: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """``arguments`` in a shell that does ``shell`` with its streams."""
    line = " ".join([sys.executable, str(ROOT / "cli.py"), *arguments, shell])
    environment = {**os.environ, **more.pop("env", {})}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, env=environment, **more)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("quantize", "--help"), INSPECT], ids=str)
def test_a_full_disk_for_what_is_printed_is_one_line(here: Path, arguments: tuple[str, ...]) -> None:
    done = command(*arguments, shell="> /dev/full")
    assert (done.returncode, done.stdout) == (1, "")
    *log, line = done.stderr.splitlines()
    assert line == "Error: standard output cannot be written: No space left on device"
    assert not any(one.startswith(("Error", "Traceback", "Exception")) for one in log)


def test_a_full_disk_for_what_is_printed_says_what_was_written(here: Path) -> None:
    done = command(*INSPECT, "--json", "r.json", shell="> /dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("No space left on device; r.json was written")
    assert (here / "r.json").is_file()


def test_a_full_disk_for_the_log_ends_nothing(here: Path) -> None:
    done = command("quantize", "model.onnx", "--calib", "images", "--method", "nearest", shell="2> /dev/full")
    assert done.returncode == 0
    assert "integer kernels" in done.stdout
    assert (here / "model_nearest_w4a4.onnx").is_file()


def test_nobody_who_reads_on_is_a_quiet_end(here: Path) -> None:
    done = command(*INSPECT, shell="| head -1")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert not any(one.startswith(("Error", "Traceback", "Exception")) for one in done.stderr.splitlines())


#: A doctor that prints in every way that a library may, while it works and when the process ends.
NOISY = """
import atexit, ctypes, os
from mrecg_onnx.commands import main
import mrecg_onnx.running as room
plain = room.doctor
def noisy():
    atexit.register(os.write, 1, b"noise at exit\\n")
    os.write(1, b"noise\\n")
    print("noise of Python")
    ctypes.CDLL(None).puts(b"noise that C keeps")
    os.system("echo noise of a child")
    return plain()
room.doctor = noisy
main(prog_name="mrecg-onnx")
"""


def test_json_is_alone_on_stdout_whatever_libraries_print() -> None:
    call = [sys.executable, "-c", NOISY, "doctor", "--json", "/dev/stdout"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["works"] is True
    assert done.stderr.count("noise") == 5


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ("| (exec <&-; sleep 1)", []),
        ("> /dev/full", ["Error: standard output cannot be written: No space left on device"]),
    ],
)
def test_json_that_nobody_reads_or_that_has_no_place(shell: str, said: list[str]) -> None:
    done = command("doctor", "--json", "-", shell=shell)
    assert done.stderr.splitlines() == ["starting ...", *said]


@pytest.mark.parametrize(
    "shell", ["<&- >&- 2>&-", *(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "2>&-", "<&-"))]
)
def test_closed_streams_change_nothing(here: Path, shell: str) -> None:
    done = command(*INSPECT, "--json", "r.json", shell=shell)
    assert done.returncode == 0
    assert bool(done.stdout) == (">&-" not in shell.replace("2>&-", ""))
    assert bool(done.stderr) == ("2>&-" not in shell)
    assert (here / "r.json").read_text().startswith("{")


@pytest.mark.slow
def test_names_that_no_encoding_has_are_written_out(here: Path) -> None:
    name = os.fsdecode(b"m\xff\xe4\xc3\xa9.onnx")
    (here / "model.onnx").rename(here / name)
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for environment in (plain, {"LC_ALL": "C.UTF-8"}):
        done = command("inspect", "m*.onnx", shell="", env=environment)
        assert done.returncode == 0, done.stderr
        missing = command("inspect", r"$'m\xff\xe4.onnx'", shell="", env=environment)
        assert missing.returncode == 2
        assert missing.stderr.splitlines()[-1].startswith("Error: m")
        assert "no such file" in missing.stderr.splitlines()[-1]
