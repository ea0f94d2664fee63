"""A comparison as text: the table for people, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from mrecg_onnx.converters.text import counted, printable
from mrecg_onnx.machine import byte_size, duration, milliseconds, points
from mrecg_onnx.running import speedup_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mrecg_onnx.comparing.result import Cell, Comparison
    from mrecg_onnx.validating import Accuracy

__all__ = ["csv_text", "markdown", "minor", "table", "timed"]

COLUMNS = {
    "method": "method", "bits": "bits", "top1": "top-1", "interval": "95 % interval", "change": "top-1 change",
    "score": "{metric}", "score_change": "{metric} change", "fp32_p": "p, FP32",
    "base_p": "p, {base}", "agreement": "agreement", "sqnr": "SQNR", "seconds": "time", "peak": "peak memory", "size": "size",
    "latency": "latency", "speedup": "against FP32", "note": "note",
}  # fmt: skip
"""Columns of the tables for people, in their order, with their headings."""
MINOR = (
    "interval",
    "peak",
    "fp32_p",
    "base_p",
    "latency",
    "seconds",
    "agreement",
    "sqnr",
    "change",
    "score_change",
    "speedup",
)
"""Those that a narrow terminal can do without, the first to go first."""


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The table for people: headings, and a row for the float model and each cell; columns without content are left out."""
    fp32 = comparison.fp32_top1
    first = {"method": "FP32", "bits": "", "size": byte_size(comparison.fp32_size_bytes), **_accuracy(fp32)}
    metric = comparison.metric
    if metric is not None and comparison.fp32_score is not None:
        first["score"] = metric.text(comparison.fp32_score, comparison.scores)
    if comparison.fp32_latency_s is not None:
        first["latency"] = f"{milliseconds(comparison.fp32_latency_s)} ms"
    content = [first, *(_texts(cell, comparison) for cell in comparison.cells)]
    used = [name for name in COLUMNS if any(row.get(name) for row in content)]
    return _headings(comparison, used), [[row.get(name, "") for name in used] for row in content]


def minor(comparison: Comparison) -> list[str]:
    """Headings of columns that a narrow terminal can do without, the first to go first."""
    return _headings(comparison, MINOR)


def _headings(comparison: Comparison, columns: Iterable[str]) -> list[str]:
    metric = comparison.metric
    named = {"base": comparison.base_method, "metric": metric.name if metric is not None else ""}
    return [COLUMNS[name].format(**named) for name in columns]


def _accuracy(top1: Accuracy | None) -> dict[str, str]:
    if top1 is None:
        return {}
    return {"top1": f"{top1.value:.2%}", "interval": f"{top1.low:.2%} to {top1.high:.2%}"}


def _texts(cell: Cell, comparison: Comparison) -> dict[str, str]:
    """A cell's columns as text; changes are with their sign, as in the tables of ``validate``."""
    metric, fp32_score = comparison.metric, comparison.fp32_score
    texts = {"method": cell.method, "bits": str(cell.widths)}
    if cell.error is not None:
        return texts | {"note": f"failed: {cell.error}"}

    def text(value: float | None, form: str, factor: float = 1.0) -> str:
        return "" if value is None else form.format(factor * value)

    assert cell.size_bytes is not None
    return texts | _accuracy(cell.top1) | {
        "change": "" if cell.drop is None else points(-cell.drop),
        "score": "" if metric is None or cell.score is None else metric.text(cell.score, comparison.scores),
        "score_change": ""
        if metric is None or fp32_score is None or cell.score is None
        else metric.change(fp32_score, cell.score),
        "fp32_p": text(cell.fp32_p, "{:.3g}"),
        "base_p": text(cell.base_p, "{:.3g}"),
        "agreement": text(cell.agreement, "{:.2%}"),
        "sqnr": text(cell.sqnr_db, "{:.1f} dB") + _worst(cell),
        "seconds": "" if cell.seconds is None else duration(cell.seconds),
        "peak": "" if cell.peak_bytes is None else byte_size(cell.peak_bytes),
        "size": byte_size(cell.size_bytes),
        "latency": "" if cell.latency_s is None else f"{milliseconds(cell.latency_s)} ms",
        "speedup": "" if cell.speedup is None else speedup_text(cell.speedup, cell.speedup_interval),
    }  # fmt: skip


def _worst(cell: Cell) -> str:
    """The output that a cell's SQNR is of, where there are several."""
    finite = {name: value for name, value in cell.sqnr_by_output.items() if value is not None}
    return f" ({min(finite, key=lambda name: finite[name])})" if finite and len(cell.sqnr_by_output) > 1 else ""


def markdown(found: Comparison) -> str:
    """A Markdown page with the table and how it came about."""
    headings, content = table(found)
    lines = [f"# {printable(found.model.stem)}: methods compared", ""]
    lines += [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings))]
    lines += ["| " + " | ".join(printable(text).replace("|", "\\|") for text in row) + " |" for row in content]
    versions = ", ".join(f"{name} {value}" for name, value in found.environment.items())
    for paragraph in (_how(found), *(f"{printable(warning)}." for warning in found.warnings), f"{versions}."):
        lines += ["", paragraph]
    return "\n".join(lines) + "\n"


def _how(found: Comparison) -> str:
    """How the numbers came about."""
    settings = found.settings
    images = " or ".join(str(n) for n in dict.fromkeys(cell.images for cell in found.cells if cell.images is not None))
    return (
        f"{counted(found.images, 'image')} on ONNX Runtime; {_metric(found)}intervals are Wilson's, p is McNemar's (exact). "
        f"{settings.iters} iterations a "
        f"unit, batch {settings.batch_size}, {images or 'no'} calibration images, seed {settings.seed}; all settings "
        f"in the JSON file beside. Peak memory is that of the process that quantized. Latency: {timed(found)}; the same within "
        "noise where runs do not say which is faster (95 %), noisy where they say next to nothing."
    )


def timed(found: Comparison) -> str:
    """What latencies and factors are of, FP32's among them."""
    return (
        f"median at batch {found.latency_batch}, each file in turn with FP32 and against FP32's time in that turn; "
        "FP32's row has the median of all turns"
    )


def _metric(found: Comparison) -> str:
    if found.metric is None:
        return ""
    return f"{printable(found.metric.name)}: {'less' if found.metric.lower_is_better else 'more'} is better; "


def csv_text(found: Comparison) -> str:
    """Plain numbers: seconds, bytes, shares."""
    out = io.StringIO()
    rows = []
    for cell in found.cells:
        row = cell.to_json()
        top1 = row.pop("top1") or {}
        low, high = row.pop("speedup_interval") or (None, None)
        del row["sqnr_by_output"], row["equal_by_output"]  # the JSON beside has them
        rows.append(
            {"method": row.pop("method"), "widths": row.pop("widths")}
            | {"top1": top1.get("value"), "top1_low": top1.get("low"), "top1_high": top1.get("high")}
            | row
            | {"speedup_low": low, "speedup_high": high}
        )
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
