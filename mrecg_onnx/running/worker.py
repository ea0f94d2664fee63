"""Opens, runs and times one model in one runtime, in a process of its own. Stands alone beside ``openers.py`` and ``parents.py``.

``python worker.py job.json`` adds what it finds, a line of JSON at a time, to the file ``answers`` in the job's folder: what was
found before a crash stays. ``python worker.py --installed MODULE...`` says on stdout which of them and which versions there are.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import statistics
import sys
import time
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

import numpy as np

__all__: list[str] = []

#: Runs of each session before those that are timed.
WARMUP = 2
#: Seconds of a run.
LONG = 1.0


class _Work:
    """One job: open, run, name the kernels, time."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.folder = Path(job["folder"])
        self.inputs = {
            one["name"]: np.fromfile(self.folder / one["file"], np.dtype(one["dtype"])).reshape(one["shape"])
            for one in job["inputs"]
        }
        self.batch: int = job["batch"]
        import_module("parents").end_with(job["parent"])  # lies beside, and so do they
        self.openers = import_module("openers").OPENERS

    def tell(self, **found: Any) -> None:
        """Add a line to the answers."""
        with (self.folder / "answers").open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")

    def do(self) -> None:
        """All of it, as far as it goes."""
        first = self._rows(0)
        session = self._opened("model", first)
        if session is None:
            return
        try:
            self._run(session)
        except Exception as error:  # noqa: BLE001 - runtimes raise what they like
            self.tell(run_error=_said(error))
            return
        try:
            self.tell(kernels=session.kernels())
        except Exception as error:  # noqa: BLE001 - as above
            self.tell(kernels_error=_said(error))
        if self.job["runs"]:
            against = self._opened("against", first) if self.job["against"] else None
            self._time({"model": session} if against is None else {"against": against, "model": session}, first)

    def _rows(self, start: int) -> dict[str, Any]:
        return {name: array[start : start + self.batch] for name, array in self.inputs.items()}

    def _opened(self, key: str, feeds: dict[str, Any]) -> Any:
        own = self.folder / key
        own.mkdir()
        path = shutil.copyfile(self.job[key], own / "model.onnx") if self.job["alone"] else Path(self.job[key])
        opener, start = self.openers[self.job["opener"]], time.perf_counter()
        try:
            session = opener(str(path), feeds, self.job["outputs"], self.job["threads"], self.job["options"], own)
        except Exception as error:  # noqa: BLE001 - as above
            self.tell(**{f"{key}_error": _said(error)})
            return None
        self.tell(**{f"{key}_opened": time.perf_counter() - start, "version": session.version})
        return session

    def _run(self, session: Any) -> None:
        """Batches until all are done or the time for it is over; the outputs go to files."""
        made: list[list[Any]] = []
        start, count = time.perf_counter(), len(next(iter(self.inputs.values())))
        for row in range(0, count, self.batch):
            made.append(session.run(self._rows(row)))
            if time.perf_counter() - start > self.job["seconds"]:
                break
        outputs = []
        for i, name in enumerate(self.job["outputs"]):
            array = np.concatenate([np.atleast_1d(one[i]) for one in made])
            array.tofile(self.folder / f"output{i}")
            outputs.append({"name": name, "shape": list(array.shape), "dtype": array.dtype.str})
        self.tell(outputs=outputs, items=len(made) * self.batch)

    def _time(self, sessions: dict[str, Any], feeds: dict[str, Any]) -> None:
        """In turn, so that a busy machine slows all alike, each timed run behind an untimed one of the same session.

        Sessions whose runs take longer than :data:`LONG` do without: caches are nothing to them.
        """
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
        start = time.perf_counter()
        for _ in range(WARMUP + self.job["runs"]):
            for name, session in sessions.items():
                if not taken[name] or taken[name][-1][0] < LONG:
                    session.run(feeds)
                before = time.perf_counter(), time.process_time()
                session.run(feeds)
                taken[name].append((time.perf_counter() - before[0], time.process_time() - before[1]))
            if time.perf_counter() - start > self.job["seconds"]:
                break
        for name, pairs in taken.items():
            wall, cpu = zip(*(pairs[WARMUP:] or pairs[-1:]), strict=True)
            self.tell(**{f"{name}_s": statistics.median(wall), f"{name}_cpu_s": statistics.median(cpu)})


def _said(error: Exception) -> str:
    """What an error says; its kind, too, where that is next to nothing (KeyError: 'x')."""
    text = str(error)[:8000]
    return text if len(text.split()) > 2 else f"{type(error).__name__}: {text}"


def _is_there(module: str) -> bool:
    """Whether it could be imported; those above it are."""
    try:
        return util.find_spec(module) is not None
    except ImportError:
        return False


def _installed() -> dict[str, str]:
    """Versions of the distributions here, by their names in lower case; what has none is left out."""
    found = {}
    for one in metadata.distributions():
        name = one.metadata["Name"]
        if name:
            found[name.lower().replace("_", "-")] = one.version
    return found


def _has_nvidia() -> bool:
    """Whether NVIDIA's driver is there and shows a GPU, as it says itself."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL(name)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


def _providers() -> list[str]:
    """Those of ONNX Runtime's build."""
    try:
        return list(import_module("onnxruntime").get_available_providers())
    except Exception:  # noqa: BLE001 - not there, or does not start
        return []


if __name__ == "__main__":
    if sys.argv[1] == "--installed":
        modules = [name for name in sys.argv[2:] if _is_there(name)]
        found = {"modules": modules, "versions": _installed(), "providers": _providers(), "nvidia": _has_nvidia()}
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        _Work(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))).do()
