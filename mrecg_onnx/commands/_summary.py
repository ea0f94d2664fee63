"""What quantize says of its result: what a user decides by on one screen, and all that was found with --verbose."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from mrecg_onnx.commands._durations import so_far
from mrecg_onnx.commands._names import SHOWN, Names
from mrecg_onnx.commands._tables import grid
from mrecg_onnx.converters.metadata_keys import PREPROCESS_KEY
from mrecg_onnx.converters.text import bounded, first_of
from mrecg_onnx.machine import byte_size, duration, ratio
from mrecg_onnx.methods import METHODS
from mrecg_onnx.targets import load_target

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from mrecg_onnx.data import Preprocess
    from mrecg_onnx.planning import Plan
    from mrecg_onnx.quantization import QuantizationResult
    from mrecg_onnx.settings import Settings

__all__ = ["at_once", "bits_line", "details", "summary", "used_images"]

#: Warnings on the screen; --verbose has all.
WARNED = 2
#: What is said of the loss from so much on: share of equal predictions, and dB of the worst output where there are none.
WORDS = ((0.99, 30.0, "hardly any"), (0.97, 20.0, "small"), (0.9, 12.0, "noticeable"), (0.0, float("-inf"), "large"))
#: Activations of fewer bits need a Clip more on ONNX Runtime's integer kernels, which compute with eight anyway.
EIGHT_BITS = 8
#: Characters of an output's name in a sentence.
LONGEST_OUTPUT = 32
#: Fewer images than these say little of a loss.
FEW = 16
#: A packed file is named where it has at most this share of the bytes.
WORTH_PACKING = 0.9
#: Runtimes of targets whose kernels for activations of 4 bits do what those of 8 do, and an operator more.
RUNTIMES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}
#: Seconds that a start takes at most; a process that is older did other work before the run.
LONGEST_START_S = 60
#: Layers are counted in the form for ONNX Runtime where the target's runtime is another one, kernels in the file as it is.
_ELSEWHERE = " in the form for ONNX Runtime; of this file it runs "


def used_images(result: QuantizationResult) -> bool:
    """Whether the calibration data were images: arrays leave no preprocessing in the metadata."""
    return any(entry.key == PREPROCESS_KEY for entry in result.model.metadata_props)


def at_once(result: QuantizationResult) -> int:
    """Images that are fed together and whose outputs nobody can tell apart; 1 where each has its own."""
    from mrecg_onnx.planning import outputs_without_rows
    from mrecg_onnx.running import specs_of

    if not outputs_without_rows(result.model):
        return 1
    return max([spec.shape[0] or 1 for spec in specs_of(result.model, str(result.output)) if spec.shape], default=1)


def summary(
    result: QuantizationResult,
    model: Path,
    names: Names,
    *,
    stated: Preprocess | None,
    data: bool,
    page: Path | None = None,
) -> RenderableType:
    """Size, expected loss, what runs in integers, time, and warnings: at most a screen of 24 lines.

    ``stated`` is what the user said of preprocessing, ``data`` whether there are images beside those of the calibration.
    """
    found = result.verification
    warnings = list(result.warnings)
    if stated is not None and not data and not used_images(result):
        warnings.append("options about images have no effect: the calibration data are arrays, fed as they are")
    if result.skipped:
        several = len(result.skipped) > 1
        warnings.append(
            f"{len(result.skipped)} calibration image{'s' * several} cannot be read and {'were' if several else 'was'} left out: "
            + first_of(result.skipped)
        )
    more = [f"and {len(warnings) - WARNED} more: --verbose shows them"] if len(warnings) > WARNED else []
    return grid(
        {
            "output": _file(result, model, names),
            "size": _smaller(result),
            "bits": bits_line(result.plan, result.settings),
            "matched": _matched(result, names),
            "cut": result.cut,
            "budget": _budgets(result),
            "loss": _loss(result),
            "pixels": _pixels(result, stated),
            "integers": f"{found.integer_layers} of {found.layers} layers run on integer kernels",
            "time": _whole_time(result),
            "page": str(page) if page is not None else "",
            "hint": _hint(result.settings),
            "warnings": [*warnings[:WARNED], *more],
        }
    )


def _whole_time(result: QuantizationResult) -> str:
    """The time of the run, and of the whole command where its start adds to it."""
    run, whole = sum(result.seconds.values()), so_far()[0]
    return duration(run) + (f" ({duration(whole)} with the start)" if 1.1 * run < whole < run + LONGEST_START_S else "")


def _hint(settings: Settings) -> str:
    """What is better on the runtime that the file is for (docs/widths.md)."""
    named = RUNTIMES.get(settings.target)
    if named is None or settings.abits >= EIGHT_BITS:
        return ""
    return f"on {named} --abits 8 takes the same size and time or less, and is more accurate"


def _matched(result: QuantizationResult, names: Names) -> list[str]:
    """What the patterns of --exclude and --bits found."""
    settings, layers = result.settings, [layer.name for layer in result.plan.layers]
    # Rules behind those that were given are the widths that a budget chose.
    given = settings.bits[: len(settings.bits) - (len(result.allocation.rules) if result.allocation else 0)]
    found = names.matched("--exclude", settings.exclude, layers, only_layers=False)
    return found + names.matched("--bits", [rule.pattern for rule in given], layers, only_layers=True)


def _loss(result: QuantizationResult) -> list[str]:
    """What quantization costs on the calibration images, in words, and what to do where it is much."""
    from mrecg_onnx.data import FIT_ALONE

    found = result.verification
    furthest = found.furthest
    worst = furthest[1] if furthest is not None else float("inf")
    share = found.agreement_float
    word = next(w for least, db, w in WORDS if (share >= least if share is not None else worst >= db))
    same = f"{share:.2%} of {found.images} calibration images get FP32's prediction, " if share is not None else ""
    warned = any(warning.startswith(FIT_ALONE) for warning in result.doubts)
    few = "; so few say little" if found.images < FEW and not warned else ""
    noise = "outputs are no floats"
    if furthest is not None:
        which = "outputs" if found.float_outputs == 1 else f"the worst output ({bounded(furthest[0], LONGEST_OUTPUT)})"
        noise = f"{which} {worst:.1f} dB above the noise"
    lines = [f"{word} on calibration images: {same}{noise}{few}"]
    if share is None:
        several = at_once(result)
        what = (
            "`mrecg-onnx validate` with labels or --metric does"
            if several == 1
            else f"nothing here does, as the model takes {several} images at once and does not say whose its outputs are"
        )
        lines.append(f"that says nothing of accuracy: {what}")
    if word == "large":
        lines.append(f"try {_remedies(result.settings)}; `mrecg-onnx sensitivity` names the layers at fault")
    return lines


def _remedies(settings: Settings) -> str:
    """What may lower a loss, of what the run has not done already."""
    method = METHODS[settings.method]
    learns = method.granularity != "none" and method.solver == "gradient"
    found = [
        *(["--abits 8"] if settings.abits < 8 else []),
        *(["a higher --wbits"] if settings.wbits < 8 else []),
        "more --iters" if learns else "a method that learns (--preset fast)",
    ]
    return " or ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def details(result: QuantizationResult, names: Names) -> RenderableType:
    """All that was decided and measured on the way."""
    images = f"{result.images} calibration images" if used_images(result) else f"{result.images} rows of arrays"
    if result.origin is not None:
        images = (
            f"{result.images} made from {result.origin['layers']} BatchNormalization layers ({result.origin['data']})"
        )
    return grid(
        {
            "method": _method(result),
            "units": _units(result, names),
            "finish": _finish(result),
            "parity": f"{result.parity:.1e} relative, torch against ONNX Runtime on the float model",
            "verification": _verification(result),
            "kernels": _kernels(result, names),
            "equalized": _equalized(result),
            "biases": _biases(result),
            "protected": ", ".join(f"{names(name)} (8 bits)" for name in result.protected),
            "images": images
            + (f", ranges of {result.range_images} of them" if 0 < result.range_images < result.images else "")
            + (f", {len(result.skipped)} skipped" if result.skipped else ""),
            "skipped": _some(result.skipped),
            "preprocessing": result.settings.preprocess.describe()
            if used_images(result)
            else "none, arrays as they are",
            "notes": list(result.verification.notes),
            "all warnings": list(result.warnings[WARNED:]),
            "stages": _time(result),
        }
    )


def _pixels(result: QuantizationResult, stated: Preprocess | None) -> str:
    """What was taken for granted about pixels: the most frequent reason for a bad file."""
    used = result.settings.preprocess
    if not used_images(result) or used is None:
        return ""
    if used.source is not None:
        return f"became numbers as {used.source} says"
    if (stated is not None and stated.mean is not None) or not used.is_imagenets:
        return ""
    return "ImageNet's mean and deviation are assumed; trained with others: --mean, --std or --preprocess"


def _file(result: QuantizationResult, model: Path, names: Names) -> str:
    from mrecg_onnx.running import size_bytes

    assert result.output is not None
    before, after = size_bytes(model), size_bytes(result.output)
    sizes = f"{byte_size(after)} against {byte_size(before)} in {names.precision()}"
    return f"{result.output}, {sizes}, {ratio(before, after, 'smaller', 'larger')}"


def _smaller(result: QuantizationResult) -> str:
    """Why codes of few bits are no small file, and what makes them one, where that is so."""
    from mrecg_onnx.converters.errors import ExportError
    from mrecg_onnx.writing import contained

    settings, widths = result.settings, [layer.wbits for layer in result.plan.quantized_layers]
    narrow = min(widths, default=EIGHT_BITS)
    can = "packed" in load_target(settings.target).containers
    if settings.container != "int8" or not can or narrow >= EIGHT_BITS or result.allocation is not None:
        return ""
    try:
        packed = contained(result.model, "packed").model.ByteSize()
    except ExportError:  # an operator that its opset does not have
        return ""
    if packed > WORTH_PACKING * result.model.ByteSize():
        return ""
    return f"weights of {narrow} bits take 8 in the file; --container packed: {byte_size(packed)}"


def bits_line(plan: Plan, settings: Settings) -> str:
    """How many layers and activations have which width."""

    def counts(widths: list[int]) -> str:
        return ", ".join(f"{widths.count(w)} at {w}" for w in sorted(set(widths)))

    excluded = len(plan.layers) - len(plan.quantized_layers)
    return (
        f"{'mixed, ' if settings.mixed else f'W{settings.wbits}'}A{settings.abits}: "
        f"weights of {len(plan.quantized_layers)} layers "
        f"({counts([layer.wbits for layer in plan.quantized_layers])}), {len(plan.activations)} activations"
        + (f" ({counts([a.bits for a in plan.activations])})" if plan.activations else "")
        + (f", {excluded} layer{'s' if excluded > 1 else ''} in float" if excluded else "")
    )


def _budgets(result: QuantizationResult) -> list[str]:
    from mrecg_onnx.writing import contained

    if result.allocation is None:
        return []
    size = contained(result.model, "packed").model.ByteSize()
    lines = []
    for spent in result.allocation.spent:
        # "3.50 bits on average (at most 3.50)": the unit once.
        limit = spent["limit"].removesuffix(" bits on average")
        lines.append(f"{spent['option']}: {spent['used']}" + (f" (at most {limit})" if limit else ""))
    lines += [f"tried {t.average:g} bits on average: drop {t.lost(result.settings.max_drop)}" for t in result.trials]
    here = result.settings.container == "packed" or "packed" not in load_target(result.settings.target).containers
    how = "" if here else f": `mrecg-onnx convert {shlex.quote(str(result.output))} --container packed`"
    return [*lines, f"packed, the file takes {byte_size(size)}{how}"]


def _method(result: QuantizationResult) -> str:
    settings, found = result.settings, result.lapq
    if found is not None:
        return (
            f"lapq, task loss {found.loss_start:.4g} -> {found.loss:.4g} in {found.evaluations} runs over "
            f"{settings.lapq_images} images"
        )
    if METHODS[settings.method].granularity == "none":
        ranges = f", ranges by {settings.range}" if settings.range != "auto" else ""
        return f"{settings.method}{ranges}, nothing is learned"
    if METHODS[settings.method].solver != "gradient":
        return f"{settings.method}, in closed form, seed {settings.seed}"
    base = f" on {settings.base}, scheme {settings.scheme}" if settings.method == "mrecg" else ""
    return f"{settings.method}{base}, {settings.iters} iterations a unit, seed {settings.seed}"


def _units(result: QuantizationResult, names: Names) -> list[str]:
    if not result.units:
        return []
    learned = [unit for unit in result.units if unit.layers]
    nearest = [unit.name for unit in learned if unit.kept == "nearest"]
    merged = [
        unit.name for unit, group in zip(result.plan.merged_units(), result.plan.merges, strict=True) if group[1:]
    ]
    kept = (
        f"; {len(nearest)} kept nearest rounding, better on held-out images: {names.some(nearest)}" if nearest else ""
    )
    lines = [f"{len(learned)} learned, {len(merged)} of them merged{kept}"]
    return lines + [f"merged: {names(name)}" for name in merged]


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


def _kernels(result: QuantizationResult, names: Names) -> list[str]:
    """How many of all layers run in integers, the kernels, and what stays in float by name."""
    found = result.verification
    kernels = ", ".join(f"{name} {found.fused.get(name, 0)} of {count}" for name, count in found.expected.items())
    reasons: dict[str, list[str]] = {}
    for name, reason in found.float_layers.items():
        reasons.setdefault(reason, []).append(name)
    ran = ": " if load_target(result.settings.target).runtime == "onnxruntime" else _ELSEWHERE
    lines = [f"{found.integer_layers} of {found.layers} layers in integers" + (f"{ran}{kernels}" if kernels else "")]
    return lines + [f"in float: {names.some(layers)} ({reason})" for reason, layers in reasons.items()]


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
