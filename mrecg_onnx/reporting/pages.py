"""The page of each command: its headline and its sections, in order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mrecg_onnx.comparing import environment
from mrecg_onnx.converters.text import counted
from mrecg_onnx.machine import duration, milliseconds, plain_zero, points, ratio
from mrecg_onnx.reporting.content import DASH, Cell, Column, Fact, Page, Pairs, Section, Table, shown
from mrecg_onnx.reporting.sections import (
    answers_section,
    decibels,
    file_units_section,
    histogram_section,
    interval,
    layers_section,
    learning_section,
    learns,
    percent,
    settings_section,
    size,
    size_fact,
    units_section,
)
from mrecg_onnx.running import size_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mrecg_onnx.converters.module_names import NodeNames
    from mrecg_onnx.inspecting import FinishedFile
    from mrecg_onnx.reporting.measuring import Measured
    from mrecg_onnx.results import QuantizationResult
    from mrecg_onnx.running import Model
    from mrecg_onnx.validating import LayerErrors, ValidationResult, WrittenLayer

__all__ = [
    "finished_page",
    "heat_map",
    "page_environment",
    "quantization_page",
    "validation_page",
]


def _answers_fact(found: Measured, names: NodeNames) -> Fact:
    answers = found.answers
    if answers.agreement is None:
        known = [entry for entry in found.layers.layers if entry.makes_db is not None]
        worst = min(known, key=lambda entry: entry.makes_db or 0.0, default=None)
        if worst is None:
            return Fact("Worst layer", DASH, "no layer was measured")
        what = shown(names(worst.layer.name), 24)
        return Fact("Worst layer", f"{decibels(worst.makes_db)} dB", f"SQNR of what {what} makes against FP32")
    return Fact(
        "Same answer as FP32",
        percent(answers.agreement.value),
        f"{interval(answers.agreement)}, {counted(answers.images, 'image')}",
    )


def quantization_page(
    result: QuantizationResult,
    fp32: Model,
    measured: Measured | None,
    *,
    names: NodeNames,
    layers: list[WrittenLayer],
    validation: ValidationResult | None = None,
    said: tuple[str, ...] = (),
    command: str = "",
) -> Page:
    """What ``quantize`` made.

    Args:
        result: what it returned.
        fp32: the float model.
        measured: what was measured for the page; None where there was nothing to measure on.
        names: shows names of nodes.
        layers: of the file.
        validation: on labelled images, where there are such.
        said: what a reader has to know of the measurement.
        command: what makes the same again.
    """
    settings, plan, checks = result.settings, result.plan, result.verification
    facts = [*_accuracy_facts(validation)] if validation is not None else []
    if measured is not None and not (validation is not None and validation.quantized.top1):
        facts.append(_answers_fact(measured, names))
    if checks.furthest is not None and all(fact.label not in _OUTPUTS for fact in facts):
        facts.append(_output_fact(*checks.furthest, checks.float_outputs, checks.images))
    facts += [
        size_fact(size_bytes(fp32), size_bytes(result.output if result.output is not None else result.model)),
        _integers(checks.integer_layers, checks.layers),
        Fact("Time", duration(sum(result.seconds.values())), _longest(result.seconds)),
    ]
    number = {layer: i for i, group in enumerate(plan.merged_units(), 1) for layer in group.layers}
    errors = measured.layers if measured is not None else None
    learned = learning_section(plan, result.units, result.probe, names=names)
    sections = [
        *([learned] if learned is not None else []),
        layers_section(layers, errors, checks.float_layers, number, names=names),
        *([histogram_section(measured), answers_section(measured)] if measured is not None else []),
        units_section(plan, learned is not None, names=names),
        *_sensitivities(result, names),
        settings_section(settings.to_json(), made=result.origin is not None),
    ]
    widths = "mixed" if settings.mixed else f"W{settings.wbits}A{settings.abits}"
    lead = (
        f"{widths} by {settings.method} for {shown(settings.target, 40)}: {counted(len(plan.quantized_layers), 'layer')} and "
        f"{counted(len(plan.activations), 'activation')} quantized, {result.calibrated}."
    )
    return Page(
        shown(result.output.name, 80) if result.output is not None else "Quantized model",
        "quantize",
        lead,
        tuple(facts),
        (*result.warnings, *said),
        tuple(sections),
        command,
        page_environment(measured),
    )


def _integers(integer: int, layers: int) -> Fact:
    note = "all on integer kernels" if integer == layers else "the others are in float"
    return Fact("Layers in integers", f"{integer} of {layers}", note, "" if integer == layers else "bad")


def _longest(seconds: Mapping[str, float]) -> str:
    most = sorted(seconds.items(), key=lambda entry: -entry[1])[:3]
    return ", ".join(f"{stage} {duration(s)}" for stage, s in most)


def page_environment(measured: Measured | None = None) -> tuple[tuple[str, str], ...]:
    """Versions, the kind of machine, and how long the page's own measurements took."""
    rows = list(environment().items())
    if measured is not None:
        rows.append(("measured for this page in", duration(measured.seconds)))
    return tuple(rows)


def _accuracy_facts(result: ValidationResult) -> list[Fact]:
    facts = _metric_facts(result)
    before, after = result.fp32.top1, result.quantized.top1
    if before is not None and after is not None:
        p = f", McNemar's p {result.mcnemar_p:.2g}" if result.mcnemar_p is not None else ""
        facts.append(Fact("Top-1", percent(after.value, 2), f"{interval(after)}; FP32 {percent(before.value, 2)}"))
        lost = 100 * (before.value - after.value)
        tone = "bad" if lost >= 1 and (result.mcnemar_p or 1) < 0.05 else ""
        facts.append(
            Fact(
                "Top-1 change",
                points(after.value - before.value),
                f"{counted(result.images, 'image')}{p}",
                tone,
            )
        )
    if result.agreement is not None:
        facts.append(Fact("Same answer as FP32", percent(result.agreement), f"{counted(result.images, 'image')}"))
    if not facts and result.sqnr_by_output:
        worst = min(result.sqnr_by_output.items(), key=lambda output: output[1])
        facts.append(_output_fact(*worst, len(result.sqnr_by_output), result.images))
    return facts


_OUTPUTS = ("Output", "Worst output")


def _output_fact(name: str, ratio: float, several: int, images: int) -> Fact:
    """The output furthest from the float model's, of ``several``."""
    note = f"SQNR of {shown(name, 24)} against FP32, {counted(images, 'image')}"
    return Fact(_OUTPUTS[several > 1], f"{decibels(ratio)} dB", note)


def _metric_facts(result: ValidationResult) -> list[Fact]:
    metric, before, after = result.metric, result.fp32.score, result.quantized.score
    if metric is None or before is None or after is None:
        return []
    name, less = shown(metric.name, 40), ", less is better" if metric.lower_is_better else ""
    # As top-1: a point, and of what is no share a hundredth of what the float model has.
    lost = metric.loss(before, after) >= (0.01 if metric.percent else 0.01 * abs(before)) > 0
    return [
        Fact(name, metric.text(after, (before,)), f"FP32 {metric.text(before, (after,))}{less}"),
        Fact(
            f"{name} change",
            metric.change(before, after),
            f"{counted(result.images, 'image')}{less}",
            "bad" if lost else "",
        ),
    ]


def _sensitivities(result: QuantizationResult, names: NodeNames) -> list[Section]:
    """Costs by width as a heat map, and errors of single quantizers, where the run measured them."""
    found = []
    if result.allocation is not None:
        costs = result.allocation.costs
        rows = [(name, "weights", row) for name, row in costs.weights.items()] + [
            (n, "activations", row) for n, row in costs.tensors.items()
        ]
        chosen = dict(result.allocation.widths)
        found.append(
            Section(
                "sensitivity",
                "Sensitivity",
                "Loss with one layer or tensor alone quantized, by width; the width that was chosen is in brackets.",
                [heat_map([(names(name), kind, chosen.get(name), row) for name, kind, row in rows])],
            )
        )
    elif result.sensitivities:
        top = max(s.error for s in result.sensitivities) or 1.0
        columns = (Column("Tensor"), Column("Bits", "number"), Column("Relative error", "number"), Column("Protected"))
        table = tuple(
            (
                Cell(shown(names(s.name), 56), title=shown(names(s.name), 240)),
                Cell(str(s.bits), order=s.bits),
                Cell(f"{s.error:.4f}", order=s.error, heat=s.error / top),
                Cell("8 bits" if s.name in result.protected else ""),
            )
            for s in result.sensitivities[:1500]
        )
        lead = "Error of the output with one activation alone quantized, the worst first."
        found.append(Section("sensitivity", "Sensitivity", lead, [Table(columns, table, filtered=True)]))
    return found


def heat_map(rows: Sequence[tuple[str, str, int | None, Mapping[int, float]]], *, numbered: bool = False) -> Table:
    """Losses by width: name, kind, the width that holds, losses; colours are logarithmic over all cells; places in front."""
    widths = sorted({width for *_, losses in rows for width in losses})
    known = [loss for *_, losses in rows for loss in losses.values() if loss > 0]
    low, high = (math.log(min(known)), math.log(max(known))) if known else (0.0, 1.0)

    def cell(losses: Mapping[int, float], width: int, held: int | None) -> Cell:
        if width not in losses:
            return Cell(DASH, order=math.inf, tone="faint")
        loss = losses[width]
        heat = (math.log(loss) - low) / max(high - low, 1e-12) if loss > 0 else 0.0
        text = plain_zero(loss, ".2g")
        return Cell(f"[{text}]" if width == held else text, order=loss, heat=heat)

    columns = (
        *([Column("#", "number", "Place, the most sensitive first")] if numbered else []),
        Column("Layer or tensor"),
        Column("Kind", minor=True),
        *(Column(f"{width} bits", "number") for width in widths),
    )
    content = tuple(
        (
            *([Cell(str(place), order=place, tone="faint")] if numbered else []),
            Cell(shown(name, 48), title=shown(name, 240)),
            Cell(kind),
            *(cell(losses, width, held) for width in widths),
        )
        for place, (name, kind, held, losses) in enumerate(rows[:1500], 1)
    )
    return Table(columns, content, filtered=True)


def validation_page(
    result: ValidationResult,
    measured: Measured | None,
    layers: list[WrittenLayer],
    *,
    names: NodeNames,
    command: str = "",
) -> Page:
    """What ``validate`` found."""
    facts = [*_accuracy_facts(result), size_fact(result.fp32.size_bytes, result.quantized.size_bytes)]
    facts += _latency(result)
    outputs: list[tuple[str, float, float | None]] = [
        (name, value, None) for name, value in result.sqnr_by_output.items()
    ]
    outputs += [(name, math.nan, share) for name, share in result.equal_by_output.items()]
    columns = (Column("Output"), Column("SQNR, dB", "number"), Column("Equal values", "number"))
    rows = tuple(
        (
            Cell(shown(name, 56), title=shown(name, 240)),
            Cell(decibels(value), order=value if not math.isnan(value) else math.inf),
            Cell("" if share is None else percent(share, 2), order=share if share is not None else math.inf),
        )
        for name, value, share in sorted(outputs, key=lambda o: o[1])[:200]
    )
    kernels = tuple((shown(op, 40), str(count), False) for op, count in list(result.op_counts.items())[:60])
    sections = [
        Section(
            "accuracy",
            "Accuracy",
            "Both files on the same images, on ONNX Runtime at its default level.",
            [_side_by_side(result)],
        ),
        Section("outputs", "Outputs", "Against the float model's, over all images.", [Table(columns, rows)]),
        *(
            [
                layers_section(layers, measured.layers, names=names),
                histogram_section(measured),
                answers_section(measured),
            ]
            if measured
            else []
        ),
        Section("kernels", "Kernels", "Operators that ONNX Runtime runs for the quantized file.", [Pairs(kernels)]),
    ]
    return Page(
        shown(Path(result.quantized.name).name, 80),
        "validate",
        f"against {shown(Path(result.fp32.name).name, 80)} on {counted(result.images, 'image')}, {shown(result.provider, 40)}.",
        tuple(facts),
        result.warnings,
        tuple(sections),
        command,
        page_environment(measured),
    )


def _latency(result: ValidationResult) -> list[Fact]:
    if result.speedup is None or result.fp32.latency_s is None or result.quantized.latency_s is None:
        return []
    fp32, quantized = milliseconds(result.fp32.latency_s), milliseconds(result.quantized.latency_s)
    times = f"{quantized} ms against {fp32}, batch {result.latency_batch}"
    if result.speedup_interval is not None and (result.speedup_is_wide or result.speedup_is_noise):
        low, high = result.speedup_interval
        between = f"({low:.2f} to {high:.2f} times as fast); {times}"
        if result.speedup_is_wide:
            return [Fact("Against FP32's time", "not known", f"too noisy to say {between}")]
        return [Fact("Against FP32's time", "the same", f"within noise {between}")]
    return [Fact("Against FP32's time", _speed(result), times, "good" if result.speedup >= 1 else "")]


def _speed(result: ValidationResult) -> str:
    """Against FP32, for a table."""
    if result.speedup is None or result.speedup_is_wide:
        return "too noisy to say"
    return "the same within noise" if result.speedup_is_noise else ratio(result.speedup, 1.0, "faster", "slower")


def _side_by_side(result: ValidationResult) -> Table:
    columns = (Column(""), Column("FP32", "number"), Column("Quantized", "number"), Column("Change", "number"))

    def row(name: str, before: str, after: str, change: str) -> tuple[Cell, ...]:
        return Cell(name), Cell(before), Cell(after), Cell(change)

    rows = []
    for name, before, after in (
        ("Top-1", result.fp32.top1, result.quantized.top1),
        ("Top-5", result.fp32.top5, result.quantized.top5),
    ):
        if before is not None and after is not None:
            change = points(after.value - before.value)
            left, right = (f"{percent(a.value, 2)} ({100 * a.low:.1f} to {100 * a.high:.1f})" for a in (before, after))
            rows.append(row(name, left, right, change))
    metric, before_by, after_by = result.metric, result.fp32.score, result.quantized.score
    if metric is not None and before_by is not None and after_by is not None:
        change = metric.change(before_by, after_by)
        both = metric.text(before_by, (after_by,)), metric.text(after_by, (before_by,))
        rows.append(row(shown(metric.name, 40), *both, change))
    rows.append(
        row(
            "Size",
            size(result.fp32.size_bytes),
            size(result.quantized.size_bytes),
            ratio(result.fp32.size_bytes, result.quantized.size_bytes, "smaller", "larger"),
        )
    )
    if result.speedup is not None and result.fp32.latency_s is not None and result.quantized.latency_s is not None:
        rows.append(
            row(
                f"Latency, batch {result.latency_batch}",
                f"{milliseconds(result.fp32.latency_s)} ms",
                f"{milliseconds(result.quantized.latency_s)} ms",
                _speed(result),
            )
        )
    return Table(columns, tuple(rows))


def finished_page(
    found: FinishedFile,
    measured: Measured | None = None,
    validation: ValidationResult | None = None,
    *,
    names: NodeNames,
    errors: LayerErrors | None = None,
    said: tuple[str, ...] = (),
    command: str = "",
) -> Page:
    """What a finished file says of itself, and what was measured of it."""
    quantized = [layer for layer in found.layers if layer.held is not None]
    params = sum(layer.params for layer in quantized)
    average = sum(layer.params * layer.wbits for layer in quantized) / params if params else math.nan
    integer = sum(not layer.in_float for layer in found.layers)
    facts = [*_accuracy_facts(validation)] if validation is not None else []
    if measured is not None and not (validation is not None and validation.agreement is not None):
        facts.append(_answers_fact(measured, names))
    if validation is not None:
        facts += [size_fact(validation.fp32.size_bytes, found.size_bytes), *_latency(validation)]
    else:
        facts.append(Fact("Size", size(found.size_bytes), f"opset {found.opset}, container {found.container}"))
    facts.append(
        Fact(
            "Weights",
            f"{average:.2f} bits",
            f"on average, {params / 1e6:.2f} million of them" if params >= 10**6 else f"on average, {params:,} of them",
        )
    )
    facts.append(_integers(integer, len(found.layers)))
    number = {layer: i for i, unit in enumerate(found.units, 1) for layer in unit}
    about = (
        ("made by", f"mrecg-onnx {found.version}", False),
        ("widths", found.widths, False),
        ("target", shown(found.target), False),
        ("container", found.container, False),
        ("opset", str(found.opset), False),
        ("needs", "; ".join(row.note() for row in found.needs) or "nothing beyond ONNX Runtime 1.22", False),
        ("float model, SHA-256", found.source_sha256 or "not a file", False),
        ("images become inputs", found.preprocess.describe(), False)
        if found.preprocess
        else ("calibrated on", "arrays, fed as they are", False),
        ("raised to 8 bits", shown(", ".join(map(names, found.protected)), 160) or "none", False),
        *([("measured", shown(found.worth, 200), False)] if found.worth else []),
        *([("cut", shown(found.cut, 240), False)] if found.cut else []),
    )
    sections = [
        Section("about", "The file", "", [Pairs(about)]),
        layers_section(found.layers, measured.layers if measured is not None else errors, None, number, names=names),
        *([histogram_section(measured), answers_section(measured)] if measured is not None else []),
        file_units_section(
            found.units,
            {layer.name: layer for layer in found.layers},
            learned=learns(str(found.settings.get("method"))),
            names=names,
        ),
        settings_section(found.settings, made=found.origin is not None),
    ]
    return Page(
        shown(Path(found.name).name, 80),
        "report",
        f"{found.widths} by {shown(str(found.settings.get('method', '?')), 24)} for {shown(found.target, 40)}: "
        f"{counted(len(quantized), 'layer')} and {counted(len(found.activations), 'activation')} quantized.",
        tuple(facts),
        (*(validation.warnings if validation is not None else ()), *said),
        tuple(sections),
        command,
        page_environment(measured),
    )
