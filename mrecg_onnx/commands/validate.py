"""``mrecg-onnx validate``: the FP32 model and its quantized version side by side on ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import cloup

from mrecg_onnx.commands._completion import offering, providers
from mrecg_onnx.commands._console import VERBOSE, asked, show
from mrecg_onnx.commands._errors import guarded
from mrecg_onnx.commands._files import Extras, check_writes, write_json
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._names import Names
from mrecg_onnx.commands._options import (
    image_options,
    labels_option,
    metric_options,
    output_options,
    outputs_option,
    report_option,
)
from mrecg_onnx.commands._paths import PATH
from mrecg_onnx.commands._progress import counter
from mrecg_onnx.commands._repeat import given_command
from mrecg_onnx.commands._sections import IMAGES, Command
from mrecg_onnx.commands._settings import metric_from, preprocess_from
from mrecg_onnx.commands._tables import grid, rows, width
from mrecg_onnx.converters.deadline import LIMIT_S
from mrecg_onnx.machine import byte_size, is_first, milliseconds, points, ratio

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from mrecg_onnx.data import Preprocess
    from mrecg_onnx.validating import Accuracy, ModelReport, ValidationResult

__all__ = ["stored_or_beside", "validate_command"]

#: Outputs listed without --verbose; images named at most that the two files answer differently.
LISTED, DIFFERING = 4, 20


@click.command("validate", cls=Command)
@click.argument("fp32", type=PATH, metavar="FP32.onnx")
@click.argument("quantized", type=PATH, metavar="QUANT.onnx")
@cloup.option("--data", type=PATH, required=True, group=IMAGES, help="Folder of images, or .npy/.npz of inputs.")
@labels_option
@metric_options
@outputs_option
@cloup.option("--limit", type=int, metavar="N", group=IMAGES, help="Images used at most.")
@cloup.option("--batch-size", type=int, default=32, metavar="N", help="Images at a time.", show_default=True)
@cloup.option("--latency-batch", type=int, default=1, metavar="N", help="Images a timed run.", show_default=True)
@cloup.option(
    "--repeats",
    type=int,
    default=50,
    metavar="N",
    help="Timed runs of each model; 0: no timing.",
    show_default=True,
)
@cloup.option("--threads", type=int, metavar="N", help="Threads of ONNX Runtime; its own choice by default.")
@cloup.option(
    "--timeout",
    type=float,
    default=LIMIT_S,
    metavar="SECONDS",
    show_default=True,
    help="Longest that one call of ONNX Runtime may take.",
)
@cloup.option(
    "--device",
    default="cpu",
    metavar="NAME",
    show_default=True,
    shell_complete=offering(providers),
    help="cpu, cuda, tensorrt, openvino, qnn, ...: where both run.",
)
@cloup.option("--layers", is_flag=True, help="Also compare every layer's weights and output, on up to 64 images.")
@image_options(stored="QUANT")
@report_option
@output_options
@click.pass_context
def validate_command(
    ctx: click.Context,
    /,
    *,
    fp32: Path,
    quantized: Path,
    data: Path,
    report_file: Path | None,
    json_file: Path | None,
    debug: bool,
    **options: Any,
) -> None:
    """Compare QUANT.onnx with the FP32.onnx it came from.

    Accuracy, agreement, noise, size and speed of both, side by side on ONNX Runtime. Images are prepared as the
    metadata of QUANT.onnx say, else as a file beside FP32.onnx does (preprocessor_config.json, timm's config.json);
    --preprocess goes before both, and other options about images replace single values.

    \b
    mrecg-onnx validate model.onnx model_mrecg_w4a8.onnx --data labelled_images/
    mrecg-onnx validate model.onnx model_mrecg_w4a8.onnx --data labelled_images/ --layers
    mrecg-onnx validate model.onnx model_mrecg_w4a8.onnx --data inputs.npz --metric mymetrics:score
    """  # noqa: D301 - click wants the character, not backslash and b
    with guarded(debug=debug, writes=[path for path in (json_file, report_file) if path]):
        with loading():
            from mrecg_onnx.validating import validate

        check_writes({"--json": json_file, "--report": report_file}, [fp32, quantized])
        if report_file is not None:
            from mrecg_onnx.reporting import report_validation, require_packages

            require_packages()
        metric = metric_from(options)
        plain = ("labels", "limit", "batch_size", "latency_batch", "repeats", "threads", "device", "layers", "timeout")
        with counter("validate") as report:
            result = validate(
                fp32,
                quantized,
                data,
                preprocess=preprocess_from(options, lambda: stored_or_beside(fp32, quantized)),
                metric=metric,
                progress=report,
                outputs=options["outputs"] or None,
                **{name: options[name] for name in plain},
            )
        if not is_first():
            return
        extras = Extras()
        extras.write(json_file, lambda path: write_json(result.to_json(), path))
        page = extras.write(report_file, lambda path: report_validation(result, path, command=given_command(ctx)))
        show(_side_by_side(result), _comparison(result, page), *_layers(result, Names(fp32)))
        extras.settle()


def stored_or_beside(fp32: Path | None, quantized: Path) -> Preprocess:
    """What options replace single values of: what is stored in QUANT, or lies beside FP32."""
    from mrecg_onnx.data import Preprocess, beside
    from mrecg_onnx.running import open_session
    from mrecg_onnx.validating import stored_preprocess

    return (
        stored_preprocess(open_session(quantized), str(quantized))
        or (beside(fp32) if fp32 is not None else None)
        or Preprocess()
    )


def _side_by_side(result: ValidationResult) -> RenderableType:
    fp32, quantized = result.fp32, result.quantized

    def line(name: str, left: str | None, right: str | None, change: str = "") -> list[list[str]]:
        return [] if left is None or right is None else [[name, left, right, change]]

    content = [
        *line("file", fp32.name, quantized.name),
        *line(
            "size",
            byte_size(fp32.size_bytes),
            byte_size(quantized.size_bytes),
            ratio(fp32.size_bytes, quantized.size_bytes, "smaller", "larger"),
        ),
        *line("top-1", _percent(fp32.top1), _percent(quantized.top1), _change(fp32.top1, quantized.top1)),
        *line("  95 %", _interval(fp32.top1), _interval(quantized.top1)),
        *line("top-5", _percent(fp32.top5), _percent(quantized.top5), _change(fp32.top5, quantized.top5)),
        *line("  95 %", _interval(fp32.top5), _interval(quantized.top5)),
        *_by_metric(result),
        *line(
            "latency",
            _milliseconds(fp32),
            _milliseconds(quantized),
            _speed(result),
        ),
    ]
    return rows("", ["", "FP32", "quantized", ""], content, left=(0, 1, 2, 3), names=(1, 2))


def _speed(result: ValidationResult) -> str:
    """Against FP32; runs that do not say which is faster have no factor."""
    if result.speedup is None or result.speedup_interval is None:
        return ""
    if result.speedup_is_wide:
        return "too noisy"
    if result.speedup_is_noise:
        return "within noise"
    return ratio(result.speedup, 1.0, "faster", "slower")


def _by_metric(result: ValidationResult) -> list[list[str]]:
    metric, before, after = result.metric, result.fp32.score, result.quantized.score
    if metric is None or before is None or after is None:
        return []
    name = metric.name + (" (less is better)" if metric.lower_is_better else "")
    return [[name, metric.text(before, (after,)), metric.text(after, (before,)), metric.change(before, after)]]


def _comparison(result: ValidationResult, page: Path | None) -> RenderableType:
    worst = sorted(result.sqnr_by_output.items(), key=lambda entry: entry[1])
    sqnr = _few([f"{name}: {value:.1f} dB" for name, value in worst])
    equal = sorted(result.equal_by_output.items(), key=lambda entry: entry[1])
    where = f" of {result.scores}" if len(result.sqnr_by_output) > 1 else ""
    return grid(
        {
            "images": f"{result.images}" + (f", {len(result.skipped)} skipped" if result.skipped else ""),
            "skipped": _few(list(result.skipped)),
            "agreement": f"{result.agreement:.2%} of the predictions{where}" if result.agreement is not None else "",
            "SQNR": sqnr,
            "equal": _few([f"{name}: {share:.2%} of the values" for name, share in equal]),
            "McNemar's p": f"{result.mcnemar_p:.3g} for equal top-1" if result.mcnemar_p is not None else "",
            "provider": result.provider,
            "kernels": ", ".join(f"{op} {count}" for op, count in result.op_counts.items()),
            f"latency, batch {result.latency_batch}": _sure(result),
            **(_more(result) if asked(VERBOSE) else {}),
            "preprocessing": result.preprocess.describe() if result.preprocess else "none, arrays as they are",
            "warnings": result.warnings,
            "page": str(page or ""),
        }
    )


def _few(texts: list[str]) -> list[str]:
    """The first of ``texts``; with --verbose all of them."""
    left = 0 if asked(VERBOSE) else max(0, len(texts) - LISTED)
    return [*texts[: len(texts) - left], *([f"and {left} more: --verbose shows them"] if left else [])]


def _sure(result: ValidationResult) -> str:
    """How sure the factor of the times is; a clear one is said with --verbose alone."""
    if result.speedup_interval is None or not (result.speedup_is_wide or result.speedup_is_noise or asked(VERBOSE)):
        return ""
    from mrecg_onnx.running import interval_text

    said = "too noisy to say which is faster" if result.speedup_is_wide else "the same within noise"
    said = said if result.speedup_is_wide or result.speedup_is_noise else _speed(result)
    return f"{said} (95 %: {interval_text(result.speedup_interval)})"


def _more(result: ValidationResult) -> dict[str, str]:
    """What --verbose adds besides: what both files get right, on which images they differ, and what ran them."""
    import onnxruntime

    found = {}
    if result.top1_right is not None:
        fp32, quantized = result.top1_right
        counts = [int(x.sum()) for x in (fp32 & quantized, fp32 & ~quantized, ~fp32 & quantized, ~fp32 & ~quantized)]
        found["right"] = "{} images in both, {} in FP32 alone, {} in the quantized alone, {} in neither".format(*counts)
    if result.differing is not None and len(result.differing):
        more = len(result.differing) - DIFFERING
        places = ", ".join(map(str, result.differing[:DIFFERING])) + (f" and {more} more" if more > 0 else "")
        found["differ on"] = f"images {places}, counted from 0"
    return found | {"runtime": f"ONNX Runtime {onnxruntime.__version__}"}


def _layers(result: ValidationResult, names: Names) -> list[RenderableType]:
    """Every layer, the one whose output is furthest from FP32's first."""
    found = result.layers
    if found is None:
        return []
    content = [
        [
            names(entry.layer.name),
            entry.layer.op,
            width(entry.layer.wbits),
            width(entry.layer.abits),
            _decibels(entry.weights_db),
            _decibels(entry.rounds_db),
            _decibels(entry.reads_db),
            _decibels(entry.makes_db),
            entry.layer.in_float or "integer",
        ]
        for entry in found.worst_first
    ]
    title = f"layers as written against FP32 on {found.images} images, SQNR in dB, the worst output first"
    header = ["layer", "op", "W", "A", "weights", "rounding of its input", "what it reads", "what it makes", "runs in"]
    less = ("op", "weights", "rounding of its input", "what it reads")
    return [rows(title, header, content, left=(0, 1, 8), wraps=(8,), less=less)]


def _decibels(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}"


def _percent(accuracy: Accuracy | None) -> str | None:
    return None if accuracy is None else f"{accuracy.value:.2%}"


def _interval(accuracy: Accuracy | None) -> str | None:
    return None if accuracy is None else f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}%"


def _change(before: Accuracy | None, after: Accuracy | None) -> str:
    return points(after.value - before.value) if before and after else ""


def _milliseconds(report: ModelReport) -> str | None:
    return None if report.latency_s is None else f"{milliseconds(report.latency_s)} ms"
