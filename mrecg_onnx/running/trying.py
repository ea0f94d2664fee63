"""A file in every runtime that is installed: does it load, is it right, integer or float, how fast."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import psutil

from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.errors import ModelError, MrecgError, SettingsError
from mrecg_onnx.converters.external import load_external
from mrecg_onnx.converters.files import temporary_folder
from mrecg_onnx.converters.load import load_model, model_path
from mrecg_onnx.converters.made import Made, model_of
from mrecg_onnx.converters.save import save_model
from mrecg_onnx.data import Data, InputSpec, open_arrays
from mrecg_onnx.machine import MOST_THREADS
from mrecg_onnx.measures import Heads, likeness
from mrecg_onnx.progress import Progress, Report
from mrecg_onnx.running.attempts import Attempt, RuntimesReport, reason
from mrecg_onnx.running.batches import pad_batch, run_padded
from mrecg_onnx.running.catalogue import RUNTIMES, Runtime
from mrecg_onnx.running.fresh_process import noise
from mrecg_onnx.running.limited_process import Ended, run_limited
from mrecg_onnx.running.models import read_graph, require_room, specs_of
from mrecg_onnx.running.places import Place, environment_of, find_places, program_file
from mrecg_onnx.running.sessions import open_session

__all__ = ["SAMPLES", "TIMEOUT_S", "runtimes"]

Arrays = Mapping[str, npt.NDArray[Any]]
#: Items that are compared at most.
SAMPLES = 64
#: Seconds that one runtime may take.
TIMEOUT_S = 300.0
#: Share of that for running the items, and for each of the timings; the rest is for conversion and compilation.
SHARE = 0.1
#: How the reason of a runtime begins that was stopped from here.
STOPPED = "stopped"
#: Openers of programs that put files beside a model and take weights from none but the one called like it (pnnx).
WHOLE_FILES = frozenset({"Ncnn"})
#: Bytes of answers that are read.
MOST_ANSWERS = 2**20


@dataclass(frozen=True)
class _Task:
    """What all runtimes are given."""

    model: Path
    against: Path | None
    proto: onnx.ModelProto
    feeds: Arrays
    items: int
    written: Arrays | None
    batch: int
    free_batch: bool
    threads: int | None
    runs: int
    timeout_s: float
    memory_bytes: int


@takes()
def runtimes(
    model: onnx.ModelProto | str | Path | Made,
    data: Data | None = None,
    *,
    against: onnx.ModelProto | str | Path | Made | None = None,
    read_back: Callable[[onnx.ModelProto], onnx.ModelProto | None] = lambda _: None,
    only: Sequence[str] = (),
    python: Sequence[str | Path] = (),
    samples: int = SAMPLES,
    batch: int | None = None,
    threads: int | None = 1,
    runs: int = 20,
    timeout: float = TIMEOUT_S,
    memory: int | None = None,
    progress: Report | None = None,
) -> RuntimesReport:
    """Open a file in every runtime that is installed, each in a process of its own, and compare, name and time what it does.

    Args:
        model: a model of any tool: the path of its file, one in memory, or what :func:`mrecg_onnx.quantize` or
            :func:`mrecg_onnx.convert` returned.
        data: ready inputs: arrays by input name, ``[N, ...]``, or whatever else hands out arrays (docs/data.md); normal random
            numbers by default.
        against: the float model, likewise; it is timed in turn with ``model`` in each runtime.
        read_back: gives what ONNX Runtime runs in the place of a file whose nodes it does not have
            (:func:`mrecg_onnx.writing.runnable`), with which outputs are then compared, or None.
        only: rows of :data:`mrecg_onnx.running.catalogue.RUNTIMES`; all by default.
        python: interpreters of other environments whose runtimes are tried, too; they need numpy and the runtime alone. Of one
            version in several the first is taken, this environment before others.
        samples: items that are compared at most; a slow runtime compares fewer.
        batch: items a run; the batch that the file fixes, else 1, by default.
        threads: threads inside an operator, None for each runtime's own choice.
        runs: timed runs of each file at most, 0 for none.
        timeout: seconds that one runtime may take.
        memory: bytes of resident memory that it may take; half of what is free by default.
        progress: called as the work proceeds (:class:`mrecg_onnx.Progress`).

    Returns:
        A row for each runtime and environment, and one for each runtime that is not installed. Where the batch is free and
        a runtime fails, it is tried again with ``batch`` written into a copy.

    Raises:
        ModelError: the file cannot be read, or has inputs that cannot be fed.
        SettingsError: a number below 1, an unknown name, a Python that cannot be used, data that do not fit, or another
            batch than the one that the file fixes.
        DataError: the data cannot be read.
    """
    with temporary_folder() as folder:
        path = _file(model, folder / "model.onnx")
        float_path = None if against is None else _file(against, folder / "float.onnx")
        found = _tried_everywhere(
            path, float_path, data, read_back, only, python, samples, batch, threads, runs, timeout, memory, progress
        )
        called = {str(folder / "model.onnx"): "the model", str(folder / "float.onnx"): "the float model"}
        return replace(found, file=called.get(found.file, found.file), against=called.get(found.against, found.against))


def _file(model: onnx.ModelProto | str | Path | Made, place: Path) -> Path:
    """The path of a model; one in memory is written to ``place``: other processes open it."""
    held = model_of(model)
    if not isinstance(held, onnx.ModelProto):
        return model_path(held)
    save_model(load_model(held), place)
    return place


def _tried_everywhere(
    path: Path,
    float_path: Path | None,
    data: Data | None,
    read_back: Callable[[onnx.ModelProto], onnx.ModelProto | None],
    only: Sequence[str],
    python: Sequence[str | Path],
    samples: int,
    batch: int | None,
    threads: int | None,
    runs: int,
    timeout: float,
    memory: int | None,
    progress: Report | None,
) -> RuntimesReport:
    """Outcome of :func:`runtimes`, of files."""
    rows = _chosen(only)
    for name, value in (("samples", samples), ("batch", batch), ("threads", threads), ("timeout", timeout)):
        if value is not None and not 1 <= value < math.inf:
            raise SettingsError(f"{name} is {value}: it must be {'1 or more' if value < 1 else 'a finite number'}")
    if threads is not None and threads > MOST_THREADS:
        raise SettingsError(f"threads is {threads}: it must lie between 1 and {MOST_THREADS}")
    if runs < 0:
        raise SettingsError(f"runs is {runs}: it must be 0 or more")
    proto = read_graph(path)
    if float_path is not None:
        read_graph(float_path)
    specs = specs_of(proto, str(path))
    fixed = next((spec.shape[0] for spec in specs if spec.shape[0] is not None), None)
    if batch is not None and fixed not in {None, batch}:
        raise SettingsError(f"batch is {batch}: {path} has the fixed batch {fixed}")
    size = batch or fixed or 1
    feeds, items = _fed(data, specs, size, samples, path)
    written, reference = _as_written(read_back(proto) or path, feeds, items)
    places = find_places(rows, [sys.executable, *map(str, [python] if isinstance(python, str | Path) else python)])
    task = _Task(
        path.absolute(), float_path.absolute() if float_path else None, proto, feeds, items, written, size, fixed is None,
        threads, runs, timeout, memory or psutil.virtual_memory().available // 2,
    )  # fmt: skip
    attempts = []
    found = {place.row.name for place in places}
    missing = {row.name: row for row in rows if row.name not in found and (row.always or only)}
    for done, place in enumerate(places):
        if progress is not None:
            progress(Progress("runtimes", place.row.title, done=done, total=len(places), of="runtimes"))
        attempts.append(_tried(place, task))
    if progress is not None:
        progress(Progress("runtimes", done=len(places), total=len(places), of="runtimes"))
    attempts += [Attempt(row.name, row.title, install=row.install) for row in missing.values()]
    order = list(RUNTIMES)
    return RuntimesReport(
        str(path), str(float_path or ""), data is None, items, reference, size, threads,
        tuple(sorted(attempts, key=lambda one: order.index(one.name))),
    )  # fmt: skip


# --- what they are given ---------------------------------------------------------------------------------------------


def _chosen(only: Sequence[str]) -> list[Runtime]:
    only = [only] if isinstance(only, str) else only
    for name in only:
        if name not in RUNTIMES:
            raise SettingsError.among(f"runtime '{name}' is unknown", RUNTIMES, name)
    return [row for row in RUNTIMES.values() if not only or row.name in only]


def _fed(
    data: Data | None, specs: Sequence[InputSpec], batch: int, samples: int, path: Path
) -> tuple[dict[str, npt.NDArray[Any]], int]:
    """Inputs in whole batches, by name, and how many items of them count."""
    found = _arrays(data, specs, samples, path)
    for spec in specs:
        array = found.get(spec.name)
        fits = array is not None and array.ndim == len(spec.shape) and len(array)
        if not fits or any(n not in {None, m} for n, m in zip(spec.shape[1:], array.shape[1:], strict=True)):  # type: ignore[union-attr]
            there = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise SettingsError(f"{path}: {spec} cannot be fed with what data have: {there}")
    most = max(len(found[spec.name]) for spec in specs)
    for spec in specs:  # one value for all items
        if spec.shape[0] == len(found[spec.name]) == 1:
            found = {**found, spec.name: np.repeat(found[spec.name], most, axis=0)}
    items = min(samples, *(len(found[spec.name]) for spec in specs))
    found = open_arrays({s.name: found[s.name][:items] for s in specs}, specs).load()
    rows = -(-items // batch) * batch
    require_room([InputSpec(s.name, found[s.name].shape, s.dtype) for s in specs], rows)
    return {s.name: np.ascontiguousarray(pad_batch(found[s.name][:items], rows), s.dtype) for s in specs}, items


def _arrays(data: Data | None, specs: Sequence[InputSpec], samples: int, path: Path) -> Arrays:
    """Inputs by name, ``[N, ...]``."""
    if data is None:
        if any(size is None for spec in specs for size in spec.shape[1:]):
            raise SettingsError(f"{path}: sizes of its inputs are free: give data")
        free = [InputSpec(spec.name, (None, *spec.shape[1:]), spec.dtype) for spec in specs]
        return noise(free, samples)
    if isinstance(data, Mapping) and all(isinstance(value, np.ndarray) for value in data.values()):
        return data
    return open_arrays(data, specs, samples).load()


def _as_written(model: Path | onnx.ModelProto, feeds: Arrays, items: int) -> tuple[Arrays | None, str]:
    """Outputs of the graph as written on ONNX Runtime, or None and why."""
    try:
        found = run_padded(open_session(model, level="off"), feeds)
    except ModelError as error:
        return None, f"nothing: {reason(str(error))}"
    written = {name: array[:items] for name, array in found.items()}
    of = "graph as written" if isinstance(model, Path) else "what is read back as QuantizeLinear and DequantizeLinear"
    return written, f"ONNX Runtime {onnxruntime.__version__}, {of}"


# --- one of them ------------------------------------------------------------------------------------------------------


def _tried(place: Place, task: _Task) -> Attempt:
    """In one runtime, where the machine has what it needs; of weights in other files some are given a copy with them inside."""
    if place.lacks:
        row = place.row
        return Attempt(row.name, row.title, place.version, place.environment, row.install, reason=place.lacks)
    if place.row.opener not in WHOLE_FILES:
        return _at_some_batch(place, task)
    with temporary_folder() as folder:
        try:
            copies = [
                _copied(path, folder / f"{i}.onnx") if path is not None and _has_data_beside(path) else path
                for i, path in enumerate((task.model, task.against))
            ]
        except (MrecgError, OSError) as error:  # no room, or weights beside it are missing
            return Attempt(
                place.row.name, place.row.title, place.version, place.environment, place.row.install, loads=False,
                reason=reason(str(error)),
            )  # fmt: skip
        return _at_some_batch(place, replace(task, model=copies[0] or task.model, against=copies[1]))


def _at_some_batch(place: Place, task: _Task) -> Attempt:
    """At the file's own batch; where it, or the float model's, fails at a free one, once more at a fixed one."""
    found = _attempt(place, task)
    done = found.runs and not found.against_reason
    if done or not task.free_batch or found.reason.startswith(STOPPED):
        return found
    with temporary_folder() as folder:
        try:
            copies = [
                _copied(path, folder / f"{i}.onnx", task.batch) if path is not None else None
                for i, path in enumerate((task.model, task.against))
            ]
        except (MrecgError, OSError):  # no room, or weights beside it are missing
            return found
        again = _attempt(place, replace(task, model=copies[0] or task.model, against=copies[1]))
    if found.runs:  # the float model alone fails: both are timed at the fixed batch
        times = ("median_s", "against_s", "cpu_s", "against_cpu_s", "against_reason")
        return replace(found, **{name: getattr(again, name) for name in times}) if again.against_s else found
    if again.runs or (again.loads and not found.loads):
        return replace(again, fixed_batch=task.batch, reason=again.reason or f"with a free batch: {found.reason}")
    return found


def _copied(path: Path, output: Path, batch: int | None = None) -> Path:
    """A copy of a model with all its weights inside, whose in- and outputs have this batch."""
    model = read_graph(path)
    load_external(model, path.parent, str(path))
    if batch is None:
        save_model(model, output)
        return output
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and not sizes[0].HasField("dim_value"):
            sizes[0].dim_value = batch
    save_model(model, output)
    return output


def _attempt(place: Place, task: _Task) -> Attempt:
    row = place.row
    with temporary_folder() as folder:
        _write_job(row, task, folder)
        command = [place.program, program_file(row.program, folder), "job.json"]
        try:
            ended = run_limited(
                command, folder, _environment(place, task), task.timeout_s, task.memory_bytes
            )  # fmt: skip
        except OSError as error:
            raise SettingsError(f"{place.program}: cannot be started: {error.strerror or error}") from error
        answers = _answers(folder)
        attempt = _from_answers(place, answers, ended)
        if "outputs" not in answers:
            return attempt
        try:
            outputs = _outputs(answers, folder, task)
        except ValueError as error:
            return replace(attempt, runs=False, reason=reason(str(error)))
    return _compared(replace(attempt, runs=True, items=min(int(answers["items"]), task.items)), outputs, task)


def _write_job(row: Runtime, task: _Task, folder: Path) -> None:
    inputs = []
    for i, (name, array) in enumerate(task.feeds.items()):
        array.tofile(folder / f"input{i}")
        inputs.append({"name": name, "file": f"input{i}", "shape": list(array.shape), "dtype": array.dtype.name})
    job = {
        "opener": row.opener,
        "options": dict(row.options),
        "model": str(task.model),
        "against": str(task.against) if task.against else None,
        "alone": not _has_data_beside(task.model) and not (task.against and _has_data_beside(task.against)),
        "inputs": inputs,
        "outputs": [value.name for value in task.proto.graph.output],
        "folder": str(folder),
        "parent": os.getpid(),
        "batch": task.batch,
        "threads": task.threads,
        "runs": task.runs,
        "seconds": task.timeout_s * SHARE,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def _has_data_beside(path: Path) -> bool:
    """Whether weights lie in other files: such a model is opened where it lies."""
    graph = read_graph(path).graph
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer)


def _environment(place: Place, task: _Task) -> dict[str, str]:
    """That of this process; another Python has packages of its own, node is told where its packages lie."""
    made = environment_of(place.program)
    if place.row.program == "node":
        made["NODE_PATH"] = place.environment
    if task.threads is not None:
        made |= {name: str(task.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return made


def _answers(folder: Path) -> dict[str, Any]:
    """All that was found; a line that a crash cut short is left out."""
    file, found = folder / "answers", dict[str, Any]()
    if file.is_file():
        with file.open("rb") as lines:
            for line in lines.read(MOST_ANSWERS).decode("utf-8", "replace").splitlines():
                try:
                    found |= json.loads(line)
                except (ValueError, TypeError):
                    continue
    return found


def _from_answers(place: Place, answers: Mapping[str, Any], ended: Ended) -> Attempt:
    """All but the comparison."""
    row = place.row
    kernels = {str(name): int(count) for name, count in answers.get("kernels", {}).items()}
    stage = next((s for s in ("model", "run") if f"{s}_error" in answers), None)
    why = ""
    if stage is not None:
        why = reason(str(answers[f"{stage}_error"])) or "it gives no reason"
    elif ended.cause:
        where = (
            "opening it" if "model_opened" not in answers else "running it" if "outputs" not in answers else "timing it"
        )
        said = reason(ended.printed, crashed=True)
        why = f"{ended.cause} while {where}" + (f": {said}" if said and not ended.stopped else "")
    elif "kernels_error" in answers:
        why = f"does not say what runs: {reason(str(answers['kernels_error']))}"
    return Attempt(
        row.name, row.title, str(place.version or answers.get("version") or ""), place.environment, row.install,
        loads="model_opened" in answers,
        reason=why,
        kernels=kernels,
        arithmetic=row.arithmetic(kernels),
        load_s=answers.get("model_opened"),
        median_s=answers.get("model_s"),
        against_s=answers.get("against_s"),
        cpu_s=answers.get("model_cpu_s"),
        against_cpu_s=answers.get("against_cpu_s"),
        against_reason=reason(str(answers.get("against_error", ""))),
    )  # fmt: skip


def _outputs(answers: Mapping[str, Any], folder: Path, task: _Task) -> dict[str, npt.NDArray[Any]]:
    """What the runtime gave, in the shapes of the graph as written where that ran.

    Raises:
        ValueError: there are not as many values as there should be.
    """
    found, count = {}, min(int(answers["items"]), task.items)
    for i, told in enumerate(answers["outputs"]):
        array = np.fromfile(folder / f"output{i}", np.dtype(told["dtype"]))
        name, shape = str(told["name"]), tuple(told["shape"])
        if task.written is not None and name in task.written:
            want = task.written[name]
            if array.size != want[:1].size * int(answers["items"]):
                raise ValueError(f"output {name!r} is {list(shape)}, a row for each item is {list(want.shape[1:])}")
            shape = (int(answers["items"]), *want.shape[1:])
        found[name] = array.reshape(shape)[:count]
    return found


def _compared(attempt: Attempt, outputs: Mapping[str, npt.NDArray[Any]], task: _Task) -> Attempt:
    """With agreement and SQNR."""
    if task.written is None:
        return attempt
    same, figures = likeness(task.written, outputs, Heads.of_model(task.proto))
    others = {
        n: float(np.mean(x[: attempt.items] == outputs[n])) for n, x in task.written.items() if x.dtype.kind != "f"
    }
    return replace(attempt, agreement=same, sqnr_by_output=figures, equal_by_output=others)
