"""The plot of a comparison: a dot with its interval for every cell, a panel for every width. Needs the extra ``plot``."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mrecg_onnx.comparison import Cell, Comparison

__all__ = ["draw_cells", "have_matplotlib"]

_DOT, _FP32, _FAILED = "#1f6fb4", "#555555", "#b03030"


def have_matplotlib() -> bool:
    """Whether :func:`draw_cells` can work."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_cells(comparison: Comparison, path: Path) -> None:
    """Write the plot to ``path`` (PNG), whole or not at all: top-1, or agreement with the float model without labels.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    methods = list(dict.fromkeys(cell.method for cell in comparison.cells))
    widths = list(dict.fromkeys(cell.widths for cell in comparison.cells))
    # A figure of its own, not pyplot's: the caller's figures and backend stay as they are.
    figure = Figure(figsize=(1.6 + 3.2 * len(widths), 1.7 + 0.42 * len(methods)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
    for axis, width in zip(axes, widths, strict=True):
        _draw_panel(axis, {c.method: c for c in comparison.cells if c.widths == width}, methods)
        axis.set_title(str(width))
        if comparison.fp32_top1 is not None:
            axis.axvline(100 * comparison.fp32_top1.value, color=_FP32, linestyle="--", linewidth=1, zorder=1)
    kind = "top-1, %" if comparison.fp32_top1 is not None else "predictions that agree with FP32, %"
    figure.supxlabel(kind, fontsize=10)
    against = f", dashed: FP32 {100 * comparison.fp32_top1.value:.1f}" if comparison.fp32_top1 is not None else ""
    figure.suptitle(comparison.model.stem + against, fontsize=11)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        figure.savefig(temporary, dpi=140)
        temporary.replace(path)


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
        axis.annotate(
            f"{100 * value:.1f}", (100 * value, row), (0, 6), textcoords="offset points", ha="center", fontsize=8.5
        )
    axis.set_yticks(range(len(methods)), methods)
    axis.set_ylim(len(methods) - 0.5, -0.6)
    axis.margins(x=0.14)
    axis.grid(visible=True, axis="x", alpha=0.25)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
