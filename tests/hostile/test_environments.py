"""Environments that are odd: variables of nonsense, limits, folders that are missing, streams that are closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.hostile import Arguments, Case, Hostile, float_model, model_and_images, rows

if TYPE_CHECKING:
    from pathlib import Path


def model(folder: Path, *arguments: str) -> Arguments:
    """A harmless model, looked at."""
    (folder / "model.onnx").write_bytes(float_model())
    return "inspect", "model.onnx", *arguments


def images(folder: Path, *arguments: str) -> Arguments:
    """A harmless model and images, quantized."""
    model_and_images(folder)
    return "quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--threads", "1", *arguments


def runtimes(folder: Path) -> Arguments:
    model(folder)
    return "runtimes", "model.onnx", "--only", "onnxruntime"


def as_json(folder: Path) -> Arguments:
    return model(folder, "--json", "r.json")


def limited(name: str, value: int) -> str:
    """A limit of the process; a signal that comes with it is an error instead."""
    return (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.{name}, ({value}, {value}))"
    )


def fine(name: str, make=model, **more) -> Case:
    """What changes nothing."""
    return Case(name, make, says=("units",), code=0, cpu_s=8, **more)


#: torch 2.8 imports a module when the process ends, and says that it cannot.
SILENT_END = (
    "import atexit, sys; "
    "atexit.unregister(getattr(sys.modules.get('torch._dynamo.utils'), 'dump_compile_times', None)); "
)
NO_JOB = "in the environment is no job of torchrun"
RANKS = {
    "a rank that is a word": {"RANK": "x", "WORLD_SIZE": "2"},
    "a size that is a word": {"RANK": "0", "WORLD_SIZE": "many"},
    "a size of nothing": {"RANK": "0", "WORLD_SIZE": "0"},
    "a size below nothing": {"RANK": "0", "WORLD_SIZE": "-2"},
    "a rank beyond the size": {"RANK": "5", "WORLD_SIZE": "2"},
    "a rank below nothing": {"RANK": "-1", "WORLD_SIZE": "2"},
    "a size of many digits": {"RANK": "0", "WORLD_SIZE": "9" * 400},
    "an empty rank": {"RANK": "", "WORLD_SIZE": "2"},
    "a job without a place to meet": {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": None, "MASTER_PORT": None},
}
TERMINALS = {
    "one column": {"COLUMNS": "1"},
    "no columns": {"COLUMNS": "0"},
    "columns below nothing": {"COLUMNS": "-5"},
    "columns of nonsense": {"COLUMNS": "wide", "LINES": "high"},
    "a billion columns": {"COLUMNS": "1000000000"},
    "a terminal of nonsense": {"TERM": "nonsense"},
}
FOLDERS = {
    "no home": {"HOME": None},
    "a home that is missing": {"HOME": "/none/such"},
    "a temporary folder that is missing": {"TMPDIR": "/none/such"},
    "a temporary folder that is a file": {"TMPDIR": "/dev/null"},
}

CASES = [
    *(Case(name, images, says=(NO_JOB,), code=2, env=env) for name, env in RANKS.items()),
    *(fine(name, env=env) for name, env in TERMINALS.items()),
    *(fine(name, env=env) for name, env in FOLDERS.items()),
    fine("GPUs of nonsense", env={"CUDA_VISIBLE_DEVICES": "nonsense"}),
    Case("GPUs of nonsense, and one is asked for", lambda folder: images(folder, "--device", "cuda"),
        says=("--device cuda", "no CUDA device"), code=2,
        env={"CUDA_VISIBLE_DEVICES": "nonsense"}),
    Case("a temporary folder nowhere", runtimes, says=("temporary folder", "TMPDIR"),
        before="import tempfile\ndef nowhere(): raise FileNotFoundError(2, 'No usable temporary directory found')\n"
        "tempfile.gettempdir = nowhere"),
    Case("files of a few bytes", as_json, says=("r.json", "cannot be written"), before=limited("RLIMIT_FSIZE", 1000)),
    Case("no file may be opened", model, before=SILENT_END + limited("RLIMIT_NOFILE", 3), says=("Too many open files",), code=2),
    fine("the least of priorities", before="import os; os.nice(19)"),
    fine("standard input is closed", before="import os, sys; os.close(0); sys.stdin = None"),
    Case("standard output is closed", as_json, code=0, writes=("r.json",),
        before="import os, sys; os.close(1); sys.stdout = None"),
    Case("the current folder is gone", model, says=("current folder", "change to another"),
        before="import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"),
    fine("a clock before all time", before="import time; time.time = lambda: -1e9"),
    fine("a clock of the far future", before="import time; time.time = lambda: 1e11"),
    fine("a language without letters", env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, fresh=True, slow=True),
    fine("a language that nobody has", env={"LC_ALL": "xx_YY.nonsense"}, fresh=True, slow=True),
    fine("an encoding without letters", env={"PYTHONIOENCODING": "ascii:strict"}, fresh=True, slow=True),
    fine("threads that are a word", env={"OMP_NUM_THREADS": "abc"}, fresh=True, slow=True, lines=("OMP", "libgomp", "")),
    fine("threads below nothing", env={"OMP_NUM_THREADS": "-3"}, fresh=True, slow=True, lines=("OMP", "libgomp", "")),
    fine("no threads", env={"OMP_NUM_THREADS": "0"}, fresh=True, slow=True, lines=("OMP", "libgomp", "")),
]  # fmt: skip


@rows(CASES)
def test_environments(case: Case, hostile: Hostile) -> None:
    hostile(case)
