"""Pages that set things side by side: methods at widths, and layers by what they lose."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mrecg_onnx.comparing import table
from mrecg_onnx.converters.text import counted
from mrecg_onnx.machine import duration, figure
from mrecg_onnx.reporting.content import Cell, Column, Commands, Fact, Page, Section, Table, shown
from mrecg_onnx.reporting.figures import draw_dots
from mrecg_onnx.reporting.pages import heat_map, page_environment
from mrecg_onnx.reporting.sections import interval, percent, settings_section, size
from mrecg_onnx.running import describe, size_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from mrecg_onnx.comparing import Cell as Compared
    from mrecg_onnx.comparing import Comparison
    from mrecg_onnx.converters.module_names import NodeNames
    from mrecg_onnx.inspecting import Quality, Ranking

__all__ = ["comparison_page", "ranking_page"]

#: Characters of what is to be copied: longer ones are none that anybody reads, and the command that follows has them.
MOST_COPIED = 1000
#: Columns of a comparison that are left out on a phone.
_MINOR = frozenset({"95 % interval", "agreement", "SQNR", "peak memory", "latency", "against FP32", "time", "note"})


def comparison_page(result: Comparison, *, command: str = "") -> Page:
    """What ``compare`` found."""
    done = [cell for cell in result.cells if cell.error is None]
    metric = result.metric

    def worth(cell: Compared) -> float | None:
        drawn = result.drawn(cell)
        return None if drawn is None else drawn[0]

    def text(value: float) -> str:
        """A value as plots have it: shares there are in percent."""
        return f"{value:.2f}%" if result.drawn_as.endswith("%") else figure(value, result.scores)

    facts = []
    if metric is not None and result.fp32_drawn is not None:
        facts.append(
            Fact("FP32", text(result.fp32_drawn), f"{shown(metric.name, 40)}, {counted(result.images, 'image')}")
        )
    elif result.fp32_top1 is not None:
        facts.append(
            Fact(
                "FP32",
                percent(result.fp32_top1.value, 2),
                f"{interval(result.fp32_top1)}, {counted(result.images, 'image')}",
            )
        )
    known = [cell for cell in done if worth(cell) is not None]
    if known:
        side = -1 if metric is not None and metric.lower_is_better else 1
        best = max(known, key=lambda cell: side * (worth(cell) or 0.0))
        note = f", {interval(best.top1)}" if best.top1 and metric is None else ""
        facts.append(Fact("Best", text(worth(best) or 0.0), f"{best.name}{note}"))
    sizes = [cell.size_bytes for cell in done if cell.size_bytes is not None]
    if sizes:
        facts.append(Fact("Smallest file", size(min(sizes)), f"FP32 {size(result.fp32_size_bytes)}"))
    facts.append(Fact("Cells", f"{len(done)} of {len(result.cells)}", "finished", "bad" if result.failed else ""))
    facts.append(Fact("Time", duration(sum(cell.seconds or 0.0 for cell in done)), "to quantize all of them"))
    panels = []
    for width in dict.fromkeys(cell.widths for cell in result.cells):
        rows = []
        for cell in (c for c in result.cells if c.widths == width):
            rows.append((cell.method, *(result.drawn(cell) or (None, 0.0, 0.0))))
        panels.append((str(width), rows))
    dots = draw_dots(panels, result.fp32_drawn, result.drawn_as)
    dashed = "; dashed: FP32" if result.fp32_drawn is not None else ""
    lead = f"{'Values' if metric is not None or not dashed else 'Dots with 95 % intervals'}{dashed}. All on the same images."
    sections = (
        Section("cells", "Methods and widths", lead, [dots, _cells(result)]),
        settings_section(result.to_json()["settings"]),
    )
    failed = tuple(f"{cell.name} failed: {cell.error}" for cell in result.failed)
    title = f"{shown(result.model.stem, 60)}: methods compared"
    about = (
        f"on {counted(result.images, 'image')} of {shown(result.data, 60)}, calibrated on {shown(result.calib, 60)}."
    )
    return Page(
        title,
        "compare",
        about,
        tuple(facts),
        (*failed, *result.warnings),
        sections,
        command,
        tuple(result.environment.items()),
    )


def _cells(result: Comparison) -> Table:
    headings, content = table(result)
    columns = tuple(
        Column(
            heading,
            "text" if heading in {"method", "bits", "note"} else "number",
            minor=heading in _MINOR or heading.startswith("p, "),
        )
        for heading in headings
    )
    rows = tuple(
        tuple(
            Cell(shown(text, 80), order=_leading(text) if column.kind == "number" else None)
            for column, text in zip(columns, row, strict=True)
        )
        for row in content
    )
    return Table(columns, rows, filtered=len(rows) > 8)


#: What stands behind a number, in its smallest unit: bytes, milliseconds and seconds.
_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "ms": 1e-3}


def _leading(text: str) -> float:
    """The number that a text begins with, sizes in bytes and times in seconds; what is as fast as FP32 has a factor of 1."""
    if text.startswith("same"):
        return 1.0
    if re.fullmatch(r"\d+(:\d\d)+", text):
        seconds = 0
        for part in text.split(":"):
            seconds = 60 * seconds + int(part)
        return float(seconds)
    found = re.match(r"([+-]?[\d.]+(?:e[+-]?\d+)?) ?([kMGT]B|ms)?", text)
    return float(found[1]) * _UNITS.get(found[2], 1.0) if found else float("inf")


def ranking_page(
    found: Ranking, model: str | Path, *, names: NodeNames, command: str = "", following: str = ""
) -> Page:
    """What ``sensitivity`` found; ``following`` is the ``quantize`` that comes next, of a command line."""
    settings = found.settings
    noise = ", within noise" if found.is_noise else ""
    facts = [
        _quality(
            found, f"W{settings.wbits}A{settings.abits}, nearest", found.quality, f"{counted(found.images, 'image')}"
        ),
        *(
            [_quality(found, "FP32", found.float_quality, _of_images(found))]
            if found.labelled or found.metric is not None
            else []
        ),
        *(
            [
                _quality(found, "With all that help", found.together, f"suggestions below{noise}")
                if found.helps
                else _quality(found, "Suggestions together", found.together, "bring nothing: noise of few images")
            ]
            if found.together is not None
            else []
        ),
    ]
    if found.ranked:
        worst = found.ranked[0]
        facts.append(Fact("Most sensitive", shown(names(worst.name), 48), f"its {worst.kind}, {worst.bits} bits"))
    rows = [(names(entry.name), entry.kind, entry.bits, entry.losses) for entry in found.ranked]
    sections = [
        Section(
            "ranking",
            "Sensitivity",
            "Task loss with one layer's weights or one tensor alone quantized, by width; the worst first, the width it has under "
            "these settings in brackets. Colours are logarithmic. What no layer reads (a sum, an output) keeps its width.",
            [heat_map(rows, numbered=True)],
        )
    ]
    if found.suggestions:
        lead = "More bits, or float, for the most sensitive, one at a time, rounded to nearest; # is the place above."
        sections.append(
            Section("suggestions", "What more bits or float bring back", lead, _suggestions(found, names, following))
        )
    sections.append(settings_section(settings.to_json()))
    said = (*([f"{len(found.skipped)} images could not be read"] if found.skipped else []), *found.warnings)
    where = describe(model)
    title = shown(where.replace("\\", "/").rsplit("/", 1)[-1], 80)
    lead = f"What its layers lose when they are quantized; FP32 {size(size_bytes(model))}."
    return Page(title, "sensitivity", lead, tuple(facts), said, tuple(sections), command, page_environment())


def _suggestions(found: Ranking, names: NodeNames, following: str) -> list[Table | Commands]:
    """What was tried, all that help in the last row, and the call that has them."""
    columns = (
        Column("Option of quantize"),
        Column("For #", hint="Places in the table of layers and tensors"),
        Column("Then", "number"),
        Column("Brings back", "number"),
    )
    ranked = {str(i): names(entry.name) for i, entry in enumerate(found.ranked, 1)}
    rows = []
    for ranks, option, quality, gain in found.tried():
        what = ", ".join(filter(None, (ranked.get(rank) for rank in ranks.split(", "))))
        kind, figure = found.figure(quality)
        rows.append(
            (
                Cell(shown(option, MOST_COPIED), title=shown(option, MOST_COPIED)),
                Cell(f"{ranks} {shown(what, 40)}".strip(), order=_leading(ranks), title=shown(what, 240)),
                Cell(f"{shown(kind, 40)} {figure}", order=quality.worth),
                Cell(gain, order=quality.worth - found.quality.worth),
            )
        )
    told = f"{found.noise[:1].upper()}{found.noise[1:]}." if found.noise else ""
    parts: list[Table | Commands] = [Table(columns, tuple(rows), note=told)]
    if found.helps and not found.is_noise:
        if following:
            parts.append(Commands("Next, with all that help:", following))
        else:
            parts.append(
                Commands("Next, in Python, with all that help:", "quantize(model, calib, result.all_that_help)")
            )
    return parts


def _of_images(found: Ranking) -> str:
    return "labelled images" if found.labelled else f"{counted(found.images, 'image')}"


def _quality(found: Ranking, label: str, quality: Quality, note: str) -> Fact:
    kind, figure = found.figure(quality)
    kind = "same answer as FP32" if kind == "agreement" and found.metric is None else shown(kind, 40)
    return Fact(label, figure, f"{kind}, {note}")
