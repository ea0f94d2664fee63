"""Load time and memory of a model, measured in a process that has done nothing else. Imports little: the child waits for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

import mrecg_onnx
from mrecg_onnx.converters.errors import ModelError, MrecgError
from mrecg_onnx.data import InputSpec
from mrecg_onnx.running.models import require_room
from mrecg_onnx.running.parents import end_with
from mrecg_onnx.running.sessions import open_session

__all__ = ["load", "noise"]

#: Starts a child with the parent's own packages, also from a checkout that is not installed.
_BOOT = (
    "import json, sys; job = json.loads(sys.argv[1]); sys.path[:] = job.pop('path'); import mrecg_onnx; "
    "mrecg_onnx.__path__[:] = job.pop('package'); from mrecg_onnx.running.fresh_process import child; child(job)"
)


def noise(specs: Sequence[InputSpec], batch: int) -> dict[str, npt.NDArray[Any]]:
    """Normal random numbers; of integers, their whole parts.

    Raises:
        ModelError: a model wants another batch.
        SettingsError: memory does not hold them.
    """
    require_room(specs, batch)
    random, feeds = np.random.default_rng(0), {}
    for spec in specs:
        if spec.shape and spec.shape[0] not in {None, batch}:
            raise ModelError(f"input '{spec.name}' has the fixed batch {spec.shape[0]}: use --batch {spec.shape[0]}")
        sizes = [batch if i == 0 else int(size or 0) for i, size in enumerate(spec.shape)]
        feeds[spec.name] = random.standard_normal(sizes).astype(spec.dtype)
    return feeds


def load(path: Path, specs: Sequence[InputSpec], batch: int, threads: int | None, provider: str) -> dict[str, float]:
    """Open and run a model in a process of its own.

    Returns:
        ``load_s``, seconds to open it, and ``memory_bytes``, by which the process grew when it was opened and had run once.

    Raises:
        ModelError: the process failed; its reason is in the message.
    """
    job = {
        "path": [str(Path(entry).absolute()) for entry in sys.path],
        "package": list(mrecg_onnx.__path__),
        "model": str(path),
        "inputs": [[s.name, list(s.shape), s.dtype.name] for s in specs],
        "batch": batch,
        "threads": threads,
        "provider": provider,
        "parent": os.getpid(),
    }
    ended = subprocess.run(  # noqa: S603 - this program itself
        [sys.executable, "-c", _BOOT, json.dumps(job)], capture_output=True, text=True, check=False
    )
    try:
        answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        reason = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise ModelError(f"{path}: the process that loads it ended: {reason}") from error
    if "error" in answer:
        raise ModelError(answer["error"])
    return answer


def child(job: dict[str, Any]) -> None:
    """Open and run a model in this process and print what that took as a line of JSON."""
    end_with(job["parent"])
    specs = [InputSpec(name, tuple(shape), np.dtype(dtype)) for name, shape, dtype in job["inputs"]]
    answer: dict[str, Any]
    try:
        feeds = noise(specs, job["batch"])
        process = psutil.Process()
        before, start = process.memory_info().rss, time.perf_counter()
        session = open_session(job["model"], threads=job["threads"], device=job["provider"])
        seconds = time.perf_counter() - start
        session.run(None, feeds)
        answer = {"load_s": seconds, "memory_bytes": process.memory_info().rss - before}
    except MrecgError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
