"""Several methods at several widths on one model: every combination a cell, measured alike, kept as it is finished.

Each cell is quantized and validated in a process of its own (:mod:`mrecg_onnx.comparing.cells`): its peak memory is its own,
and what ends it does not end the others. What is finished lies in the folder; the same call goes on from there.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrecg_onnx import __version__
from mrecg_onnx.comparing.handed import told
from mrecg_onnx.comparing.inputs import Inputs
from mrecg_onnx.comparing.plots import draw_cells, have_matplotlib
from mrecg_onnx.comparing.progress import Tell
from mrecg_onnx.comparing.result import Cell, Comparison, Widths
from mrecg_onnx.comparing.running import measure_latency, run_cell
from mrecg_onnx.comparing.tables import csv_text, markdown
from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.errors import ExportError, SettingsError
from mrecg_onnx.converters.files import write_all_whole
from mrecg_onnx.converters.reads import Reads
from mrecg_onnx.converters.text import with_arguments
from mrecg_onnx.data import Preprocess
from mrecg_onnx.machine import locked, world_size
from mrecg_onnx.measures import AnyMetric, Metric, mcnemar_p, metric_of
from mrecg_onnx.methods import METHODS
from mrecg_onnx.running import SITTINGS, size_bytes
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import Accuracy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx

    from mrecg_onnx.comparing.progress import ComparisonProgress
    from mrecg_onnx.data import Data, Labels

__all__ = ["compare", "environment"]

NAME = "comparison"
"""Stem of the table's files in the folder."""


@takes(settings=Settings, preprocess=Preprocess, metric=Metric, bits=Widths)
def compare(
    model: onnx.ModelProto | str | Path,
    calib: Data,
    data: Data,
    output: str | Path,
    *,
    methods: str | Sequence[str],
    bits: str | Widths | Sequence[str | Widths],
    settings: Settings | None = None,
    base_method: str | None = None,
    labels: Labels | None = None,
    limit: int | None = None,
    outputs: Sequence[str] | None = None,
    latency_batch: int = 1,
    repeats: int = 50,
    metric: AnyMetric = None,
    force: bool = False,
    progress: Callable[[ComparisonProgress], None] | None = None,
) -> Comparison:
    """Quantize ``model`` by every method at every width and put the results side by side.

    Args:
        model: the float model. One in memory is written to ``cells/data`` in the folder, and files of cells begin with "model".
        calib: calibration data as for :func:`mrecg_onnx.quantize`. Cells run in processes of their own: what is handed over in
            Python and is no list of files is written to ``cells/data`` in the folder, and so it is with ``data``.
        data: validation data as for :func:`mrecg_onnx.validate`; without labels agreement and noise are compared.
        output: the folder where quantized files, cells and the table go; made where it does not exist. The same call goes on with
            what it finds there, more methods and widths may be added by and by; the table holds those of the last call.
        methods: names of :data:`mrecg_onnx.methods.METHODS`, one or several.
        bits: widths, such as ``W4A4``, likewise.
        settings: everything else, the same for all cells.
        base_method: McNemar's test compares the others with it; the first of ``methods`` by default.
        labels: labels of ``data``, as for :func:`mrecg_onnx.validate`.
        limit: validate on at most so many images, spread evenly.
        outputs: names of the outputs to validate; all by default.
        latency_batch: images a timed run.
        metric: what files are worth beside top-1, as for :func:`mrecg_onnx.validate`. One that has a name (a ready one,
            ``"module:function"``) is asked in the cells' own processes, a function or an object in this one.
        repeats: timed runs of each file; 0 leaves latency out.
        force: write over files of these names in a folder that no comparison has made; otherwise they are an error.
        progress: called as the work proceeds.

    Returns:
        All cells; one that failed says why, and the others are not touched by it.

    Raises:
        SettingsError: a method or width does not exist, a list is empty, or the folder holds another comparison, foreign files,
            or what is read where something would be written.
        ModelError: the float model cannot be opened.
        DataError: the data cannot be read, or another call uses the folder.
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
    inputs = Inputs.make(
        model,
        calib,
        data,
        Path(output),
        settings,
        labels=labels,
        limit=limit,
        outputs=outputs,
        metric=metric_of(metric),
    )
    inputs.latency = {"batch": latency_batch, "repeats": repeats, "sittings": SITTINGS, "threads": settings.threads}
    base = base_method or chosen[0]
    pairs = [(method, width) for width in widths for method in chosen]
    writes = [*(path(*pair) for pair in pairs for path in (inputs.output, inputs.record)), *_tables(inputs)]
    reads = Reads.of({"model": model, "calib": calib, "data": data, "labels": labels, "settings": settings})
    reads.check_folder(output, "--output")
    for path in writes:
        reads.check(path, f"--output {output}:")
    if not force:
        inputs.require_own(writes)
    inputs.claim_folder()
    cells: list[Cell] = []
    with locked(inputs.cells, str(output)):
        inputs.claim_folder()  # of two that came at the same moment both may have made it
        inputs.settle()
        for number, (method, width) in enumerate(pairs, 1):
            tell = Tell(progress, f"{method} {width}", number, len(pairs))
            cells.append(run_cell(inputs, method, width, tell))
            _write_table(inputs, base, cells)
            tell(cells[-1])
        if repeats:
            cells = measure_latency(inputs, cells, progress)
        return _write_table(inputs, base, cells, plot=True)


def _methods(methods: str | Sequence[str], base_method: str | None) -> list[str]:
    chosen = list(dict.fromkeys([methods] if isinstance(methods, str) else methods))
    if not chosen:
        raise SettingsError.among("methods: none is given", METHODS)
    unknown = [name for name in [*chosen, *([base_method] if base_method else [])] if name not in METHODS]
    if unknown:
        raise SettingsError.among(f"method '{unknown[0]}' is unknown", METHODS, unknown[0])
    if base_method and base_method not in chosen:
        raise SettingsError(f"base method '{base_method}' is not among the methods compared: {', '.join(chosen)}")
    return chosen


def _widths(bits: str | Widths | Sequence[str | Widths]) -> list[Widths]:
    several = [bits] if isinstance(bits, str | Widths) else bits
    widths = list(dict.fromkeys(w if isinstance(w, Widths) else Widths.parse(w) for w in several))
    if not widths:
        raise SettingsError("bits: no widths are given; W4A4, for example")
    return widths


# --- putting the cells together -----------------------------------------------------------------------------------------


def _tables(inputs: Inputs) -> list[Path]:
    """The table's files, the plot last."""
    return [(inputs.folder / NAME).with_suffix(suffix) for suffix in (".md", ".csv", ".json", ".png")]


def _write_table(inputs: Inputs, base: str, cells: Sequence[Cell], *, plot: bool = False) -> Comparison:
    """Put the cells together and write them down.

    Raises:
        ExportError: the folder cannot be written.
    """
    fp32 = inputs.fp32 or {}
    warnings = [*fp32.get("warnings", []), *_of_cells(cells)]
    known = [cell.speedup * cell.latency_s for cell in cells if cell.speedup is not None and cell.latency_s is not None]
    *written, drawn = _tables(inputs)
    if plot and any(cell.error is None for cell in cells):
        if have_matplotlib():
            written.append(drawn)
        else:
            warnings.append("there is no plot: matplotlib is missing; pip install 'mrecg-onnx[plot]' and run again")
    found = Comparison(
        model=inputs.model,
        calib=told(inputs.calib),
        data=told(inputs.data),
        folder=inputs.folder,
        settings=inputs.settings,
        base_method=base,
        cells=tuple(_against_base(cell, base, cells) for cell in cells),
        images=fp32.get("images", 0),
        fp32_top1=Accuracy(**fp32["top1"]) if fp32.get("top1") else None,
        fp32_score=fp32.get("score"),
        metric=inputs.metric,
        fp32_size_bytes=size_bytes(inputs.model),
        fp32_latency_s=float(np.median(known)) if known else None,
        latency_batch=inputs.latency["batch"],
        warnings=tuple(map(with_arguments, warnings)),
        written=tuple(written),
        environment=environment(),
    )
    try:
        as_json = json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n"
        write_all_whole(dict(zip(written, (markdown(found), csv_text(found), as_json), strict=False)))
        if len(written) > 3:
            draw_cells(found, written[3])
    except OSError as error:
        raise ExportError(f"{inputs.folder}: the table cannot be written: {error.strerror or error}") from error
    return found


def _of_cells(cells: Sequence[Cell]) -> list[str]:
    """Warnings of the cells, each by its name; what all files have in common, as their images, is said once."""
    made = [cell for cell in cells if cell.error is None]
    shared = [
        text for text in (made[0].warnings if len(made) > 1 else ()) if all(text in cell.warnings for cell in made)
    ]
    own = [f"{cell.name}: {text}" for cell in cells for text in cell.warnings if text not in shared]
    return [*shared, *own]


def _against_base(cell: Cell, base: str, cells: Sequence[Cell]) -> Cell:
    """The cell with McNemar's p against the base method at its width."""
    other = next((c for c in cells if c.method == base and c.widths == cell.widths), None)
    if other is None or cell.method == base or cell.right is None or other.right is None:
        return cell
    if len(cell.right) != len(other.right):  # an image could be read once and not the other time
        return cell
    return dataclasses.replace(cell, base_p=mcnemar_p(cell.right, other.right))


def environment() -> dict[str, str]:
    """Versions of what a result depends on, and the kind of machine."""
    found = {"mrecg-onnx": __version__, "Python": platform.python_version()}
    for name in ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"machine": f"{platform.system()} {platform.machine()}"}
