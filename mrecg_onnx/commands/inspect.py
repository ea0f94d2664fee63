"""``mrecg-onnx inspect``: what quantize would do, and with images which tensors hurt most."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click
import cloup

from mrecg_onnx.commands._console import show, warn
from mrecg_onnx.commands._errors import guarded
from mrecg_onnx.commands._files import check_writes, write_json
from mrecg_onnx.commands._finished import finished_tables
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._names import Names
from mrecg_onnx.commands._options import CALIBRATION, calibration_options, image_options, output_options, plan_options
from mrecg_onnx.commands._paths import PATH
from mrecg_onnx.commands._presets import given_beside
from mrecg_onnx.commands._progress import progress
from mrecg_onnx.commands._sections import IMAGES, Command
from mrecg_onnx.commands._settings import settings_from
from mrecg_onnx.commands._tables import grid, rows, width
from mrecg_onnx.machine import byte_size, plain_zero
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from mrecg_onnx.inspecting import Inspection, Measured, TensorInfo
    from mrecg_onnx.planning import LayerPlan, Plan

__all__ = ["inspect_command"]


@click.command("inspect", cls=Command)
@click.argument("model", type=PATH)
@cloup.option(
    "--calib",
    type=CALIBRATION,
    group=IMAGES,
    metavar="PATH|zeroq",
    help="Folder of images, .npy/.npz of inputs, or zeroq: also measure each quantizer alone.",
)
@plan_options
@calibration_options
@image_options()
@output_options
@click.pass_context
def inspect_command(
    ctx: click.Context,
    /,
    *,
    model: Path,
    calib: str | Path | None,
    json_file: Path | None,
    debug: bool,
    **options: Any,
) -> None:
    """Print the plan for MODEL, or what MODEL is where quantize made it; nothing is trained.

    The plan is its layers, activation quantizers with their bits, and reconstruction units with their merges. With
    --calib, each quantizer is also measured alone, and the tensors that hurt most come first.

    Of a result it prints widths, form, what it needs and the settings it was made with.

    \b
    mrecg-onnx inspect model.onnx
    mrecg-onnx inspect model.onnx --calib images/ --json plan.json
    mrecg-onnx inspect model_mrecg_w4a8.onnx
    """  # noqa: D301 - click wants the character, not backslash and b
    with guarded(debug=debug, writes=[json_file] if json_file else []):
        settings = settings_from(options)
        with loading():
            from mrecg_onnx.inspecting import Inspection, inspect, inspect_result, is_result

        check_writes({"--json": json_file}, [model])
        if is_result(model):
            for name in (n for n in given_beside(ctx) if n in {"calib", *options}):
                warn(f"--{name.replace('_', '-')} has no effect: {model} is quantized already")
            result = inspect_result(model)
            if json_file is not None:
                write_json(result.to_json(), json_file)
            show(*finished_tables(result))
            return
        names = Names(model)
        with progress(settings.iters, names) as report:
            found = inspect(model, calib, settings, progress=report)
        assert isinstance(found, Inspection)
        if json_file is not None:
            write_json(found.to_json(), json_file)
        show(*_tables(found, names))


def _tables(found: Inspection, names: Names) -> Iterator[RenderableType]:
    yield _source(found)
    yield _layers(found.plan, names)
    yield _quantizers(found.plan, names)
    yield _units(found, names)
    if found.fallbacks:
        yield rows(
            f"{len(found.fallbacks)} nodes run by ONNX Runtime, forward only",
            ["node", "reason"],
            [list(row) for row in found.fallbacks.items()],
            left=(0, 1),
        )
    if found.measured is not None:
        if found.measured.streams:
            yield _streams(found.measured)
        yield _sensitivities(found, names)


def _source(found: Inspection) -> RenderableType:
    source, plan = found.source, found.plan
    macs = [layer.macs for layer in plan.layers]
    known = sum(m for m in macs if m is not None)
    more = " or more: not all shapes are known" if None in macs else ""
    measured = found.measured
    skipped = measured.skipped if measured else ()
    return grid(
        {
            "model": f"{source.name}, {byte_size(source.size_bytes)}, opset {source.opset}"
            + (f", by {source.producer}" if source.producer else ""),
            "inputs": [_tensor(value) for value in source.inputs],
            "outputs": [_tensor(value) for value in source.outputs],
            "cut": found.cut,
            "parameters": f"{source.parameters:,}",
            "MACs an image": _count(known) + more,
            "nodes": str(source.nodes),
            "plan": _planned(found.settings),
            "images": _images(measured) if measured else "",
            "skipped": skipped,
            "preprocessing": measured.preprocess.describe() if measured and measured.preprocess else "",
            "parity": f"{measured.parity:.1e} relative, torch against ONNX Runtime" if measured else "",
        }
    )


def _planned(settings: Settings) -> str:
    """The widths asked for; where none were, that they are the defaults."""
    text = (
        f"W{settings.wbits}A{settings.abits} by {settings.method}, first and last layer {settings.first_last_bits} bits"
    )
    usual = Settings()
    given = (settings.wbits, settings.abits) != (usual.wbits, usual.abits)
    return text if given else f"{text}: the defaults of quantize (--wbits, --abits)"


def _images(measured: Measured) -> str:
    if measured.origin is not None:
        return f"{measured.images} of {measured.origin['images']} made by {measured.origin['data']}"
    return f"{measured.images}" + (f", {len(measured.skipped)} skipped" if measured.skipped else "")


def _layers(plan: Plan, names: Names) -> RenderableType:
    header = ["layer", "op", "weight", "stride", "groups", "parameters", "MACs", "W", "A", ""]
    content = [
        [
            names(layer.name),
            layer.op,
            _times(layer.shape),
            _times(layer.stride),
            str(layer.groups),
            f"{layer.params:,}",
            _count(layer.macs) if layer.macs is not None else "?",
            width(layer.wbits),
            width(layer.abits),
            _notes(layer),
        ]
        for layer in plan.layers
    ]
    less = ("groups", "stride", "weight", "parameters", "MACs")
    return rows(f"{len(plan.layers)} weighted layers", header, content, left=(0, 1, 9), wraps=(9,), less=less)


def _quantizers(plan: Plan, names: Names) -> RenderableType:
    content = []
    for quantizer in plan.activations:
        low = -math.inf if quantizer.low is None else quantizer.low
        high = math.inf if quantizer.high is None else quantizer.high
        absorbs = f"{quantizer.absorbs} [{plain_zero(low, 'g')}, {plain_zero(high, 'g')}]" if quantizer.absorbs else ""
        shared = ", ".join(quantizer.members[1:])
        content.append([names(quantizer.name), str(quantizer.bits), absorbs, shared])
    title = f"{len(plan.activations)} activation quantizers"
    less = ("shares its scale with", "absorbs")
    return rows(
        title, ["tensor", "bits", "absorbs", "shares its scale with"], content, left=(0, 2, 3), names=(0, 3), less=less
    )


def _units(found: Inspection, names: Names) -> RenderableType:
    plan = found.plan
    merged = {i: group for group in plan.merges for i in group}
    content = [
        [str(i + 1), names(unit.name), str(len(unit.layers)), f"{unit.capacity:,.0f}", _partners(merged[i], i)]
        for i, unit in enumerate(plan.units)
    ]
    title = f"{len(plan.units)} reconstruction units"
    if found.settings.method == "nearest":
        title += " (not used: the method nearest learns nothing)"
    elif found.merges_pending:
        title += "; the scheme loss merges some of them after its probing run"
    elif found.settings.method == "mrecg":
        title += f", {len(plan.merges)} after merging by the scheme {found.settings.scheme}"
    header = ["", "unit", "layers", "capacity in bits", "merged"]
    return rows(title, header, content, left=(1, 4), names=(1,))


def _partners(group: Iterable[int], index: int) -> str:
    """The units of ``group`` that unit ``index`` is merged with."""
    others = ", ".join(str(i + 1) for i in group if i != index)
    return f"with {others}" if others else ""


def _streams(measured: Measured) -> RenderableType:
    content = [
        [
            entry.stream.name,
            str(entry.stream.channels),
            f"{entry.spread:.1f}",
            f"{entry.alpha:g}",
            f"{entry.error_before:.4f}",
            f"{entry.error_after:.4f}",
        ]
        for entry in measured.streams
    ]
    title = "streams that can be equalized (alpha 0: left as they are); output error of nearest rounding"
    return rows(title, ["stream", "channels", "largest/median", "alpha", "before", "after"], content)


def _sensitivities(found: Inspection, names: Names) -> RenderableType:
    assert found.measured is not None
    content = [[names(s.name), str(s.bits), f"{s.error:.4f}"] for s in found.measured.sensitivities]
    title = "output error with one quantizer alone, the worst first (--protect N raises the first N below 8 bits)"
    return rows(title, ["tensor", "bits", "relative error"], content)


def _tensor(value: TensorInfo) -> str:
    return f"{value.name} ({', '.join('?' if size is None else str(size) for size in value.shape)}) {value.dtype}"


def _notes(layer: LayerPlan) -> str:
    marks = {"first": layer.first, "last": layer.last, "scale and shift": layer.bridge, "in float": layer.excluded}
    return ", ".join(name for name, on in marks.items() if on)


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in sizes)


def _count(number: int) -> str:
    """``12.34 M`` of what goes into billions; exact below ten thousand: ``2,304``."""
    if number < 10_000:
        return f"{number:,}"
    power = min(3, int(math.log10(number)) // 3)
    return f"{number / 1000**power:.2f} {' kMG'[power]}"
