"""``mrecg-onnx quantize``: an FP32 model and images in, a low-bit model out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from mrecg_onnx.commands._console import say, show, warn
from mrecg_onnx.commands._durations import duration
from mrecg_onnx.commands._errors import guarded
from mrecg_onnx.commands._files import check_writes, write_json
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._options import (
    PATH,
    budget_options,
    calib_option,
    calibration_options,
    image_options,
    learning_options,
    output_options,
    plan_options,
    report_option,
)
from mrecg_onnx.commands._progress import progress
from mrecg_onnx.commands._repeat import given_command
from mrecg_onnx.commands._sections import Command, Option
from mrecg_onnx.commands._settings import preprocess_from, settings_from
from mrecg_onnx.commands._tables import grid, mebibytes, ratio
from mrecg_onnx.commands._unused import unused_options
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.machine import byte_size, is_first
from mrecg_onnx.methods import METHODS
from mrecg_onnx.targets import load_target

if TYPE_CHECKING:
    from rich.table import Table

    from mrecg_onnx.planning import Plan
    from mrecg_onnx.quantization import QuantizationResult
    from mrecg_onnx.settings import Settings

__all__ = ["quantize_command"]

#: Streams and skipped images named in the summary; --json has all.
SHOWN = 8
#: Layers are counted in the form for ONNX Runtime where the target's runtime is another one, kernels in the file as it is.
_ELSEWHERE = " in the form for ONNX Runtime; of this file it runs "


@click.command("quantize", cls=Command)
@click.argument("model", type=PATH)
@calib_option
@click.option(
    "-o",
    "--output",
    "out",
    type=PATH,
    cls=Option,
    section="Run",
    metavar="OUT",
    help="The file to write.  [default: <model>_w4a4.onnx in this folder]",
)
@plan_options
@budget_options
@learning_options
@calibration_options
@image_options()
@report_option
@output_options
@click.pass_context
def quantize_command(
    ctx: click.Context,
    /,
    *,
    model: Path,
    calib: str | Path,
    out: Path | None,
    checkpoint: Path | None,
    data: Path | None,
    labels: str | Path | None,
    report_file: Path | None,
    json_file: Path | None,
    debug: bool,
    **options: Any,
) -> None:
    """Quantize MODEL to low bits with learned rounding.

    MODEL is an FP32 ONNX file; the result is a QDQ model in ONNX's standard domain, checked on ONNX Runtime.

    \b
    mrecg-onnx quantize model.onnx --calib images/ --wbits 4 --abits 4
    mrecg-onnx quantize model.onnx --calib images/ --wbits 2 --abits 4 --bits 'head=W8A8' -o small.onnx
    mrecg-onnx quantize model.onnx --calib images/ --size-budget 1.8MB
    mrecg-onnx quantize model.onnx --calib images/ --report page.html
    """  # noqa: D301 - click wants the character, not backslash and b
    budgets = [options[name] for name in ("size_budget", "avg_wbits", "max_drop")]
    widths = f"w{options['wbits']}" if budgets == [None] * 3 else "mixed_"
    out = out or Path(f"{model.stem}_{widths}a{options['abits']}.onnx")
    writes = [path for path in (out, json_file, report_file) if path]
    with guarded(debug=debug, writes=writes, kept=lambda: _kept(checkpoint)):
        settings = settings_from(options)
        _check_paths(model, out, json_file, report_file)
        given = [name for name in options if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
        given += [name for name, value in (("data", data), ("labels", labels)) if value is not None]
        if report_file is not None:
            from mrecg_onnx.reporting import require_packages

            require_packages()
            given = [name for name in given if name not in {"data", "labels"}]  # the page measures on them
        for sentence in unused_options(settings, given, calib):
            warn(sentence)

        with loading():
            from mrecg_onnx.quantization import quantize

        with progress(settings.iters) as report:
            result = quantize(
                model, calib, settings, output=out, checkpoint=checkpoint, data=data, labels=labels, report=report
            )
        if not is_first():
            return
        if json_file is not None:
            write_json(result.to_json(), json_file)
        if report_file is not None:
            from mrecg_onnx.reporting import report_quantization

            report_quantization(result, model, calib, report_file, data=data, labels=labels, command=given_command(ctx))
        images_ignored = data is None and preprocess_from(options) is not None and not _used_images(result)
        show(_summary(result, model, images_ignored=images_ignored))
        if report_file is not None:
            show(grid({"page": str(report_file)}))
        check = [*ctx.find_root().command_path.split(), "validate", str(model), str(out), "--data", "LABELLED_IMAGES/"]
        say(err=False)
        say(f"Next: {shlex.join(check)}", err=False)


def _kept(checkpoint: Path | None) -> str:
    """What an interrupted run leaves to go on from."""
    if checkpoint is None:
        return "with --checkpoint DIR the same command goes on where it was interrupted"
    count = sum(1 for _ in checkpoint.rglob("*.pt"))
    units = {0: "no unit is", 1: "1 unit is"}.get(count, f"{count} units are")
    return f"{units} kept in {checkpoint}: the same command goes on there"


def _check_paths(model: Path, out: Path, json_file: Path | None, report_file: Path | None) -> None:
    for option, path, others in (("--json", json_file, [out]), ("--report", report_file, [out, json_file])):
        if path is not None and path.resolve() in {other.resolve() for other in others if other is not None}:
            raise SettingsError(f"{option} {path} is an output file: choose another file")
    check_writes({"--output": out, "--json": json_file, "--report": report_file}, [model], "the model itself")


def _used_images(result: QuantizationResult) -> bool:
    """Whether the calibration data were images: arrays leave no preprocessing in the metadata."""
    from mrecg_onnx.validating import PREPROCESS_KEY

    return any(entry.key == PREPROCESS_KEY for entry in result.model.metadata_props)


def _summary(result: QuantizationResult, model: Path, *, images_ignored: bool) -> Table:
    warnings = list(result.verification.warnings)
    if images_ignored:
        warnings.append("options about images have no effect: the calibration data are arrays, fed as they are")
    images = f"{result.images} calibration images" if _used_images(result) else f"{result.images} rows of arrays"
    if result.origin is not None:
        images = (
            f"{result.images} made from {result.origin['layers']} BatchNormalization layers ({result.origin['data']})"
        )
    return grid(
        {
            "output": _file(result, model),
            "bits": _bits(result.plan, result.settings),
            "budget": _budgets(result),
            "method": _method(result),
            "units": _units(result),
            "finish": _finish(result),
            "parity": f"{result.parity:.1e} relative, torch against ONNX Runtime on the float model",
            "verification": _verification(result),
            "kernels": _kernels(result),
            "equalized": _equalized(result),
            "biases": _biases(result),
            "protected": ", ".join(f"{name} (8 bits)" for name in result.protected),
            "images": images + (f", {len(result.skipped)} skipped" if result.skipped else ""),
            "skipped": _some(result.skipped),
            "preprocessing": result.settings.preprocess.describe()
            if _used_images(result)
            else "none, arrays as they are",
            "notes": list(result.verification.notes),
            "warnings": warnings,
            "time": _time(result),
        }
    )


def _file(result: QuantizationResult, model: Path) -> str:
    from mrecg_onnx.runtimes import size_bytes

    assert result.output is not None
    before, after = size_bytes(model), size_bytes(result.output)
    sizes = f"{mebibytes(after)} against {mebibytes(before)} in FP32"
    return f"{result.output}, {sizes}, {ratio(before, after, 'smaller', 'larger')}"


def _bits(plan: Plan, settings: Settings) -> str:
    def counts(widths: list[int]) -> str:
        return ", ".join(f"{widths.count(w)} at {w}" for w in sorted(set(widths)))

    excluded = len(plan.layers) - len(plan.quantized_layers)
    return (
        f"{'mixed, ' if settings.mixed else f'W{settings.wbits}'}A{settings.abits}: "
        f"weights of {len(plan.quantized_layers)} layers "
        f"({counts([layer.wbits for layer in plan.quantized_layers])}), {len(plan.activations)} activations"
        + (f" ({counts([a.bits for a in plan.activations])})" if plan.activations else "")
        + (f", {excluded} layers in float" if excluded else "")
    )


def _budgets(result: QuantizationResult) -> list[str]:
    from mrecg_onnx.writing import contained

    if result.allocation is None:
        return []
    size = contained(result.model, "packed").model.ByteSize()
    lines = [f"{s['option']}: {s['used']} (at most {s['limit']})" for s in result.allocation.spent]
    lines += [
        f"tried {t.average:g} bits on average: {t.drop:.2f} {'points of top-1' if t.labelled else '% of predictions'} lost"
        for t in result.trials
    ]
    return [*lines, f"packed, the file takes {byte_size(size, 'MB', 4)}"]


def _method(result: QuantizationResult) -> str:
    settings, found = result.settings, result.lapq
    if found is not None:
        return (
            f"lapq, task loss {found.loss_start:.4g} -> {found.loss:.4g} in {found.evaluations} runs over "
            f"{settings.lapq_images} images"
        )
    if METHODS[settings.method].granularity == "none":
        ranges = f", ranges by {settings.ranges}" if settings.ranges != "auto" else ""
        return f"{settings.method}{ranges}, nothing is learned"
    if METHODS[settings.method].solver != "gradient":
        return f"{settings.method}, in closed form, seed {settings.seed}"
    base = f" on {settings.base}, scheme {settings.scheme}" if settings.method == "mrecg" else ""
    return f"{settings.method}{base}, {settings.iters} iterations a unit, seed {settings.seed}"


def _units(result: QuantizationResult) -> list[str]:
    if not result.units:
        return []
    learned = [unit for unit in result.units if unit.layers]
    nearest = [unit.name for unit in learned if unit.kept == "nearest"]
    merged = [
        unit.name for unit, group in zip(result.plan.merged_units(), result.plan.merges, strict=True) if group[1:]
    ]
    kept = f"; {len(nearest)} kept nearest rounding, better on held-out images: {_some(nearest)[0]}" if nearest else ""
    lines = [f"{len(learned)} learned, {len(merged)} of them merged{kept}"]
    return lines + [f"merged: {name}" for name in merged]


def _finish(result: QuantizationResult) -> str:
    found = result.finished
    if found is None:
        return ""
    if found.kept != "learned":
        return f"{found.iters} steps of the whole network left out: on held-out images they brought nothing"
    return (
        f"{found.iters} steps of the whole network: loss on held-out images {found.loss_nearest:.4g} -> {found.loss:.4g}, "
        f"{found.changed / max(1, found.weights):.2%} of the weights moved to another code, {found.frozen} swung and were held"
    )


def _verification(result: QuantizationResult) -> list[str]:
    found = result.verification

    def line(name: str, agreement: float | None, figure: str) -> str:
        same = f"{agreement:.2%} of {found.images} predictions agree, " if agreement is not None else ""
        floats = sorted((c for c in found.outputs if c.equal is None), key=lambda c: float(getattr(c, figure)))
        figures = [f"{c.name} {getattr(c, figure):.1f} dB" if c.equal is None else "" for c in floats]
        if figure == "sqnr_db":
            figures += [f"{c.name} {c.equal:.2%} of the values" for c in found.outputs if c.equal is not None]
        return f"{name}: {same}{', '.join(_some(figures))}"

    return [
        line("simulation against the file as written", found.agreement, "simulation_db"),
        line(f"file as written against {found.runtime}'s default", found.agreement_fused, "sqnr_db"),
        line("FP32 against that default: what quantization costs on calibration images", None, "default_db"),
    ]


def _kernels(result: QuantizationResult) -> list[str]:
    """How many of all layers run in integers, the kernels, and what stays in float by name."""
    found = result.verification
    kernels = ", ".join(f"{name} {found.fused.get(name, 0)} of {count}" for name, count in found.expected.items())
    reasons: dict[str, list[str]] = {}
    for name, reason in found.float_layers.items():
        reasons.setdefault(reason, []).append(name)
    ran = ": " if load_target(result.settings.target).runtime == "onnxruntime" else _ELSEWHERE
    lines = [f"{found.integer_layers} of {found.layers} layers in integers" + (f"{ran}{kernels}" if kernels else "")]
    return lines + [f"in float: {_some(names)[0]} ({reason})" for reason, names in reasons.items()]


def _equalized(result: QuantizationResult) -> list[str]:
    if not result.equalized:
        return []
    used = [entry for entry in result.equalized if entry.alpha]
    lines = [f"{len(used)} of {len(result.equalized)} streams"]
    for entry in used[:SHOWN]:
        errors = f"{entry.error_before:.3g} -> {entry.error_after:.3g}"
        bounds = ", a bound for each channel" if entry.bounded else ""
        lines.append(f"{entry.stream.name}: alpha {entry.alpha:g}, output error {errors}{bounds}")
    return lines + ([f"and {len(used) - SHOWN} more"] if len(used) > SHOWN else [])


def _biases(result: QuantizationResult) -> list[str]:
    lines = []
    if result.settings.bias_correction:
        corrected = f"corrected in {len(result.corrections)} layers" if result.corrections else ""
        lines.append(corrected or "not corrected: on held-out images that would raise the error of the outputs")
    used = [entry.tensor for entry in result.absorbed if entry.used]
    if result.settings.absorb == "auto":
        lines.append(f"absorbed at {', '.join(_some(used))}" if used else "nothing is worth absorbing")
    return lines


def _some(names: tuple[str, ...] | list[str]) -> list[str]:
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [", ".join([*names[:SHOWN], *more])]


def _time(result: QuantizationResult) -> str:
    parts = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in result.seconds.items())
    return f"{duration(sum(result.seconds.values()))} ({parts})"
