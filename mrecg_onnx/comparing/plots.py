"""Plots: dots with their intervals, a panel for every width or batch, all on one scale. They need the extra ``plot``.

Figures stand in a column of their own beside each panel, where no line crosses them. What a busy machine does to single runs does
not stretch the axis: an interval that goes far beyond all medians ends in an arrow at its edge.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mrecg_onnx.converters.files import followed, writing_whole
from mrecg_onnx.machine import milliseconds
from mrecg_onnx.running import speedup_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mrecg_onnx.comparing.result import Cell, Comparison
    from mrecg_onnx.validating import Benchmark

__all__ = ["cells_figure", "draw_cells", "draw_timings", "have_matplotlib", "timings_figure"]

_DOT, _FP32, _FAILED, _SOFT = "#2f5fc4", "#5b6472", "#b3372f", "#5b6472"
#: Panels beside each other; further ones come below.
_ABREAST = 4
#: The axis of times ends at the largest median times this, and is logarithmic where medians differ by more than that.
_BEYOND, _SPREAD = 1.3, 25.0


def have_matplotlib() -> bool:
    """Whether :func:`draw_cells` can work."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_cells(comparison: Comparison, path: Path) -> None:
    """Write the plot to ``path`` (PNG), whole or not at all: top-1, or agreement with the float model without labels.

    Raises:
        OSError: it cannot be written.
    """
    _save(cells_figure(comparison), path)


def cells_figure(comparison: Comparison) -> Figure:
    """The plot of :func:`draw_cells`."""
    methods = list(dict.fromkeys(cell.method for cell in comparison.cells))
    widths = list(dict.fromkeys(cell.widths for cell in comparison.cells))
    fp32, form = comparison.fp32_drawn, ".1f" if comparison.drawn_as.endswith("%") else ".4g"
    drawn = [found for cell in comparison.cells if (found := comparison.drawn(cell)) is not None]
    ends = [x for _, *both in drawn for x in both] + ([fp32] if fp32 is not None else [])
    figure, axes = _panels(len(widths), len(methods))
    for axis, width in zip(axes, widths, strict=True):
        rows = []
        for method in methods:
            cell = next((c for c in comparison.cells if c.widths == width and c.method == method), None)
            rows.append(_cell_row(comparison, cell, form))
        if fp32 is not None:
            axis.axvline(fp32, color=_FP32, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        _finish(axis, methods, rows, str(width))
        if ends:
            spread = max(ends) - min(ends)
            if form == ".1f":
                room = 0.06 * max(spread, 1.0)
                axis.set_xlim(max(min(ends) - room, -1.5), min(max(ends) + room, 101.5))
            else:
                room = 0.06 * (spread or abs(ends[0]) or 1.0)
                axis.set_xlim(min(ends) - room, max(ends) + room)
    figure.supxlabel(comparison.drawn_as, fontsize=9.5, color=_SOFT, parse_math=False)
    against = f", dashed: FP32 {fp32:{form}}" if fp32 is not None else ""
    figure.suptitle(comparison.model.stem + against, fontsize=11, parse_math=False)
    return figure


def _cell_row(comparison: Comparison, cell: Cell | None, form: str) -> _Row:
    drawn = None if cell is None else comparison.drawn(cell)
    if drawn is None:
        return _Row(None, None, None, "failed" if cell is not None and cell.error is not None else "no figure")
    return _Row(*drawn, f"{drawn[0]:{form}}")


def draw_timings(found: Benchmark, path: Path) -> None:
    """Write the plot to ``path`` (PNG), whole or not at all: latency of every file with its 10th and 90th percentiles.

    Raises:
        OSError: it cannot be written.
    """
    _save(timings_figure(found), path)


def timings_figure(found: Benchmark) -> Figure:
    """The plot of :func:`draw_timings`."""
    names = [file.name for file in found.files]
    places = list(dict.fromkeys((one.provider, one.threads, one.batch) for one in found.timings))
    medians = [1e3 * one.median_s for one in found.timings]
    logarithmic = max(medians) > _SPREAD * min(medians)
    figure, axes = _panels(len(places), len(names))
    for axis, (provider, threads, batch) in zip(axes, places, strict=True):
        here = {
            one.file: one
            for one in found.timings
            if (one.provider, one.threads, one.batch) == (provider, threads, batch)
        }
        rows = [
            _Row(
                1e3 * one.median_s,
                1e3 * one.low_s,
                1e3 * one.high_s,
                f"{milliseconds(one.median_s)}  ({speedup_text(one.speedup, one.speedup_interval)})",
            )
            for one in (here[name] for name in names)
        ]
        if logarithmic:
            axis.set_xscale("log")
            axis.set_xlim(min(medians) / _BEYOND, max(medians) * _BEYOND)
        else:
            axis.set_xlim(0, max(medians) * _BEYOND)
        own = "own threads" if threads is None else f"{threads} thread{'s' if threads > 1 else ''}"
        _finish(axis, _stems(names), rows, f"{provider}, {own}, batch {batch}")
    figure.supxlabel("latency, ms (speed against the first file)", fontsize=9.5, color=_SOFT)
    return figure


def _stems(names: list[str]) -> list[str]:
    """Names of files without folders, those of the same name with them."""
    stems = [Path(name).stem for name in names]
    return [stem if stems.count(stem) == 1 else name for stem, name in zip(stems, names, strict=True)]


@dataclass(frozen=True)
class _Row:
    """A dot with its interval, None where there is none, and what is written beside it."""

    value: float | None
    low: float | None
    high: float | None
    text: str


def _panels(count: int, lines: int) -> tuple[Figure, list[Axes]]:
    """A figure of its own, not pyplot's: the caller's figures and backend stay as they are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    columns = min(count, _ABREAST)
    tiers = -(-count // columns)
    figure = Figure(figsize=(1.8 + 3.3 * columns, 0.7 + tiers * (0.85 + 0.34 * lines)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(tiers, columns, sharex=True, sharey=True, squeeze=False)
    panels = [axis for row in grid for axis in row]
    for axis in panels[count:]:
        axis.remove()
    for axis in panels[:count]:
        axis.xaxis.set_tick_params(labelbottom=True)
    return figure, panels[:count]


def _save(figure: Figure, path: Path) -> None:
    with writing_whole(followed(path)) as temporary:
        figure.savefig(temporary, dpi=140, format="png")


def _finish(axis: Axes, names: list[str], rows: list[_Row], title: str) -> None:
    """Draw the rows, their names on the left and what is written of them on the right."""
    for place, row in enumerate(rows):
        failed = row.value is None
        axis.annotate(
            row.text,
            (1.03, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            color=_FAILED if failed else "#1b1f27",
            annotation_clip=False,
        )
        if row.value is None or row.low is None or row.high is None:
            continue
        axis.plot([row.low, row.high], [place, place], color=_DOT, linewidth=3.5, alpha=0.3, solid_capstyle="butt")
        axis.plot([row.value], [place], "o", color=_DOT, markersize=5.5, zorder=3)
    axis.set_yticks(range(len(names)), names, parse_math=False)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=True, axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(labelsize=8.5)
    axis.set_title(title, fontsize=9.5, loc="left")
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    right = axis.get_xlim()[1]
    for place, row in enumerate(rows):
        if row.high is not None and axis.get_autoscalex_on() is False and row.high > right:
            axis.plot([right], [place], ">", color=_DOT, markersize=5, alpha=0.6, clip_on=False)
