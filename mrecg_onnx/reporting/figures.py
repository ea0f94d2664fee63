"""Drawings of a page: matplotlib's SVG, whose colours and letters are those of the page.

Colours are written as ones that nobody would choose and then exchanged for the page's own variables, so that a drawing follows
light and dark; text stays text. Each is drawn twice, for a wide page and for a phone.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from typing import TYPE_CHECKING, Any

from mrecg_onnx.reporting.content import Figure, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

    from mrecg_onnx.reporting.measuring import Histogram

__all__ = ["draw_curve", "draw_dots", "draw_graph", "draw_histogram", "draw_profile"]

#: The page's colours under the values that drawings are made with.
COLOURS = {
    "ink": "#010203",
    "soft": "#040506",
    "line": "#070809",
    "accent": "#0a0b0c",
    "second": "#0d0e0f",
    "bad": "#131415",
}
#: Inches of a drawing: on a page and on a phone.
WIDE, NARROW, SMALL = (9.6, 3.3), (4.1, 3.1), (3.3, 1.75)
#: Marks of a line that can be pointed at.
MOST_MARKS = 150
#: Share of a histogram's height that a bar of what is cut off has at least.
LEAST_BAR = 0.06


def _drawn(size: tuple[float, float], draw: Callable[[Axes, bool], Any], titles: dict[str, str]) -> str:
    """One SVG of what ``draw`` puts on its axes; ``titles`` are shown for the marks of those names."""
    from matplotlib import rc_context  # noqa: PLC0415 - an extra
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure as Plain  # noqa: PLC0415

    look = {
        "svg.fonttype": "none", "svg.hashsalt": "mrecg-onnx", "font.size": 9, "axes.edgecolor": COLOURS["line"],
        "axes.labelcolor": COLOURS["soft"], "xtick.color": COLOURS["line"], "ytick.color": COLOURS["line"],
        "xtick.labelcolor": COLOURS["soft"], "ytick.labelcolor": COLOURS["soft"], "text.color": COLOURS["ink"],
        "grid.color": COLOURS["line"], "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
        "grid.linewidth": 0.6, "legend.frameon": False, "axes.formatter.use_mathtext": False,
    }  # fmt: skip
    with rc_context(look):
        figure: Drawing = Plain(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes, size[0] <= NARROW[0])
        held = io.StringIO()
        figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _own(held.getvalue(), titles)


def _own(svg: str, titles: dict[str, str]) -> str:
    """The drawing as an element of the page: its names no other drawing's, its colours the page's."""
    from markupsafe import escape  # noqa: PLC0415 - comes with jinja2, an extra

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    for name, text in titles.items():
        svg = svg.replace(f'<g id="{name}">', f'<g id="{name}"><title>{escape(text)}</title>', 1)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    prefix = f"d{hashlib.sha256(svg.encode()).hexdigest()[:10]}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1)


def _both(
    draw: Callable[[Axes, bool], Any], titles: dict[str, str] | None = None, height: float | None = None
) -> tuple[str, ...]:
    return tuple(_drawn((size[0], height or size[1]), draw, titles or {}) for size in (WIDE, NARROW))


def _number_ticks(axes: Axes, count: int, narrow: bool) -> None:
    """Whole numbers from 1, no more than fit."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**6) if count / s <= (9 if narrow else 24))
    axes.set_xticks([1, *(n for n in range(step, count + 1, step) if n > 1 and (n - 1 >= step / 2))])
    axes.set_xlim(0.4, count + 0.6)


def draw_curve(
    before: Sequence[float],
    after: Sequence[tuple[int, int, float]],
    labels: tuple[str, str],
    names: Sequence[str],
) -> Figure:
    """The losses of units before and after they were learned, on a logarithmic scale, joined units in brackets.

    Args:
        before: by base unit.
        after: first and last base unit (from 0) and loss of each unit that was learned.
        labels: what both are called.
        names: of the base units, for whoever points at them.
    """
    floor = min((x for x in (*before, *(a[2] for a in after)) if x > 0), default=1e-12)
    titles = {
        f"b{i}": f"{i + 1} {shown(name, 120)}: {before[i]:.4g}" for i, name in enumerate(names) if i < len(before)
    }
    for number, (first, last, loss) in enumerate(after):
        of = f"{first + 1}" if first == last else f"{first + 1} to {last + 1}"
        titles[f"a{number}"] = f"{of} {shown(names[first], 100) if first < len(names) else ''}: {loss:.4g}"

    def draw(axes: Axes, narrow: bool) -> None:
        count = len(names)
        axes.set_yscale("log")
        axes.grid(visible=True, axis="y", alpha=0.55)
        axes.set_axisbelow(True)
        if before:
            axes.plot(
                range(1, len(before) + 1),
                [max(x, floor) for x in before],
                color=COLOURS["second"],
                linewidth=1.2,
                alpha=0.9,
            )
        _marks(axes, [(i + 1, max(loss, floor)) for i, loss in enumerate(before)], "second", 4, "b")
        middle = [((first + last) / 2 + 1, max(loss, floor)) for first, last, loss in after]
        axes.plot([x for x, _ in middle], [y for _, y in middle], color=COLOURS["accent"], linewidth=1.7)
        for (first, last, _), (_x, y) in zip(after, middle, strict=True):
            if first != last:
                axes.plot(
                    [first + 1, last + 1],
                    [y, y],
                    color=COLOURS["accent"],
                    linewidth=5,
                    alpha=0.28,
                    solid_capstyle="round",
                )
        _marks(axes, middle, "accent", 5.5, "a")
        low, high = axes.get_ylim()
        axes.set_ylim(low / (high / low) ** 0.13, high * (high / low) ** 0.12)
        foot, rise = axes.get_ylim()[0], (axes.get_ylim()[1] / axes.get_ylim()[0]) ** 0.035
        for first, last, _ in after:
            if first != last:
                ends = [first + 0.75, first + 0.75, last + 1.25, last + 1.25]
                axes.plot(
                    ends,
                    [foot * rise**2, foot * rise, foot * rise, foot * rise**2],
                    color=COLOURS["ink"],
                    linewidth=1.3,
                )
        if high < 10 * low:  # less than a decade: its ticks lie close, and are read as plain numbers
            for place in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                place(lambda value, _: f"{value:.3g}")
        _number_ticks(axes, count, narrow)
        axes.set_xlabel("unit, from input to output")
        axes.set_ylabel("loss")
        handles = [
            axes.plot([], [], "o-", color=COLOURS[c], markersize=4.5)[0]
            for c in (["second"] if before else []) + ["accent"]
        ]
        _legend(axes, handles, [*(labels[:1] if before else []), labels[1]], narrow)

    return Figure(_both(draw, titles))


def draw_graph(units: Sequence[tuple[int, int, str]], edges: Sequence[tuple[int, int]]) -> Figure:
    """Units from left to right, joined ones as one long mark; what a unit reads from further ahead comes over an arc.

    Args:
        units: first and last base unit (from 0) of each, and what is said of it.
        edges: pairs of places in ``units``, from the one that makes a tensor to one that reads it.
    """
    places = [(first + last) / 2 + 1 for first, last, _ in units]
    titles = {
        f"u{i}": f"{first + 1 if first == last else f'{first + 1} to {last + 1}'} {shown(text, 120)}"
        for i, (first, last, text) in enumerate(units)
    }
    farthest = max((places[b] - places[a] for a, b in edges), default=1.0)

    def draw(axes: Axes, narrow: bool) -> None:
        from matplotlib.patches import PathPatch  # noqa: PLC0415 - an extra
        from matplotlib.path import Path as Line  # noqa: PLC0415

        for a, b in edges:
            if b - a == 1:
                axes.plot([places[a], places[b]], [0, 0], color=COLOURS["soft"], linewidth=1.2, zorder=1)
                continue
            left, right = places[a], places[b]
            # The middle of such a curve is three quarters as high as the points that it bends to.
            top = (right - left) / farthest / 0.75
            bend = Line([(left, 0), (left, top), (right, top), (right, 0)], [Line.MOVETO, *[Line.CURVE4] * 3])
            axes.add_patch(PathPatch(bend, fill=False, edgecolor=COLOURS["second"], linewidth=1.3, alpha=0.9))
        width = 7.0 if len(units) <= (20 if narrow else 60) else 3.5
        for i, (first, last, _) in enumerate(units):
            colour = "accent" if last > first else "ink"
            axes.plot(
                [first + 1, last + 1],
                [0, 0],
                color=COLOURS[colour],
                linewidth=width,
                solid_capstyle="round",
                gid=f"u{i}",
                zorder=2,
            )
        axes.set_ylim(-0.12, 1.12)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        _number_ticks(axes, units[-1][1] + 1, narrow)
        axes.set_xlabel("unit, from input to output")

    said = "Arcs: what a unit reads from further ahead than the unit in front of it. Long marks: joined units."
    return Figure(_both(draw, titles, height=2.0), said)


def draw_profile(rows: Sequence[tuple[str, float | None, float | None]], labels: tuple[str, str]) -> Figure:
    """Two ratios in dB from layer to layer: name, that of the output, that of the weights."""

    def points(column: int) -> list[tuple[int, float]]:
        # Weights without any error are those of layers in float: no dot is for them.
        found = [(i + 1, row[column]) for i, row in enumerate(rows) if column == 1 or row[column] != math.inf]
        return [(x, min(float(y), 90.0)) for x, y in found if y is not None and not math.isnan(y) and y > -math.inf]  # type: ignore[arg-type, type-var, operator]

    titles = {f"o{place}": f"{x} {shown(rows[x - 1][0], 120)}: {y:.1f} dB" for place, (x, y) in enumerate(points(1))}

    def draw(axes: Axes, narrow: bool) -> None:
        axes.grid(visible=True, axis="y", alpha=0.55)
        axes.set_axisbelow(True)
        outputs, weights = points(1), points(2)
        axes.plot(*_split(outputs), color=COLOURS["accent"], linewidth=1.7)
        _marks(axes, outputs, "accent", 4 if len(rows) < 40 else 3, "o")
        # Rings in front of the dots: where both agree both are seen.
        ring: dict[str, Any] = {
            "markerfacecolor": "none",
            "markeredgewidth": 1.4,
            "markersize": 7.5 if len(rows) < 40 else 5,
        }
        axes.plot(*_split(weights), "o", color=COLOURS["second"], zorder=3, label=labels[1], **ring)
        axes.plot([], [], "o-", color=COLOURS["accent"], markersize=4, label=labels[0])
        _number_ticks(axes, len(rows), narrow)
        axes.set_ylim(bottom=min(0.0, *(y for _, y in outputs), 0.0))
        axes.set_xlabel("layer, from input to output")
        axes.set_ylabel("SQNR, dB")
        handles, said = axes.get_legend_handles_labels()
        _legend(axes, handles[::-1], said[::-1], narrow)

    return Figure(_both(draw, titles))


def _split(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _marks(axes: Axes, points: Sequence[tuple[float, float]], colour: str, size: float, name: str) -> None:
    """Dots, each a mark of its own that can be pointed at; none where there are too many, a line does without."""
    if len(points) > MOST_MARKS:
        return
    for place, (x, y) in enumerate(points):
        axes.plot([x], [y], "o", color=COLOURS[colour], markersize=size, gid=f"{name}{place}")


def _legend(axes: Axes, handles: Sequence[Any], said: Sequence[str], narrow: bool) -> None:
    """Above the axes, where no line runs."""
    axes.legend(
        handles,
        said,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=1 if narrow else 2,
        borderaxespad=0.2,
        handlelength=1.6,
    )


def draw_histogram(found: Histogram) -> Figure:
    """How often values occur (the root of it, so that tails show), the grid, and what is cut off, red however little it is."""

    def draw(axes: Axes, narrow: bool) -> None:  # noqa: ARG001
        height = [math.sqrt(c) for c in found.counts]
        top = max(height, default=1.0) or 1.0
        axes.stairs(height, found.edges, fill=True, color=COLOURS["accent"], alpha=0.85)
        red = [max(math.sqrt(c), LEAST_BAR * top) if c > 0 else 0.0 for c in found.cut]
        axes.stairs(red, found.edges, fill=True, color=COLOURS["bad"])
        if len(found.grid) <= 40:
            axes.vlines(found.grid, -0.16 * top, -0.05 * top, color=COLOURS["soft"], linewidth=0.9)
        else:
            axes.fill_between(
                [found.grid[0], found.grid[-1]],
                -0.16 * top,
                -0.05 * top,
                color=COLOURS["soft"],
                alpha=0.55,
                linewidth=0,
            )
        for end, share in ((found.low, found.below), (found.high, found.above)):
            if share > 0:
                axes.axvline(end, color=COLOURS["bad"], linewidth=1, linestyle=(0, (3, 2)))
        for text, beyond, at, side in (
            (f"\u2190 to {found.least:.3g}", found.least < found.edges[0], 0.0, "left"),
            (f"to {found.most:.3g} \u2192", found.most > found.edges[-1], 1.0, "right"),
        ):
            if beyond:
                axes.text(at, 0.5, text, color=COLOURS["bad"], fontsize=8, ha=side, transform=axes.transAxes)
        axes.set_ylim(-0.2 * top, 1.04 * top)
        axes.set_xlim(found.edges[0], found.edges[-1])
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel(found.unit, fontsize=8, parse_math=False)
        axes.tick_params(labelsize=8)

    return Figure((_drawn(SMALL, draw, {}),), found.caption, found.title, small=True)


def draw_dots(
    panels: Sequence[tuple[str, Sequence[tuple[str, float | None, float, float]]]], reference: float | None, label: str
) -> Figure:
    """Values with their intervals: a panel a heading, a row a name, all on one scale."""
    rows = [(heading, row) for heading, content in panels for row in content]

    def draw(axes: Axes, narrow: bool) -> None:
        axes.grid(visible=True, axis="x", alpha=0.55)
        axes.set_axisbelow(True)
        if reference is not None:
            axes.axvline(reference, color=COLOURS["soft"], linestyle=(0, (4, 3)), linewidth=1)
        for place, (_, (_name, value, low, high)) in enumerate(rows):
            if value is None:
                continue
            axes.plot(
                [low, high], [place, place], color=COLOURS["accent"], linewidth=4, alpha=0.3, solid_capstyle="round"
            )
            axes.plot([value], [place], "o", color=COLOURS["accent"], markersize=6)
            axes.annotate(
                f"{value:.1f}" if label.endswith("%") else f"{value:.4g}",
                (1.015, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8.5,
                annotation_clip=False,
            )
        names = [f"{shown(row[0], 18 if narrow else 28)}  {heading}" for heading, row in rows]
        axes.set_yticks(range(len(rows)), names, parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.margins(x=0.06)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(label)

    tall = 0.9 + 0.3 * len(rows)
    return Figure(tuple(_drawn((size[0], max(1.6, tall)), draw, {}) for size in (WIDE, NARROW)))
