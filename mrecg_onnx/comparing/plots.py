"""Plots: dots with their intervals, a panel for every width or batch. They need the extra ``plot``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mrecg_onnx.converters.files import writing_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mrecg_onnx.comparing.result import Cell, Comparison
    from mrecg_onnx.validating import Benchmark

__all__ = ["draw_cells", "draw_timings", "have_matplotlib"]

_DOT, _FP32, _FAILED = "#1f6fb4", "#555555", "#b03030"


def have_matplotlib() -> bool:
    """Whether :func:`draw_cells` can work."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_cells(comparison: Comparison, path: Path) -> None:
    """Write the plot to ``path`` (PNG), whole or not at all: top-1, or agreement with the float model without labels.

    Raises:
        OSError: it cannot be written.
    """
    methods = list(dict.fromkeys(cell.method for cell in comparison.cells))
    widths = list(dict.fromkeys(cell.widths for cell in comparison.cells))
    figure, axes = _panels(len(widths), len(methods))
    for axis, width in zip(axes, widths, strict=True):
        _draw_panel(axis, {c.method: c for c in comparison.cells if c.widths == width}, methods)
        axis.set_title(str(width))
        if comparison.fp32_top1 is not None:
            axis.axvline(100 * comparison.fp32_top1.value, color=_FP32, linestyle="--", linewidth=1, zorder=1)
    kind = "top-1, %" if comparison.fp32_top1 is not None else "predictions that agree with FP32, %"
    figure.supxlabel(kind, fontsize=10)
    against = f", dashed: FP32 {100 * comparison.fp32_top1.value:.1f}" if comparison.fp32_top1 is not None else ""
    figure.suptitle(comparison.model.stem + against, fontsize=11, parse_math=False)
    _save(figure, path)


def draw_timings(found: Benchmark, path: Path) -> None:
    """Write the plot to ``path`` (PNG), whole or not at all: latency of every file with its 10th and 90th percentiles.

    Raises:
        OSError: it cannot be written.
    """
    names = [file.name for file in found.files]
    places = list(dict.fromkeys((one.provider, one.threads, one.batch) for one in found.timings))
    figure, axes = _panels(len(places), len(names))
    for axis, (provider, threads, batch) in zip(axes, places, strict=True):
        here = {
            one.file: one
            for one in found.timings
            if (one.provider, one.threads, one.batch) == (provider, threads, batch)
        }
        for row, name in enumerate(names):
            one = here[name]
            axis.plot([1e3 * one.low_s, 1e3 * one.high_s], [row, row], color=_DOT, linewidth=2, alpha=0.45)
            axis.plot([1e3 * one.median_s], [row], "o", color=_DOT, markersize=6)
            _note(axis, f"{1e3 * one.median_s:.3g} ({one.speedup:.2f}x)", 1e3 * one.median_s, row)
        axis.set_xlim(left=0)
        _finish(axis, [Path(name).stem for name in names])
        own = "own threads" if threads is None else f"{threads} threads"
        axis.set_title(f"{provider}, {own}, batch {batch}", fontsize=9)
    figure.supxlabel("latency, ms (against the first file)", fontsize=10)
    _save(figure, path)


def _panels(columns: int, lines: int) -> tuple[Figure, list[Axes]]:
    """A figure of its own, not pyplot's: the caller's figures and backend stay as they are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(1.6 + 3.2 * columns, 1.7 + 0.42 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, sharey=True, squeeze=False)[0])


def _save(figure: Figure, path: Path) -> None:
    with writing_whole(path) as temporary:
        figure.savefig(temporary, dpi=140, format="png")


def _note(axis: Axes, text: str, x: float, row: int) -> None:
    axis.annotate(text, (x, row), (0, 6), textcoords="offset points", ha="center", fontsize=8.5)


def _draw_panel(axis: Axes, cells: dict[str, Cell], methods: list[str]) -> None:
    for row, method in enumerate(methods):
        cell = cells[method]
        value = cell.top1.value if cell.top1 is not None else cell.agreement
        if value is None:
            text = "failed" if cell.error is not None else "no figure"
            axis.annotate(
                text,
                (0.5, row),
                xycoords=("axes fraction", "data"),
                ha="center",
                va="center",
                fontsize=9,
                color=_FAILED,
            )
            continue
        if cell.top1 is not None:
            axis.plot([100 * cell.top1.low, 100 * cell.top1.high], [row, row], color=_DOT, linewidth=2, alpha=0.45)
        axis.plot([100 * value], [row], "o", color=_DOT, markersize=6)
        _note(axis, f"{100 * value:.1f}", 100 * value, row)
    _finish(axis, methods)


def _finish(axis: Axes, names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.set_ylim(len(names) - 0.5, -0.6)
    axis.margins(x=0.14)
    axis.grid(visible=True, axis="x", alpha=0.25)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
