"""What files cost where they run: time, throughput, memory, size and kernels, all measured in turn on one machine."""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
import psutil

from mrecg_onnx.converters import load_model, save_model
from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.converters.files import temporary_folder
from mrecg_onnx.converters.load import model_path
from mrecg_onnx.converters.made import Made, model_of
from mrecg_onnx.converters.results import Result
from mrecg_onnx.data import InputSpec
from mrecg_onnx.machine import byte_size, duration, milliseconds
from mrecg_onnx.progress import Progress, Report
from mrecg_onnx.running import (
    PROVIDERS,
    InTurn,
    Kernel,
    Seconds,
    all_runs,
    check_provider,
    fixed_batch,
    input_specs,
    kernels,
    latency,
    load,
    medians,
    noise,
    open_session,
    ratio_interval,
    size_bytes,
    slower_here,
    speedup_text,
)

__all__ = ["Benchmark", "FileReport", "Timing", "benchmark"]

#: Fresh processes in which each file is opened, for load time and memory.
LOADS = 3
T = TypeVar("T", int, str, "int | None", "str | Path")


@dataclass(frozen=True)
class FileReport:
    """What holds for a file whatever the batch.

    Attributes:
        name: its path.
        size_bytes: bytes on disk, with external data.
        load_s: seconds to open it in a fresh process, the median of :data:`LOADS`.
        memory_bytes: resident memory that opening it and running the first batch took there, the median.
        kernels: what ran, by provider, the costliest first, at the first batch and thread count.
        notes: why a newer ONNX Runtime would be faster, where that is known.
    """

    name: str
    size_bytes: int
    load_s: float
    memory_bytes: int
    kernels: dict[str, tuple[Kernel, ...]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timing:
    """One file at one batch, thread count and provider.

    Attributes:
        file: its path.
        provider: a row of :data:`mrecg_onnx.running.PROVIDERS`.
        threads: threads inside an operator, None for ONNX Runtime's own choice.
        batch: items a run.
        runs: timed runs.
        median_s: seconds a run, the median over the sittings' medians (:func:`mrecg_onnx.running.latency`).
        low_s: 10th percentile.
        high_s: 90th percentile.
        throughput: items a second at the median.
        speedup: against the first file in the same place, by medians.
        speedup_interval: between what it lies with 95 %, by sittings; None for the first file.
    """

    file: str
    provider: str
    threads: int | None
    batch: int
    runs: int
    median_s: float
    low_s: float
    high_s: float
    throughput: float
    speedup: float
    speedup_interval: tuple[float, float] | None = None


@dataclass(frozen=True, repr=False)
class Benchmark(Result):
    """Outcome of :func:`benchmark`; files and timings in the order they were asked for."""

    files: tuple[FileReport, ...]
    timings: tuple[Timing, ...]
    environment: dict[str, str]

    def __str__(self) -> str:
        """Every file with its size, and every timing with its factor against the first file."""
        lines = [f"{one.name}: {byte_size(one.size_bytes)}, opened in {duration(one.load_s)}" for one in self.files]
        for one in self.timings:
            threads = "" if one.threads is None else f", {one.threads} threads"
            place = f"{one.provider}, batch {one.batch}{threads}"
            told = one.file != self.files[0].name
            factor = f", {speedup_text(one.speedup, one.speedup_interval)}" if told else ""
            lines.append(f"{one.file} ({place}): {milliseconds(one.median_s)} ms{factor}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        return dataclasses.asdict(self)


@takes()
def benchmark(
    files: onnx.ModelProto | str | Path | Made | Sequence[onnx.ModelProto | str | Path | Made],
    *,
    batch: int | Sequence[int] | None = None,
    threads: int | Sequence[int | None] | None = None,
    provider: str | Sequence[str] = "cpu",
    runs: int = 50,
    progress: Report | None = None,
) -> Benchmark:
    """Measure models on ONNX Runtime, taking turns so that a busy machine slows all of them alike.

    Args:
        files: a model, or several with the same inputs: paths, what :func:`mrecg_onnx.quantize` or :func:`mrecg_onnx.convert`
            returned, or models in memory, which are called ``model 1`` and so on by their places; the first is what the others
            are compared with.
        batch: items a run, one number or several; the batch that one of the files fixes, else 1, by default.
        threads: threads inside an operator, one number or several; None for ONNX Runtime's own choice.
        provider: rows of :data:`mrecg_onnx.running.PROVIDERS`, one name or several.
        runs: timed runs of each file in each place, spread over sittings in sessions opened anew.
        progress: called as the work proceeds (:class:`mrecg_onnx.Progress`).

    Returns:
        All figures. Inputs are normal random numbers.

    Raises:
        ModelError: a file cannot be opened or run, or has inputs of other names or sizes than the first.
        SettingsError: a number below 1, an unknown provider, one that is not there, or one that left all the work to another.
    """
    with temporary_folder() as folder:
        given: tuple[Any, ...] = tuple(map(model_of, _several(files)))  # type: ignore[type-var]
        paths = [_file(file, folder / f"{n}.onnx") for n, file in enumerate(given, 1)]
        called = {
            path: f"model {n}" if isinstance(file, onnx.ModelProto) else str(path)
            for n, (path, file) in enumerate(zip(paths, given, strict=True), 1)
        }
        return _measured(paths, called, batch, threads, provider, runs, progress)


def _file(model: onnx.ModelProto | str | Path, place: Path) -> Path:
    """The path of a model; one in memory is written to ``place``: it is opened in fresh processes."""
    if not isinstance(model, onnx.ModelProto):
        return model_path(model)
    save_model(load_model(model), place)
    return place


def _measured(
    paths: Sequence[Path],
    called: Mapping[Path, str],
    batch: int | Sequence[int] | None,
    threads: int | Sequence[int | None] | None,
    provider: str | Sequence[str],
    runs: int,
    progress: Report | None,
) -> Benchmark:
    """Measure files, each of which messages and the result call so."""
    batches = None if batch is None else _several(batch)
    counts, providers = _several(threads), _several(provider)
    _check(paths, (1,) if batches is None else batches, counts, providers, runs)
    specs = _common_inputs(paths, called)
    if batches is None:
        batches = (next((spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None), 1),)
    steps = len(paths) * LOADS + len(providers) * (len(paths) + len(counts) * len(batches))
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(Progress("benchmark", done=done, total=steps, of="steps"))

    first = noise(specs, batches[0])
    ran: dict[Path, dict[str, tuple[Kernel, ...]]] = {path: {} for path in paths}
    timings: list[Timing] = []
    for name in providers:
        for path in paths:
            found = kernels(path, first, counts[0], name)
            check_provider(found, name, called[path])
            ran[path][name] = tuple(found)
            step()
        for count in counts:
            models = InTurn({called[path]: path for path in paths}, count, name)
            for size in batches:
                taken = latency(models, noise(specs, size), runs)
                timings += _timings(taken, name, count, size)
                step()
    opened: dict[Path, list[dict[str, float]]] = {path: [] for path in paths}
    for _ in range(LOADS):
        for path in paths:
            opened[path].append(load(path, specs, batches[0], counts[0], providers[0]))
            step()
    reports = [
        FileReport(
            called[path],
            size_bytes(path),
            statistics.median(one["load_s"] for one in opened[path]),
            int(statistics.median(one["memory_bytes"] for one in opened[path])),
            ran[path],
            slower_here(path),
        )
        for path in paths
    ]
    return Benchmark(tuple(reports), tuple(timings), _environment())


def _several(given: T | Sequence[T]) -> tuple[T, ...]:
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)  # type: ignore[return-value]


def _check(
    paths: Sequence[Path],
    batches: Sequence[int],
    threads: Sequence[int | None],
    providers: Sequence[str],
    runs: int,
) -> None:
    if not paths:
        raise SettingsError("no file to measure")
    if len(set(paths)) < len(paths):
        raise SettingsError("a file is given twice")
    for name, values in (("batch", batches), ("threads", [n for n in threads if n is not None]), ("runs", [runs])):
        for value in values:
            if value < 1:
                raise SettingsError(f"{name} is {value}: it must be 1 or more")
    for provider in providers:
        if provider not in PROVIDERS:
            raise SettingsError.among(f"provider '{provider}' is unknown", PROVIDERS, provider)


def _common_inputs(paths: Sequence[Path], called: Mapping[Path, str]) -> list[InputSpec]:
    """What all files are fed; a batch that one of them fixes is fixed.

    Raises:
        ModelError: they differ, or a size that is not the batch is free.
    """
    kept: list[InputSpec] = []
    for path in paths:
        session = open_session(path)
        specs = input_specs(session)
        for spec in specs:
            if any(size is None for size in spec.shape[1:]):
                raise ModelError(
                    f"{called[path]}: input '{spec.name}' has free sizes {_sizes(spec)}: fix all but the batch"
                )
        if not kept:
            kept = specs
            continue
        mine, first = ([(s.name, s.shape[1:], s.dtype) for s in group] for group in (specs, kept))
        if mine != first:
            mine_text, first_text = (", ".join(f"{s.name} {_sizes(s)}" for s in group) for group in (specs, kept))
            raise ModelError(
                f"{called[path]}: its inputs ({mine_text}) are not those of {called[paths[0]]} ({first_text})"
            )
        if fixed_batch(session) is not None:
            kept = specs
    return kept


def _sizes(spec: InputSpec) -> str:
    return "x".join("?" if size is None else str(size) for size in spec.shape)


def _timings(taken: dict[str, Seconds], provider: str, threads: int | None, batch: int) -> list[Timing]:
    middle = medians(taken)
    first, base = next(iter(taken.values())), next(iter(middle.values()))
    found = []
    for name, sittings in taken.items():
        seconds = all_runs(sittings)
        low, high = (float(np.percentile(seconds, share)) for share in (10, 90))
        median = middle[name]
        found.append(
            Timing(
                name,
                provider,
                threads,
                batch,
                len(seconds),
                median,
                low,
                high,
                batch / median,
                base / median,
                None if sittings is first else ratio_interval(first, sittings),
            )
        )
    return found


def _environment() -> dict[str, str]:
    return {
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "cores": str(psutil.cpu_count(logical=False) or psutil.cpu_count()),
    }
