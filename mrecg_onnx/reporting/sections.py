"""Sections that pages of several commands share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mrecg_onnx.machine import byte_size, duration, ratio
from mrecg_onnx.methods import METHODS
from mrecg_onnx.reporting.content import (
    DASH,
    Cell,
    Column,
    Fact,
    Pairs,
    Pictures,
    Section,
    Table,
    UnitBox,
    Units,
    shown,
)
from mrecg_onnx.reporting.figures import draw_curve, draw_graph, draw_histogram, draw_profile
from mrecg_onnx.settings import WITHOUT_OPTION, changed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mrecg_onnx.converters.module_names import NodeNames
    from mrecg_onnx.planning import Plan
    from mrecg_onnx.progress import UnitResult
    from mrecg_onnx.reporting.measuring import Answers, Measured
    from mrecg_onnx.validating import Accuracy, LayerError, LayerErrors, WrittenLayer

__all__ = [
    "answers_section",
    "decibels",
    "file_units_section",
    "histogram_section",
    "interval",
    "layers_section",
    "learning_section",
    "learns",
    "percent",
    "settings_section",
    "size",
    "size_fact",
    "units_section",
]

#: Rows of a table: the page stays below its size.
MOST_ROWS = 1500
#: Units of the graph of units.
MOST_UNITS = 400
#: From so many dB on an error is small, at 0 it is as large as the signal: the ends of a bar.
FULL_DB = 40.0


def percent(share: float, digits: int = 1) -> str:
    """``97.1%``."""
    return f"{share:.{digits}%}"


def decibels(ratio: float | None) -> str:
    """``14.1``; a dash where it is not known."""
    if ratio is None or math.isnan(ratio):
        return DASH
    return "∞" if ratio == math.inf else f"{ratio:.1f}"


def size(count: int) -> str:
    """Bytes for people."""
    return byte_size(count)


def size_fact(before: int, after: int) -> Fact:
    """The size of both files."""
    change = ratio(before, after, "smaller", "larger")
    return Fact("Size", size(after), f"FP32 {size(before)}, {change}", "good" if after < before else "")


def interval(found: Accuracy) -> str:
    """A 95 % interval."""
    return f"95 %: {100 * found.low:.1f} to {100 * found.high:.1f}"


# --- layers -----------------------------------------------------------------------------------------------------------------


def _bar(ratio: float | None, title: str = "") -> Cell:
    """A ratio in dB with a bar of the error: the shorter the bar, the smaller the error."""
    if ratio is None or math.isnan(ratio):
        return Cell(DASH, order=math.inf, tone="faint", title=title)
    share = min(1.0, max(0.0, 1 - ratio / FULL_DB))
    return Cell(decibels(ratio), order=min(ratio, 999.0), share=share, title=title)


def _bits(width: int) -> Cell:
    return Cell("float" if width == 32 else str(width), order=width, tone="faint" if width == 32 else "")


def layers_section(
    layers: Sequence[WrittenLayer],
    errors: LayerErrors | None,
    reasons: Mapping[str, str] | None = None,
    units: Mapping[str, int] | None = None,
    *,
    names: NodeNames,
) -> Section:
    """The table of layers, with their errors where they were measured.

    Args:
        layers: as the file has them.
        errors: what was measured.
        reasons: why layers are in float, as the run found it; None takes the graph's word.
        units: number of each layer's unit, from 1.
        names: shows names of nodes.
    """
    known = {entry.layer.name: entry for entry in errors.layers} if errors is not None else {}
    columns = [
        Column("#", "number", "Place in the graph", minor=True),
        Column("Layer"),
        Column("Op", minor=True),
        Column("Parameters", "number", minor=True),
        Column("W", "number", "Bits of the weights"),
        Column("A", "number", "Bits of what it reads"),
    ]
    if known:
        columns += [
            Column(
                "Output",
                "number",
                "SQNR in dB of what it makes, against the float model; all errors in front are in it",
            ),
            Column("Input", "number", "SQNR in dB of what it reads, against the float model", minor=True),
            Column("Weights", "number", "SQNR in dB of its weights"),
            Column("Rounding", "number", "SQNR in dB of the quantizer in front of it alone", minor=True),
        ]
    if units:
        columns.append(Column("Unit", "number", "Number of the unit that it was learned in", minor=True))
    columns.append(Column("Runs in"))
    rows = []
    for number, layer in enumerate(layers, 1):
        reason = reasons.get(layer.name, "") if reasons is not None else layer.in_float
        cells = [
            Cell(str(number), order=number, tone="faint"),
            Cell(shown(names(layer.name), 48), title=shown(names(layer.name), 240)),
            Cell(layer.op),
            Cell(f"{layer.params:,}", order=layer.params),
            _bits(layer.wbits),
            _bits(layer.abits),
        ]
        if known:
            cells += _errors(known.get(layer.name))
        if units:
            unit = units.get(layer.name)
            cells.append(Cell(DASH if unit is None else str(unit), order=unit if unit is not None else math.inf))
        cells.append(Cell(f"float: {reason}" if reason else "integer", tone="bad" if reason else ""))
        rows.append(tuple(cells))
    if known:
        ranked = sorted(range(len(rows)), key=lambda i: _worst(known.get(layers[i].name)))[:MOST_ROWS]
        rows = [rows[i] for i in sorted(ranked)]
    left_out = len(layers) - len(rows[:MOST_ROWS])
    table = Table(
        tuple(columns),
        tuple(rows[:MOST_ROWS]),
        filtered=True,
        note=f"{left_out} more layers are left out." if left_out > 0 else "",
    )
    parts: list[Any] = [table]
    lead = "Every layer with weights, in the order of the graph. A click on a heading sorts."
    if errors is not None and known:
        profile = [(names(e.layer.name), e.makes_db, e.weights_db) for e in errors.layers]
        parts.insert(0, draw_profile(profile, ("output as written", "weights")))
        lead = (
            "Signal against error (SQNR, dB) of every layer as written on ONNX Runtime, against the float model, on "
            f"{errors.images} images: 6 dB are one bit, at 0 dB the error is as large as the signal. Where the output falls well "
            "below the input, the error arises in that layer. A longer bar is a larger error."
        )
        if any(e.rescaled for e in errors.layers):
            lead += " Channels that equalization rescaled are compared at the same scale."
    return Section("layers", "Layers", lead, parts)


def _errors(entry: LayerError | None) -> list[Cell]:
    if entry is None:
        return [_bar(None)] * 4
    return [_bar(entry.makes_db), _bar(entry.reads_db), _bar(entry.weights_db), _bar(entry.rounds_db)]


def _worst(entry: LayerError | None) -> float:
    return math.inf if entry is None or entry.makes_db is None else entry.makes_db


# --- what was learned -------------------------------------------------------------------------------------------------------


def learning_section(
    plan: Plan, units: Sequence[UnitResult], probe: Sequence[UnitResult], *, names: NodeNames
) -> Section | None:
    """The losses of units before and after, joined units in brackets; None where nothing was learned."""
    learned = [unit for unit in units if unit.layers]
    if not learned:
        return None
    places = {layer: i for i, unit in enumerate(plan.units) for layer in unit.layers}
    called = [names(unit.name) for unit in plan.units]
    after = []
    for unit in learned:
        found = [places[layer] for layer in unit.layers if layer in places]
        if found:
            after.append((min(found), max(found), unit.final_loss))
    single = len(learned) == len(plan.units)
    if probe:
        before, label = [unit.final_loss for unit in probe], "probing run, before units were joined"
    else:
        before, label = [unit.loss_nearest for unit in learned] if single else [], "rounded to nearest"
    layerwise = len(learned) > len(plan.units)  # layer by layer: a unit for each
    if layerwise:
        called, before = [names(unit.name) for unit in learned], [unit.loss_nearest for unit in learned]
        after = [(i, i, unit.final_loss) for i, unit in enumerate(learned)]
    joined = sum(first != last for first, last, _ in after)
    figure = draw_curve(before if len(before) == len(called) else [], after, (label, "learned"), called)
    nearest = [unit for unit in learned if unit.kept == "nearest"]
    lead = "Reconstruction loss from unit to unit."
    if joined:
        lead += (
            f" Where it swings from one unit to the next, neighbours were joined and learned together: {joined} "
            f"{'pair or group' if joined == 1 else 'groups'}, in brackets."
        )
    if nearest:
        lead += f" {len(nearest)} kept rounding to nearest, which was better on held-out images."
    return Section("losses", "Loss of the units", lead, [figure, _unit_table(learned, names)])


def _unit_table(learned: Sequence[UnitResult], names: NodeNames) -> Table:
    columns = (
        Column("#", "number", minor=True),
        Column("Unit"),
        Column("Layers", "number", minor=True),
        Column("Nearest", "number", "Loss with rounding to nearest, on held-out images"),
        Column("Learned", "number", "Loss after learning, on the same images"),
        Column("Gain", "number", "How much of the loss is gone"),
        Column("Kept", minor=True),
        Column("Iterations", "number", minor=True),
        Column("Time", "number", minor=True),
    )
    rows = []
    for number, unit in enumerate(learned, 1):
        gain = 1 - unit.final_loss / unit.loss_nearest if unit.loss_nearest > 0 else 0.0
        rows.append(
            (
                Cell(str(number), order=number, tone="faint"),
                Cell(shown(names(unit.name), 76), title=shown(names(unit.name), 240)),
                Cell(str(len(unit.layers)), order=len(unit.layers)),
                Cell(f"{unit.loss_nearest:.3g}", order=unit.loss_nearest),
                Cell(f"{unit.loss:.3g}", order=unit.loss),
                Cell(f"{gain:.0%}", order=gain, share=min(1.0, max(0.0, gain))),
                Cell(unit.kept, tone="bad" if unit.kept == "nearest" else ""),
                Cell(f"{unit.iters:,}", order=unit.iters),
                Cell(duration(unit.seconds), order=unit.seconds),
            )
        )
    return Table(columns, tuple(rows[:MOST_ROWS]))


_NOT_LEARNED = "The network as it would be cut for learning: this method learns nothing of units."


def learns(method: str) -> bool:
    """Whether a method learns units; of one that is not known yes, as what a file says is believed."""
    return method not in METHODS or METHODS[method].granularity != "none"


def units_section(plan: Plan, learned: bool, *, names: NodeNames) -> Section:
    """The graph of units: in order, joined ones as one, with what each reads from further ahead."""
    merged, widths = plan.merged_units(), {layer.name: layer for layer in plan.layers}
    maker = {tensor: i for i, unit in enumerate(merged) for tensor in unit.outputs}
    boxes, edges = [], []
    for i, (unit, group) in enumerate(zip(merged, plan.merges, strict=True)):
        number = f"{group[0] + 1}" if len(group) == 1 else f"{group[0] + 1}{DASH}{group[-1] + 1}"
        layers = [widths[name] for name in unit.layers if name in widths]
        bits = sorted({f"W{x.wbits}A{x.abits}" if not x.excluded else "float" for x in layers})
        makers = sorted({maker[t] for t in unit.inputs if t in maker and maker[t] < i})
        edges += [(j, i) for j in makers]
        further = [j for j in makers if j != i - 1]
        reads = [
            f"{plan.merges[j][0] + 1}"
            if len(plan.merges[j]) == 1
            else f"{plan.merges[j][0] + 1}{DASH}{plan.merges[j][-1] + 1}"
            for j in further
        ]
        more = f" and {len(bits) - 3} more" if len(bits) > 3 else ""
        detail = (
            f"{len(layers)} layer{'' if len(layers) == 1 else 's'}, {', '.join(bits[:3])}{more}"
            if layers
            else "no weights"
        )
        title = ", ".join(shown(names(name), 60) for name in unit.layers[:8])
        boxes.append(UnitBox(number, shown(names(unit.name), 76), detail, len(group) > 1, ", ".join(reads[:6]), title))
    lead = "The network as it was cut for learning; units with a double edge were joined and learned as one."
    if not learned:
        lead = _NOT_LEARNED
    drawn = [(group[0], group[-1], box.name) for group, box in zip(plan.merges, boxes, strict=True)][:MOST_UNITS]
    edges = [(a, b) for a, b in edges if b < len(drawn)]
    # A chain is seen from the boxes.
    graph = [draw_graph(drawn, edges)] if any(b - a > 1 for a, b in edges) else []
    return Section("units", "Graph of units", lead, [*graph, Units(tuple(boxes[:MOST_UNITS]))])


def file_units_section(
    units: Sequence[tuple[str, ...]], layers: Mapping[str, WrittenLayer], *, learned: bool, names: NodeNames
) -> Section:
    """The same of what a file's metadata say."""
    boxes = []
    for number, held in enumerate(units[:MOST_UNITS], 1):
        here = [layers[name] for name in held if name in layers]
        bits = sorted({f"W{x.wbits}A{x.abits}" if x.held is not None else "float" for x in here})
        name = "" if not held else shown(names(held[0] if len(held) == 1 else f"{held[0]} .. {held[-1]}"), 76)
        detail = f"{len(held)} layer{'' if len(held) == 1 else 's'}, {', '.join(bits[:3])}" if held else "no weights"
        boxes.append(UnitBox(str(number), name, detail, title=", ".join(shown(names(n), 60) for n in held[:8])))
    lead = "Layers that were learned together, in order." if learned else _NOT_LEARNED
    return Section("units", "Units", lead, [Units(tuple(boxes))] if boxes else [])


# --- what was measured ------------------------------------------------------------------------------------------------------


def histogram_section(found: Measured) -> Section:
    """Values of the worst tensors with their grids."""
    lead = (
        "Weights and layer inputs that rounding changes most. Below each histogram lies its grid. Values more than half a step "
        "beyond its ends are cut off: red, behind a dashed line (of weights the ends are each channel's own, the line is the "
        "outermost). Heights are square roots of counts, so that tails show; red bars are never lower than can be seen."
    )
    return Section("tensors", "Worst tensors", lead, [draw_histogram(one) for one in found.histograms], gallery=True)


def answers_section(found: Measured) -> Section:
    """Images on which both files answer differently."""
    answers = found.answers
    if answers.agreement is None:
        lead = "No output holds class scores without doubt, so there are no predictions to compare."
        return Section("images", "Where they differ", lead if answers.images else "", [])
    of = f" (spread evenly over {answers.of})" if answers.of > answers.images else ""
    lead = (
        f"Of {answers.images} images{of} the two files answer differently on {answers.differing}"
        f"{'' if answers.differing else ': there is nothing to show'}."
    )
    if answers.pictures:
        count = len(answers.pictures)
        if count < answers.differing:
            lead += f" {count} of them are shown{_looked(answers)}."
        lead += " Three likeliest classes of FP32 and of the quantized file, those first on which FP32 is surest."
    elif answers.differing:
        lead += f" None is shown{_looked(answers) or ': what the network was fed is no picture'}."
    return Section("images", "Where they differ", lead, [Pictures(answers.pictures)] if answers.pictures else [])


def _looked(answers: Answers) -> str:
    """On which images it was looked for those that are shown, where these were not all that differ."""
    if answers.looked >= min(answers.images, answers.differing):
        return ""
    return f", of {answers.looked} images that were looked at"


def settings_section(settings: Mapping[str, Any], *, made: bool = False) -> Section:
    """All settings, those that are not what the defaults come to marked and first; parts of the method stand apart.

    Args:
        settings: by field.
        made: calibration images were made.
    """
    own = changed(settings, made=made)
    rows = sorted(((name, _text(value), name in own) for name, value in settings.items()), key=lambda row: not row[2])
    chosen = Pairs(tuple(row for row in rows if row[0] not in WITHOUT_OPTION))
    parts = Pairs(tuple(row for row in rows if row[0] in WITHOUT_OPTION), "No option: parts of the method")
    lead = "What differs from the defaults comes first." if own else "All are the defaults."
    return Section("settings", "Settings", lead, [part for part in (chosen, parts) if part.rows])


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return shown(", ".join(f"{k} {_text(v)}" for k, v in list(value.items())[:12] if v is not None), 160)
    if isinstance(value, list | tuple):
        more = f" and {len(value) - 12} more" if len(value) > 12 else ""
        return shown(" ".join(map(_text, value[:12])) + more, 160) or "none"
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return shown(f"{value:.6g}" if isinstance(value, float) else str(value), 160)
