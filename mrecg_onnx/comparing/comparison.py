"""Several methods at several widths on one model: every combination a cell, measured alike, kept as it is finished.

Each cell is quantized and validated in a process of its own (:mod:`comparing.cells`): its peak memory is its own, and what
ends it does not end the others. What is finished lies in the folder; the same call goes on from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import platform
import re
import shutil
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mrecg_onnx import __version__
from mrecg_onnx.comparing.cells import CellProcess, Job, unpack
from mrecg_onnx.comparing.plots import draw_cells, have_matplotlib
from mrecg_onnx.comparing.tables import csv_text, markdown, write_whole
from mrecg_onnx.converters.errors import ExportError, MrecgError, SettingsError
from mrecg_onnx.converters.files import require_regular
from mrecg_onnx.data import ZEROQ, for_images, holds_images, open_calibration, open_validation, require_numbers
from mrecg_onnx.machine import world_size
from mrecg_onnx.measures import mcnemar_p
from mrecg_onnx.methods import METHODS
from mrecg_onnx.runtimes import input_specs, open_session
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import Accuracy, chosen_outputs, size_bytes, source_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mrecg_onnx.data import InputSpec
    from mrecg_onnx.progress import Progress

__all__ = ["Cell", "Comparison", "ComparisonProgress", "Widths", "compare"]

logger = logging.getLogger(__name__)

_WIDTHS = re.compile(r"^W(\d+)A(\d+)$", re.IGNORECASE)
#: Settings that change how a cell is computed but not what of it is compared: they may differ from call to call.
_FREE = frozenset({"memory", "compile"})
#: How outputs are compared: cells validated by another measure are validated again.
MEASURE = "variance"
#: Settings that each cell has for itself.
_OWN = frozenset({"method", "wbits", "abits"})
NAME = "comparison"
"""Stem of the table's files in the folder."""


@dataclass(frozen=True, order=True)
class Widths:
    """Bits of weights and activations, written W4A4."""

    wbits: int
    abits: int

    @classmethod
    def parse(cls, text: str) -> Widths:
        """Read ``W4A4``; ``W4A32`` leaves activations in float.

        Raises:
            SettingsError: the text has another form, or a width is out of range.
        """
        match = _WIDTHS.match(text.strip())
        if match is None:
            raise SettingsError(f"bits '{text}': expected widths such as W4A4 or W2A4")
        widths = cls(int(match[1]), int(match[2]))
        if not 2 <= widths.wbits <= 8 or (widths.abits not in {16, 32} and not 2 <= widths.abits <= 8):
            raise SettingsError(
                f"bits '{text}': widths go from 2 to 8 (there is A16, too, and A32 leaves activations in float)"
            )
        return widths

    def __str__(self) -> str:
        return f"W{self.wbits}A{self.abits}"


@dataclass(frozen=True)
class Cell:
    """One method at one width.

    Attributes:
        method: row of :data:`mrecg_onnx.methods.METHODS`.
        widths: bits.
        file: the quantized model, None where the cell failed.
        error: why it failed, one line; None where it did not.
        images: calibration images used.
        kept: it was finished by an earlier call.
        seconds: wall time of the quantization, interrupted attempts not counted.
        peak_bytes: the most memory its process held while quantizing.
        device_peak_bytes: the same on the GPU; None on the CPU.
        size_bytes: size of the file.
        top1: accuracy; None without labels.
        drop: top-1 of the float model less that of the cell.
        fp32_p: McNemar's exact p for "as accurate as the float model".
        base_p: the same for "as accurate as the base method at the same width"; None for the base itself, without labels,
            and where the base failed.
        agreement: share of images with the float model's prediction.
        sqnr_db: signal-to-quantization-noise ratio of the worst output in dB; None where it is infinite.
        sqnr_by_output: the same of every float output.
        equal_by_output: share of equal values of every other output.
        latency_s: median seconds of a run; None where none was asked for.
        speedup: the float model's latency, measured in turn with it, over the cell's.
        warnings: what the check of the file found, a sentence each.
        right: which images it gets right, in the data's order; None without labels.
    """

    method: str
    widths: Widths
    file: Path | None = None
    error: str | None = None
    images: int | None = None
    kept: bool = False
    seconds: float | None = None
    peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    size_bytes: int | None = None
    top1: Accuracy | None = None
    drop: float | None = None
    fp32_p: float | None = None
    base_p: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    sqnr_by_output: dict[str, float | None] = field(default_factory=dict)
    equal_by_output: dict[str, float] = field(default_factory=dict)
    latency_s: float | None = None
    speedup: float | None = None
    warnings: tuple[str, ...] = ()
    right: npt.NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """``qdrop W4A4``."""
        return f"{self.method} {self.widths}"

    def to_json(self) -> dict[str, Any]:
        """A plain dict; ``right`` stays in the cell's own file."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "right"}
        return content | {
            "widths": str(self.widths),
            "file": self.file and self.file.name,
            "warnings": list(self.warnings),
            "top1": self.top1 and self.top1.to_json(),
        }


@dataclass(frozen=True)
class Comparison:
    """All cells, by width and then in the order of the methods.

    Attributes:
        model: the float model.
        calib: calibration data.
        data: validation data.
        folder: where everything was written.
        settings: what all cells have in common; method and widths are the cells' own.
        base_method: what :attr:`Cell.base_p` compares with.
        cells: outcome of every cell.
        images: validation images.
        fp32_top1: the float model's accuracy; None without labels.
        fp32_size_bytes: its size.
        fp32_latency_s: its median seconds a run, over all the times it was run in turn with a cell.
        latency_batch: images a timed run.
        warnings: what makes the numbers doubtful, a sentence each.
        written: table and plot.
        environment: versions and kind of machine.
    """

    model: Path
    calib: str
    data: str
    folder: Path
    settings: Settings
    base_method: str
    cells: tuple[Cell, ...]
    images: int
    fp32_top1: Accuracy | None
    fp32_size_bytes: int
    fp32_latency_s: float | None
    latency_batch: int
    warnings: tuple[str, ...]
    written: tuple[Path, ...]
    environment: dict[str, str]

    @property
    def failed(self) -> tuple[Cell, ...]:
        """Cells that have no result."""
        return tuple(cell for cell in self.cells if cell.error is not None)

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``json.dumps(allow_nan=False)`` takes."""
        return {
            "model": str(self.model),
            "calib": self.calib,
            "data": self.data,
            "base_method": self.base_method,
            "images": self.images,
            "fp32": {
                "top1": self.fp32_top1 and self.fp32_top1.to_json(),
                "size_bytes": self.fp32_size_bytes,
                "latency_s": self.fp32_latency_s,
            },
            "latency_batch": self.latency_batch,
            "cells": [cell.to_json() for cell in self.cells],
            "warnings": list(self.warnings),
            "settings": {k: v for k, v in self.settings.to_json().items() if k not in _OWN},
            "environment": self.environment,
        }


@dataclass(frozen=True)
class ComparisonProgress:
    """Where a comparison is.

    Attributes:
        name: the cell at work, "latency" at the end.
        number: which one it is, counted from 1.
        total: how many there are.
        inner: where the cell's quantization is; None in its other stages.
        stage: "quantize", "validate", "latency".
        finished: the cell that has just been finished, or was by an earlier call.
    """

    name: str
    number: int
    total: int
    stage: str
    inner: Progress | None = None
    finished: Cell | None = None


def compare(
    model: str | Path,
    calib: str | Path,
    data: str | Path,
    folder: str | Path,
    *,
    methods: Sequence[str],
    bits: Sequence[str | Widths],
    settings: Settings | None = None,
    base_method: str | None = None,
    labels: str | Path | None = None,
    limit: int | None = None,
    outputs: Sequence[str] | None = None,
    latency_batch: int = 1,
    repeats: int = 50,
    report: Callable[[ComparisonProgress], None] | None = None,
) -> Comparison:
    """Quantize ``model`` by every method at every width and put the results side by side.

    Args:
        model: the float model's file.
        calib: calibration data as for :func:`mrecg_onnx.quantize`.
        data: validation data as for :func:`mrecg_onnx.validate`; without labels agreement and noise are compared.
        folder: where quantized files, cells and the table go; made where it does not exist. The same call goes on with
            what it finds there, more methods and widths may be added by and by; the table holds those of the last call.
        methods: names of :data:`mrecg_onnx.methods.METHODS`.
        bits: widths, such as ``W4A4``.
        settings: everything else, the same for all cells.
        base_method: McNemar's test compares the others with it; the first of ``methods`` by default.
        labels: labels of ``data``, as for :func:`mrecg_onnx.validate`.
        limit: validate on at most so many images, spread evenly.
        outputs: names of the outputs to validate; all by default.
        latency_batch: images a timed run.
        repeats: timed runs of each file; 0 leaves latency out.
        report: called as the work proceeds.

    Returns:
        All cells; one that failed says why, and the others are not touched by it.

    Raises:
        SettingsError: a method or width does not exist, a list is empty, or the folder holds another comparison.
        ModelError: the float model cannot be opened.
        DataError: the data cannot be read.
        ExportError: the folder cannot be written.
        KeyboardInterrupt: interrupted; the running cell's process is ended, finished cells and units stay.
    """
    settings = settings or Settings()
    chosen = _methods(methods, base_method)
    widths = _widths(bits)
    if latency_batch < 1 or repeats < 0:
        raise SettingsError(f"latency of {repeats} runs with {latency_batch} images: give >= 0 runs and >= 1 images")
    if world_size() > 1:
        raise SettingsError("compare runs each cell in a process of its own: start it without torchrun")
    plan = _Plan.make(Path(model), calib, data, Path(folder), settings, labels=labels, limit=limit, outputs=outputs)
    plan.latency = {"batch": latency_batch, "repeats": repeats, "threads": settings.threads}
    plan.claim_folder()
    base = base_method or chosen[0]
    pairs = [(method, width) for width in widths for method in chosen]
    cells: list[Cell] = []
    for number, (method, width) in enumerate(pairs, 1):
        tell = _Tell(report, f"{method} {width}", number, len(pairs))
        cells.append(_run_cell(plan, method, width, tell))
        _write_table(plan, base, cells)
        tell(cells[-1])
    if repeats:
        cells = _measure_latency(plan, cells, report)
    return _write_table(plan, base, cells, plot=True)


def _methods(methods: Sequence[str], base_method: str | None) -> list[str]:
    chosen = list(dict.fromkeys(methods))
    if not chosen:
        raise SettingsError(f"methods: none is given; choose among {', '.join(METHODS)}")
    unknown = [name for name in [*chosen, *([base_method] if base_method else [])] if name not in METHODS]
    if unknown:
        raise SettingsError(f"method '{unknown[0]}' is unknown: choose among {', '.join(METHODS)}")
    if base_method and base_method not in chosen:
        raise SettingsError(f"base method '{base_method}' is not among the methods compared: {', '.join(chosen)}")
    return chosen


def _widths(bits: Sequence[str | Widths]) -> list[Widths]:
    widths = list(dict.fromkeys(w if isinstance(w, Widths) else Widths.parse(w) for w in bits))
    if not widths:
        raise SettingsError("bits: no widths are given; W4A4, for example")
    return widths


# --- what a comparison is ---------------------------------------------------------------------------------------------


@dataclass
class _Plan:
    """The inputs of all cells, and what tells them from those of another comparison."""

    model: Path
    calib: str | Path
    data: str
    folder: Path
    settings: Settings
    labels: str | Path | None
    limit: int | None
    outputs: tuple[str, ...]
    quantized_by: dict[str, Any]
    validated_by: dict[str, Any]
    latency: dict[str, Any] = field(default_factory=dict)
    fp32: dict[str, Any] | None = None
    """What a cell's validation found about the float model, the same in all of them."""

    @classmethod
    def make(
        cls,
        model: Path,
        calib: str | Path,
        data: str | Path,
        folder: Path,
        settings: Settings,
        *,
        labels: str | Path | None,
        limit: int | None,
        outputs: Sequence[str] | None,
    ) -> _Plan:
        """Open model and data once, before any work."""
        session = open_session(model)
        specs = input_specs(session)
        chosen = chosen_outputs(session, outputs, str(model))
        settings = dataclasses.replace(settings, preprocess=for_images(settings.preprocess, model, calib, data))
        if holds_images(data) and not holds_images(calib):
            require_numbers(settings.preprocess, specs, f"{data} holds images, and {calib} arrays")
        checked = open_validation(data, specs, settings.preprocess, labels, limit)
        seen = checked.labels.tobytes() if checked.labels is not None else b""
        content = {name: value for name, value in settings.to_json().items() if name not in _FREE}
        quantized_by = {
            "version": __version__,
            "model": source_sha256(model),
            "calib": _calibration_key(calib, specs, settings),
            **{name: value for name, value in content.items() if name not in _OWN},
        }
        validated_by: dict[str, Any] = {
            "data": checked.fingerprint(),
            "labels": hashlib.sha256(seen).hexdigest(),
            "outputs": list(chosen),
            "measure": MEASURE,
        }
        plain = json.loads(json.dumps([quantized_by, validated_by]))
        return cls(model, calib, str(data), folder, settings, labels, limit, chosen, *plain)

    @property
    def cells(self) -> Path:
        """Where the cells' own files lie."""
        return self.folder / "cells"

    def claim_folder(self) -> None:
        """Make the folder, or check that what is in it belongs to this comparison.

        Raises:
            SettingsError: it holds another comparison, or is no folder.
            ExportError: it cannot be written.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise SettingsError(f"{self.folder} is a file: give a folder to write into")
        description = self.folder / "cells" / "comparison.json"
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            if not description.exists():
                write_whole(description, json.dumps(self.quantized_by, indent=1))
            require_regular(description)
            found = dict(json.loads(description.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{description} is no description of a comparison ({error}): remove it") from error
        except OSError as error:
            raise ExportError(f"{self.folder}: cannot be used: {error.strerror or error}") from error
        differ = sorted(k for k in {*found, *self.quantized_by} if found.get(k) != self.quantized_by.get(k))
        if differ:
            raise SettingsError(
                f"{self.folder}: the cells in it belong to another comparison (different: {', '.join(differ)}); "
                "name another folder or remove this one"
            )

    def stem(self, method: str, widths: Widths) -> str:
        """Name of a cell's files."""
        return f"{self.model.stem}_{method}_{str(widths).lower()}"

    def job(self, method: str, widths: Widths) -> Job:
        """What the cell's process has to do.

        Raises:
            SettingsError: the method cannot do these widths.
        """
        settings = dataclasses.replace(self.settings, method=method, wbits=widths.wbits, abits=widths.abits)
        stem = self.stem(method, widths)
        return Job(
            model=str(self.model),
            calib=self.calib,
            data=self.data,
            output=str(self.folder / f"{stem}.onnx"),
            checkpoint=str(self.cells / f"{stem}.units"),
            settings=settings,
            labels=self.labels,
            limit=self.limit,
            outputs=self.outputs,
            threads=self.settings.threads,
        )


def _calibration_key(calib: str | Path, specs: Sequence[InputSpec], settings: Settings) -> str:
    """Changes with the calibration data."""
    if calib == ZEROQ:  # made by every cell from the model, with the same seed
        return ZEROQ
    data = open_calibration(calib, specs, settings.preprocess, samples=settings.samples, seed=settings.seed)
    return data.fingerprint()


class _Tell:
    """The report of one cell."""

    def __init__(self, report: Callable[[ComparisonProgress], None] | None, name: str, number: int, total: int) -> None:
        self.report, self.name, self.number, self.total = report, name, number, total

    def __call__(self, finished: Cell | None = None, stage: str = "quantize", inner: Progress | None = None) -> None:
        if self.report is not None:
            self.report(ComparisonProgress(self.name, self.number, self.total, stage, inner, finished))


# --- one cell ---------------------------------------------------------------------------------------------------------


class _Record:
    """A cell's file: what each of its stages found, and for which inputs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {}
        try:
            require_regular(path)
            self.content = dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            logger.warning("%s cannot be read (%s): the cell is run again", path, error)

    def get(self, stage: str, by: dict[str, Any]) -> dict[str, Any] | None:
        """What ``stage`` found for the inputs ``by``; None if it was not run on them."""
        entry = self.content.get(stage)
        return entry["found"] if isinstance(entry, dict) and entry.get("by") == by else None

    def put(self, stage: str, by: dict[str, Any], found: dict[str, Any]) -> None:
        """Keep what a stage found; the file is there whole or as it was.

        Raises:
            ExportError: it cannot be written.
        """
        self.content[stage] = {"by": by, "found": found}
        try:
            write_whole(self.path, json.dumps(self.content, indent=1, allow_nan=False))
        except OSError as error:
            raise ExportError(f"{self.path}: cannot be written: {error.strerror or error}") from error


def _run_cell(plan: _Plan, method: str, widths: Widths, tell: _Tell) -> Cell:
    """One cell from what is there or by its own process; whatever goes wrong in it stays in it."""
    cell = Cell(method, widths)
    tell()
    try:
        job = plan.job(method, widths)
        record = _Record(plan.cells / f"{plan.stem(method, widths)}.json")
        made = record.get("quantize", plan.quantized_by)
        checked = record.get("validate", plan.validated_by)
        if made is not None and _sha256(job.output) != made["sha256"]:
            made = None  # the file is gone or another one
        kept = made is not None and checked is not None
        if made is None:
            with CellProcess("quantize", job) as process:
                made = process.result(lambda inner: tell(inner=inner))
            record.put("quantize", plan.quantized_by, made)
            shutil.rmtree(job.checkpoint, ignore_errors=True)
            checked = None
        if checked is None:
            tell(stage="validate")
            with CellProcess("validate", job) as process:
                checked = process.result()
            record.put("validate", plan.validated_by, checked)
    except (MrecgError, OSError) as error:
        logger.info("cell %s failed: %s", cell.name, error)
        return dataclasses.replace(cell, error=" ".join(str(error).split()))
    plan.fp32 = checked["fp32"]
    return _cell(cell, Path(job.output), made, checked, kept=kept)


def _cell(cell: Cell, file: Path, made: dict[str, Any], checked: dict[str, Any], *, kept: bool) -> Cell:
    right = checked.get("right")
    return dataclasses.replace(
        cell,
        file=file,
        images=made["images"],
        kept=kept,
        seconds=made["seconds"],
        peak_bytes=made["peak_bytes"],
        device_peak_bytes=made["device_peak_bytes"],
        size_bytes=made["size_bytes"],
        top1=Accuracy(**checked["top1"]) if checked["top1"] else None,
        drop=checked["drop"],
        fp32_p=checked["fp32_p"],
        agreement=checked["agreement"],
        sqnr_db=checked["sqnr_db"],
        sqnr_by_output=checked.get("sqnr_by_output", {}),
        equal_by_output=checked.get("equal_by_output", {}),
        warnings=(*made["warnings"], *checked.get("warnings", ())),
        right=unpack(right, checked["labelled"]) if right is not None else None,
    )


def _measure_latency(plan: _Plan, cells: list[Cell], report: Callable[[ComparisonProgress], None] | None) -> list[Cell]:
    """Latency of every finished cell, in turn with the float model, where it is not known for these files."""
    timed = []
    total = sum(cell.error is None for cell in cells)
    for cell in cells:
        if cell.file is None:
            timed.append(cell)
            continue
        tell = _Tell(report, cell.name, 1 + sum(c.file is not None for c in timed), total)
        tell(stage="latency")
        try:
            record = _Record(plan.cells / f"{plan.stem(cell.method, cell.widths)}.json")
            by = plan.latency | {"sha256": _sha256(cell.file), "data": plan.validated_by["data"]}
            found = record.get("latency", by)
            if found is None:
                job = dataclasses.replace(plan.job(cell.method, cell.widths), latency=plan.latency)
                with CellProcess("latency", job) as process:
                    found = process.result()
                record.put("latency", by, found)
        except (MrecgError, OSError) as error:
            logger.warning("the latency of %s could not be measured: %s", cell.name, error)
            timed.append(cell)
            continue
        seconds, fp32 = found["latency_s"], found["fp32_latency_s"]
        timed.append(dataclasses.replace(cell, latency_s=seconds, speedup=fp32 / seconds))
    return timed


def _sha256(path: str | Path) -> str | None:
    return source_sha256(path) if Path(path).is_file() else None


# --- putting the cells together -----------------------------------------------------------------------------------------


def _write_table(plan: _Plan, base: str, cells: Sequence[Cell], *, plot: bool = False) -> Comparison:
    """Put the cells together and write them down.

    Raises:
        ExportError: the folder cannot be written.
    """
    fp32 = plan.fp32 or {}
    warnings = [*fp32.get("warnings", []), *(f"{cell.name}: {text}" for cell in cells for text in cell.warnings)]
    known = [cell.speedup * cell.latency_s for cell in cells if cell.speedup is not None and cell.latency_s is not None]
    stem = plan.folder / NAME
    written = [stem.with_suffix(suffix) for suffix in (".md", ".csv", ".json")]
    if plot and any(cell.error is None for cell in cells):
        if have_matplotlib():
            written.append(stem.with_suffix(".png"))
        else:
            warnings.append("there is no plot: matplotlib is missing; pip install 'mrecg-onnx[plot]' and run again")
    found = Comparison(
        model=plan.model,
        calib=str(plan.calib),
        data=plan.data,
        folder=plan.folder,
        settings=plan.settings,
        base_method=base,
        cells=tuple(_against_base(cell, base, cells) for cell in cells),
        images=fp32.get("images", 0),
        fp32_top1=Accuracy(**fp32["top1"]) if fp32.get("top1") else None,
        fp32_size_bytes=size_bytes(plan.model),
        fp32_latency_s=float(np.median(known)) if known else None,
        latency_batch=plan.latency["batch"],
        warnings=tuple(warnings),
        written=tuple(written),
        environment=_environment(),
    )
    try:
        write_whole(written[0], markdown(found))
        write_whole(written[1], csv_text(found))
        write_whole(written[2], json.dumps(found.to_json(), indent=1, allow_nan=False))
        if len(written) > 3:
            draw_cells(found, written[3])
    except OSError as error:
        raise ExportError(f"{plan.folder}: the table cannot be written: {error.strerror or error}") from error
    return found


def _against_base(cell: Cell, base: str, cells: Sequence[Cell]) -> Cell:
    """The cell with McNemar's p against the base method at its width."""
    other = next((c for c in cells if c.method == base and c.widths == cell.widths), None)
    if other is None or cell.method == base or cell.right is None or other.right is None:
        return cell
    if len(cell.right) != len(other.right):  # an image could be read once and not the other time
        return cell
    return dataclasses.replace(cell, base_p=mcnemar_p(cell.right, other.right))


def _environment() -> dict[str, str]:
    found = {"mrecg-onnx": __version__, "Python": platform.python_version()}
    for name in ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"machine": f"{platform.system()} {platform.machine()}"}
