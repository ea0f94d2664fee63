"""One cell of a comparison in a process of its own.

The parent writes a job to the child's standard input, the child answers with lines of JSON: progress, log records, and the
result or the error. The parent imports no torch. A child whose parent dies ends, too: it watches its standard input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt
import psutil

from mrecg_onnx.converters.errors import MrecgError
from mrecg_onnx.converters.text import at_the_terminal, with_arguments
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from mrecg_onnx.comparing.handed import Files
    from mrecg_onnx.data import Labels
    from mrecg_onnx.measures import Metric
    from mrecg_onnx.progress import Progress

__all__ = ["GRACE_S", "CellError", "CellProcess", "Job", "pack", "unpack", "validated"]

#: Starts the child with the parent's own packages, also from a checkout that is not installed.
_BOOT = (
    "import json, sys; path, package = json.loads(sys.argv[1]); sys.path[:] = path; import mrecg_onnx; "
    "mrecg_onnx.__path__[:] = package; from mrecg_onnx.comparing.cells import main; main(sys.argv[2])"
)
#: Seconds a child has to tidy up before it is killed.
GRACE_S = 10.0
_STATUS = Path("/proc/self/status")


class CellError(MrecgError):
    """A cell's process failed; its message is the reason."""


@dataclass(frozen=True)
class Job:
    """What a child needs to know; paths as the user gave them, data that were handed over as files.

    Attributes:
        model: float model.
        calib: calibration data.
        data: validation data.
        output: the quantized file.
        checkpoint: folder for finished units.
        settings: of the quantization.
        labels: see :func:`mrecg_onnx.validate`.
        limit: likewise.
        outputs: likewise.
        threads: threads of ONNX Runtime.
        latency: batch and repeats of the timing.
        metric: what names the metric, None without one.
        lower_is_better: it counts errors.
    """

    model: str
    calib: Files
    data: Files
    output: str
    checkpoint: str
    settings: Settings
    labels: Labels | None = None
    limit: int | None = None
    outputs: tuple[str, ...] | None = None
    threads: int | None = None
    latency: dict[str, Any] | None = None
    metric: str | None = None
    lower_is_better: bool | None = None


def pack(flags: npt.NDArray[np.bool_]) -> str:
    """Flags as hexadecimal digits, four to a digit."""
    return np.packbits(flags).tobytes().hex()


def unpack(text: str, count: int) -> npt.NDArray[np.bool_]:
    """The ``count`` flags that :func:`pack` wrote."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


# --- the parent's side ------------------------------------------------------------------------------------------------


class CellProcess:
    """A child at work on one stage of a cell; leaving the context ends it.

    Args:
        stage: "quantize", "validate" or "latency".
        job: what to do.
    """

    def __init__(self, stage: str, job: Job) -> None:
        import mrecg_onnx  # noqa: PLC0415 - this module is part of it

        where = json.dumps([sys.path, list(mrecg_onnx.__path__)])
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, "-c", _BOOT, where, stage],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        self._content = pickle.dumps(job)

    def __enter__(self) -> CellProcess:
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not sent yet has nobody to go to
                    stream.close()

    def result(self, report: Callable[[Progress], None] | None = None) -> dict[str, Any]:
        """Wait for the child and give what it found.

        Raises:
            CellError: it failed or was ended.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once: its exit code tells
            process.stdin.write(len(self._content).to_bytes(8, "little") + self._content)
            process.stdin.flush()
        found: dict[str, Any] | None = None
        for line in process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a line cut off as the child died
            if "progress" in message:
                if report is not None:
                    report(_progress(message["progress"]))
            elif "log" in message:
                name, level, text = message["log"]
                logging.getLogger(name).log(level, "%s", text)
            elif "error" in message:
                raise CellError(message["error"])
            else:
                found = message["result"]
        code = process.wait()
        if found is None or code != 0:
            raise CellError(self._why(code))
        return found

    def _why(self, code: int) -> str:
        """One line about a child that ended without a word."""
        if code < 0:
            name = signal.Signals(-code).name if -code in list(signal.Signals) else str(-code)
            more = " (the system may have run out of memory)" if -code == signal.SIGKILL else ""
            return f"its process was ended by {name}{more}"
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with code {code}" + (f": {said[-1].strip()}" if said else "")


def _progress(fields: dict[str, Any]) -> Progress:
    from mrecg_onnx.progress import Progress  # noqa: PLC0415 - imports torch: only where progress is shown

    return Progress(**{**fields, "said": with_arguments(fields["said"])} if fields.get("said") else fields)


# --- the child's side -------------------------------------------------------------------------------------------------


class _Channel(logging.Handler):
    """Sends lines of JSON to the parent."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def send(self, **message: Any) -> None:
        """One message."""
        self.stream.write(json.dumps(message) + "\n")
        self.stream.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """A log record of this package."""
        self.send(log=[record.name, record.levelno, record.getMessage()])

    def progress(self, progress: Progress) -> None:
        """The report of a quantization."""
        fields = {f.name: getattr(progress, f.name) for f in dataclasses.fields(progress) if f.name != "result"}
        self.send(progress={k: _plain(v) for k, v in fields.items()})


def main(stage: str) -> None:
    """Run the job on standard input and end the process; everything it prints goes to standard error."""
    for name in ("SIGINT", "SIGHUP"):  # Ctrl-C and the end of a terminal reach both: the parent decides
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    channel = _Channel(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    size = int.from_bytes(sys.stdin.buffer.read(8), "little")
    job: Job = pickle.loads(sys.stdin.buffer.read(size))  # noqa: S301 - from the parent's own memory
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logger = logging.getLogger("mrecg_onnx")
    logger.addHandler(channel)
    logger.setLevel(logging.INFO)
    with at_the_terminal():  # what options are in Python the parent adds, which knows who reads it
        try:
            channel.send(result=_STAGES[stage](job, channel))
        except MrecgError as error:
            channel.send(error=str(error))
        except Exception as error:  # noqa: BLE001 - the parent has to hear of whatever it is
            logger.info("the cell's process failed:\n%s", traceback.format_exc())
            channel.send(error=f"unexpected failure: {type(error).__name__}: {error}")
    sys.stdout.flush()
    os._exit(0)  # nothing of what is left to do at exit concerns the parent, and some libraries take seconds over it


def _leave(*_: object) -> None:
    raise SystemExit(1)


def _end_with_parent() -> None:
    """Wait for the end of standard input: the parent holds it open as long as it lives."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


def _quantize(job: Job, channel: _Channel) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - the parent does without

    from mrecg_onnx.quantization import quantize  # noqa: PLC0415
    from mrecg_onnx.running import size_bytes  # noqa: PLC0415
    from mrecg_onnx.validating import source_sha256  # noqa: PLC0415

    start = time.perf_counter()
    result = quantize(
        job.model, job.calib, job.settings, output=job.output, checkpoint=job.checkpoint, progress=channel.progress
    )
    seconds = time.perf_counter() - start
    on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    return {
        "sha256": source_sha256(job.output),
        "seconds": seconds,
        "stages": result.seconds,
        "peak_bytes": peak_bytes(),
        "device_peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "size_bytes": size_bytes(job.output),
        "images": result.images,
        "merges": [list(group) for group in result.plan.merges if len(group) > 1],
        "units": [{k: _plain(v) for k, v in dataclasses.asdict(unit).items()} for unit in result.units],
        "skipped": list(result.skipped),
        "warnings": list(result.warnings),
    }


def _validate(job: Job, _: _Channel) -> dict[str, Any]:
    from mrecg_onnx.measures import metric_of  # noqa: PLC0415

    return validated(job, metric_of(job.metric, lower_is_better=job.lower_is_better))


def validated(job: Job, metric: Metric | None) -> dict[str, Any]:
    """What a cell's file is worth; in the child, and in the parent where the metric is there alone."""
    from mrecg_onnx.validating import gain_warnings, validate  # noqa: PLC0415 - the parent does without where all is done

    found = validate(
        job.model,
        job.output,
        job.data,
        labels=job.labels,
        preprocess=job.settings.preprocess,
        limit=job.limit,
        outputs=job.outputs,
        repeats=0,
        threads=job.threads,
        metric=metric,
    )
    right = found.top1_right
    own = gain_warnings(found.drop, found.mcnemar_p)  # what is wrong with the data stands with the float model, once
    return {
        "images": found.images,
        "labelled": 0 if right is None else right.shape[1],
        "right": None if right is None else pack(right[1]),
        "top1": found.quantized.top1 and found.quantized.top1.to_json(),
        "drop": found.drop,
        "score": found.quantized.score,
        "score_drop": found.score_drop,
        "fp32_p": found.mcnemar_p,
        "agreement": found.agreement,
        "sqnr_db": _plain(found.sqnr_db),
        "sqnr_by_output": {name: _plain(value) for name, value in found.sqnr_by_output.items()},
        "equal_by_output": found.equal_by_output,
        "fp32": {
            "images": found.images,
            "top1": found.fp32.top1 and found.fp32.top1.to_json(),
            "score": found.fp32.score,
            "warnings": [warning for warning in found.warnings if warning not in own],
        },
        "warnings": list(own),
        "skipped": list(found.skipped),
    }


def _latency(job: Job, _: _Channel) -> dict[str, Any]:
    from mrecg_onnx.data import open_validation  # noqa: PLC0415
    from mrecg_onnx.running import (  # noqa: PLC0415
        InTurn,
        fixed_batch,
        input_specs,
        latency,
        medians,
        ratio_interval,
    )

    assert job.latency is not None
    models = InTurn({"fp32": job.model, "cell": job.output}, job.threads)
    cell = models.sessions["cell"]
    rows = fixed_batch(models.sessions["fp32"]) or fixed_batch(cell) or job.latency["batch"]
    data = open_validation(job.data, input_specs(cell), job.settings.preprocess, job.labels, job.limit, classes=False)
    some = data.load(rows)
    feeds = {name: array[np.arange(rows) % len(array)] for name, array in some.items()}
    taken = latency(models, feeds, job.latency["repeats"])
    found, interval = medians(taken), list(ratio_interval(taken["fp32"], taken["cell"]))
    return {"latency_s": found["cell"], "fp32_latency_s": found["fp32"], "speedup_interval": interval, "batch": rows}


_STAGES: dict[str, Callable[[Job, _Channel], dict[str, Any]]] = {
    "quantize": _quantize,
    "validate": _validate,
    "latency": _latency,
}


def peak_bytes() -> int:
    """The most memory this process held since it began, in bytes.

    Linux's VmHWM counts from exec on; ru_maxrss, used elsewhere, may count what a parent held before it.
    """
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # noqa: PLC0415 - Unix alone has it

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers it does not have become None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
