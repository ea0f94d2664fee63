"""What a comparison found: a cell for each method at each width, and the whole."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.results import Pictured
from mrecg_onnx.converters.text import counted
from mrecg_onnx.machine import byte_size, points

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mrecg_onnx.measures import Metric
    from mrecg_onnx.settings import Settings
    from mrecg_onnx.validating import Accuracy

__all__ = ["OWN", "Cell", "Comparison", "Widths"]

_WIDTHS = re.compile(r"^W(\d+)A(\d+)$", re.IGNORECASE)
OWN = frozenset({"method", "wbits", "abits"})
"""Settings that each cell has for itself."""


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
        score: by the metric that was asked for; None without one.
        score_drop: how much worse than the float model that is, in the metric's own unit.
        fp32_p: McNemar's exact p for "as accurate as the float model".
        base_p: the same for "as accurate as the base method at the same width"; None for the base itself, without labels,
            and where the base failed.
        agreement: share of images with the float model's prediction.
        sqnr_db: signal-to-quantization-noise ratio of the worst output in dB; None where it is infinite.
        sqnr_by_output: the same of every float output.
        equal_by_output: share of equal values of every other output.
        latency_s: median seconds of a run; None where none was asked for.
        speedup: the float model's latency, measured in turn with it, over the cell's.
        speedup_interval: between what that lies with 95 %, by sittings.
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
    score: float | None = None
    score_drop: float | None = None
    fp32_p: float | None = None
    base_p: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    sqnr_by_output: dict[str, float | None] = field(default_factory=dict)
    equal_by_output: dict[str, float] = field(default_factory=dict)
    latency_s: float | None = None
    speedup: float | None = None
    speedup_interval: tuple[float, float] | None = None
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
            "speedup_interval": self.speedup_interval and list(self.speedup_interval),
        }


@dataclass(frozen=True, repr=False)
class Comparison(Pictured):
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
        fp32_score: the float model's worth by the metric; None without one.
        metric: the metric that was asked for; None without one.
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
    fp32_score: float | None = None
    metric: Metric | None = None

    def __str__(self) -> str:
        """A line for the float model and one for each cell, and warnings."""
        fp32 = [f"top-1 {self.fp32_top1}"] if self.fp32_top1 else []
        if self.metric is not None and self.fp32_score is not None:
            fp32.append(f"{self.metric.name} {self.metric.text(self.fp32_score, self.scores)}")
        lines = [
            f"{self.model.name}: {counted(len(self.cells), 'cell')} on {counted(self.images, 'image')}, in {self.folder}",
            f"FP32: {', '.join([*fp32, byte_size(self.fp32_size_bytes)])}",
        ]
        for cell in self.cells:
            said = [f"failed: {cell.error}"] if cell.error is not None else []
            if cell.top1 is not None:
                said.append(f"top-1 {cell.top1}")
            if cell.drop is not None:
                said.append(points(-cell.drop))
            if self.metric is not None and cell.score is not None:
                said.append(f"{self.metric.name} {self.metric.text(cell.score, self.scores)}")
            if cell.agreement is not None:
                said.append(f"agreement {cell.agreement:.2%}")
            if cell.size_bytes is not None:
                said.append(byte_size(cell.size_bytes))
            lines.append(f"{cell.name}: {', '.join(said)}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    @property
    def scores(self) -> tuple[float, ...]:
        """What the float model and the cells are worth by the metric, as far as it is known."""
        return tuple(x for x in (self.fp32_score, *(cell.score for cell in self.cells)) if x is not None)

    @property
    def failed(self) -> tuple[Cell, ...]:
        """Cells that have no result."""
        return tuple(cell for cell in self.cells if cell.error is not None)

    @property
    def drawn_as(self) -> str:
        """What plots show, with its unit: the metric, top-1, or without labels agreement."""
        if self.metric is not None:
            return f"{self.metric.name}, %" if self.metric.percent else self.metric.name
        return "top-1, %" if self.fp32_top1 is not None else "predictions that agree with FP32, %"

    @property
    def fp32_drawn(self) -> float | None:
        """The float model's value in plots."""
        if self.metric is not None:
            return None if self.fp32_score is None else self.fp32_score * (100 if self.metric.percent else 1)
        return None if self.fp32_top1 is None else 100 * self.fp32_top1.value

    def drawn(self, cell: Cell) -> tuple[float, float, float] | None:
        """A cell's value in plots with the ends of its interval; None where it has none."""
        if self.metric is not None:
            if cell.score is None:
                return None
            value = cell.score * (100 if self.metric.percent else 1)
            return value, value, value
        if cell.top1 is not None:
            return 100 * cell.top1.value, 100 * cell.top1.low, 100 * cell.top1.high
        return None if cell.agreement is None else (100 * cell.agreement,) * 3

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
                **({"score": self.fp32_score} if self.metric is not None else {}),
            },
            **({"metric": self.metric.to_json()} if self.metric is not None else {}),
            "latency_batch": self.latency_batch,
            "cells": [cell.to_json() for cell in self.cells],
            "warnings": list(self.warnings),
            "settings": {k: v for k, v in self.settings.to_json().items() if k not in OWN},
            "environment": self.environment,
        }
