"""Opening a file with the runtime that its target is meant for, where that is installed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from mrecg_onnx.converters.errors import ExportError
from mrecg_onnx.converters.files import temporary_folder
from mrecg_onnx.converters.save import save_model
from mrecg_onnx.measures import Heads, likeness
from mrecg_onnx.running.attempts import reason
from mrecg_onnx.running.batches import pad_batch, run_padded
from mrecg_onnx.running.catalogue import RUNTIMES, Runtime, installed
from mrecg_onnx.running.fresh_process import noise
from mrecg_onnx.running.models import specs_of
from mrecg_onnx.running.openers import OPENERS, Session
from mrecg_onnx.running.sessions import open_session
from mrecg_onnx.targets import Target

__all__ = ["MIN_AGREEMENT", "Opened", "open_with"]

#: Share of equal predictions, target's runtime against the graph run as written, below which a warning is due: integer kernels
#: requantize once, single steps differ.
MIN_AGREEMENT = 0.95

Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Opened:
    """What the target's runtime made of a file.

    Attributes:
        runtime: its name and version, or why it did not open the file.
        kernels: layers by type and precision, as the runtime says; empty where it was not opened.
        agreement: share of equal predictions with the graph run as written on ONNX Runtime; None without data or class scores
            (:mod:`mrecg_onnx.measures.predictions`).
        sqnr_by_output: SQNR in dB of every float output against that graph, the worst first; empty without data.
        outputs: what the runtime gave, by name; empty without data.
    """

    runtime: str
    kernels: dict[str, int]
    agreement: float | None = None
    sqnr_by_output: dict[str, float] = field(default_factory=dict)
    outputs: Arrays = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """A plain dict without what the runtime gave."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "outputs"}

    def line(self) -> str:
        """One line for people."""
        same = f", {self.agreement:.2%} of the predictions agree" if self.agreement is not None else ""
        same += "".join(f", {name} {value:.1f} dB" for name, value in list(self.sqnr_by_output.items())[:1])
        ran = ", ".join(f"{name} {count}" for name, count in self.kernels.items())
        return f"{self.runtime}{same}" + (f": {ran}" if ran else "")


def open_with(
    target: Target, model: onnx.ModelProto, data: Arrays | None, *, written: onnx.ModelProto | None = None
) -> Opened:
    """Open ``model`` with the runtime of ``target`` at its default level and run it on ``data`` (arrays [N, ...] by name).

    ``written`` is what ONNX Runtime runs in its place, where it does not run ``model``.

    Raises:
        ExportError: the runtime refuses the file.
    """
    row = RUNTIMES.get(target.runtime)
    if row is None:
        return Opened("not opened: nothing here runs this target; its rules were checked", {})
    if not installed(row.name):
        return Opened(f"not opened: {row.title} is not installed ({row.install})", {})
    specs = specs_of(model)
    size = next((spec.shape[0] for spec in specs if spec.shape[0] is not None), None)
    feeds = data
    if data is None:  # what kernels run is known after a run; without sizes the file is only opened
        free = any(n is None for spec in specs for n in spec.shape[1:])
        feeds = {} if free else noise(specs, size or 1)
    with temporary_folder() as folder:
        path, made = folder / "model.onnx", folder / "made"
        save_model(model, path)
        made.mkdir()
        try:
            session, found = _run(row, path, model, feeds, size, made)
            kernels = session.kernels()
        except Exception as error:  # runtimes raise what they like
            raise ExportError(f"{row.title} refuses the file: {reason(str(error)) or type(error).__name__}") from error
    compared = _compared(written or model, data, found) if data is not None else (None, {}, {})
    return Opened(f"{row.title} {session.version}", kernels, *compared)


def _run(
    row: Runtime, path: Path, model: onnx.ModelProto, feeds: Arrays | None, size: int | None, made_in: Path
) -> tuple[Session, dict[str, npt.NDArray[Any]]]:
    """Open and run in this process, piece by piece where the batch is fixed."""
    names = [output.name for output in model.graph.output]
    if not feeds:
        return OPENERS[row.opener](str(path), {}, names, None, row.options, made_in), {}
    rows = len(next(iter(feeds.values())))
    size = size or rows
    pieces = [
        {name: pad_batch(x[start : start + size], size) for name, x in feeds.items()} for start in range(0, rows, size)
    ]
    session = OPENERS[row.opener](str(path), pieces[0], names, None, row.options, made_in)
    made = [session.run(piece) for piece in pieces]
    return session, {name: np.concatenate([one[i] for one in made])[:rows] for i, name in enumerate(names)}


def _compared(model: onnx.ModelProto, data: Arrays, found: Arrays) -> tuple[float | None, dict[str, float], Arrays]:
    """Agreement and SQNR with the graph run as written on ONNX Runtime, and the outputs."""
    written = run_padded(open_session(model, level="off"), data)
    return *likeness(written, found, Heads.of_model(model)), found
