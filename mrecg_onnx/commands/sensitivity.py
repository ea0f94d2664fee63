"""``mrecg-onnx sensitivity``: which layers and tensors hurt most at which width, and what more bits would bring back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import cloup

from mrecg_onnx.commands._console import VERBOSE, asked, say, show
from mrecg_onnx.commands._errors import guarded
from mrecg_onnx.commands._files import Extras, check_writes, write_json
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._names import Names
from mrecg_onnx.commands._options import (
    calib_option,
    calibration_options,
    image_options,
    labels_option,
    metric_options,
    output_options,
    plan_options,
    report_option,
)
from mrecg_onnx.commands._paths import PATH
from mrecg_onnx.commands._progress import progress
from mrecg_onnx.commands._repeat import argument, given_command, likewise
from mrecg_onnx.commands._sections import IMAGES, Command
from mrecg_onnx.commands._settings import metric_from, settings_from
from mrecg_onnx.commands._tables import grid, rows
from mrecg_onnx.commands.quantize import quantize_command
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.machine import plain_zero

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rich.console import RenderableType

    from mrecg_onnx.inspecting import Quality, Ranked, Ranking

__all__ = ["sensitivity_command"]

#: Layers and tensors on the screen; --verbose and --json have all.
SHOWN = 10


@click.command("sensitivity", cls=Command)
@click.argument("model", type=PATH)
@calib_option
@cloup.option(
    "--data",
    type=PATH,
    group=IMAGES,
    metavar="PATH",
    help="Images on which suggestions are tried, labelled ones for top-1.  [default: the calibration images]",
)
@labels_option
@metric_options
@cloup.option(
    "--limit",
    type=int,
    default=256,
    metavar="N",
    group=IMAGES,
    show_default=True,
    help="Images used at most to try suggestions.",
)
@cloup.option("--top", type=int, default=8, metavar="N", show_default=True, help="Suggestions made.")
@plan_options
@calibration_options
@image_options()
@report_option
@output_options
@click.pass_context
def sensitivity_command(
    ctx: click.Context,
    /,
    *,
    model: Path,
    calib: str | Path,
    data: Path | None,
    labels: str | Path | None,
    limit: int,
    top: int,
    report_file: Path | None,
    json_file: Path | None,
    debug: bool,
    **options: Any,
) -> None:
    """Rank the layers of MODEL by what their quantization costs.

    Weights and activations are quantized one at a time, to every width from 2 to 8 bits (rounding is learned for a few
    iterations where the method learns). For the worst ones more bits, or float, are tried, and what that brings back is shown.

    \b
    mrecg-onnx sensitivity model.onnx --calib images/
    mrecg-onnx sensitivity model.onnx --calib images/ --data labelled_images/ --wbits 3 --json ranking.json
    """  # noqa: D301 - click wants the character, not backslash and b
    with guarded(debug=debug, writes=[path for path in (json_file, report_file) if path]):
        settings = settings_from(options)
        with loading():
            from mrecg_onnx.inspecting import sensitivity

        metric = metric_from(options)
        if labels is not None and data is None:
            raise SettingsError("--labels are for --data: give the images, too")
        check_writes({"--json": json_file, "--report": report_file}, [model])
        if report_file is not None:
            from mrecg_onnx.reporting import report_ranking, require_packages

            require_packages()
        names = Names(model)
        with progress(settings.iters, names) as report:
            found = sensitivity(
                model, calib, settings, data=data, labels=labels, limit=limit, top=top, metric=metric, progress=report
            )
        extras = Extras()
        extras.write(json_file, lambda path: write_json(found.to_json(), path))
        following = ""
        if found.helps and not found.is_noise:
            # A name of its own: that of a run without them is taken by many who come here.
            more = [*found.helpful, ("--output", argument(f"{model.stem}_helped.onnx"))]
            following = likewise(ctx, quantize_command, more)

        def report_to(path: Path) -> None:
            report_ranking(found, path, command=given_command(ctx), following=following)

        show(*_tables(found, names, top, extras.write(report_file, report_to)))
        if following:
            say(err=False)
            say(f"Next, with all that help: {following}", err=False)
        extras.settle()


def _tables(found: Ranking, names: Names, top: int, page: Path | None = None) -> Iterator[RenderableType]:
    settings = found.settings
    yield grid(
        {
            "quantized": f"W{settings.wbits}A{settings.abits}, rounded to nearest: {_worth(found, found.quality)}",
            "float": _worth(found, found.float_quality) if found.labelled or found.metric is not None else "",
            "images": _images(found),
            "skipped": found.skipped,
            "preprocessing": settings.preprocess.describe() if settings.preprocess.source is not None else "",
            "page": str(page or ""),
        }
    )
    yield _ranked(found, names)
    if any(not entry.layers for entry in _shown(found)):
        yield grid({"one width": "what no layer reads (a sum, an output): no option gives it another"})
    if found.suggestions:
        yield _suggestions(found)
    yield grid(
        {
            "noise": found.noise,
            "together": _together(found),
            "suggestions": _none(found, top),
            "warnings": found.warnings,
        }
    )


def _images(found: Ranking) -> str:
    """How many of how many, and what they are worth something by."""
    known = found.available is not None and found.available > found.images
    count = f"{found.images} of {found.available}" if known else str(found.images)
    if found.metric is not None:
        return f"{count}, {'with' if found.targets else 'without'} targets for {found.metric.name}"
    if found.quality.top1 is not None:
        return f"{count}, labelled"
    labels = "labelled" if found.labelled else "no labels"
    if found.quality.agreement is not None:
        return f"{count}, {labels}: agreement with the float network"
    return f"{count}, {labels}, no class scores: error of the outputs against the float network"


def _together(found: Ranking) -> str:
    """Why suggestions that help alone are not offered all at once."""
    if found.together is None or found.helps:
        return ""
    gain = found.gain(found.together)
    return (
        f"those that help alone bring back nothing ({gain}): what each brings may be the noise of {found.images} images"
    )


def _none(found: Ranking, top: int) -> str:
    """Why there are none."""
    if found.suggestions or top == 0:
        return ""
    if found.nothing_lost:
        return f"none: nothing is lost on {found.these}"
    return "none: no option gives what is quantized more bits, or leaves it in float"


def _shown(found: Ranking) -> tuple[Ranked, ...]:
    return found.ranked[: None if asked(VERBOSE) else SHOWN]


def _ranked(found: Ranking, names: Names) -> RenderableType:
    widths = sorted({width for entry in found.ranked for width in entry.losses})

    def losses(by_width: Mapping[int, float]) -> list[str]:
        return [plain_zero(by_width[w], ".2g") if w in by_width else "" for w in widths]

    content = [
        [str(i + 1), names(entry.name), entry.kind, str(entry.bits), *losses(entry.losses)]
        for i, entry in enumerate(_shown(found))
    ]
    left = len(found.ranked) - len(content)
    more = f", and {left} more: --verbose shows them" if left else ""
    header = ["#", "layer or tensor", "", "bits", *(f"at {w}" for w in widths)]
    less = ("at 7", "at 5", "at 6", "at 3")
    return rows(
        f"loss with one alone quantized, the worst first{more}",
        header,
        content,
        left=(1, 2),
        names=(1,),
        wraps=(),
        less=less,
    )


def _suggestions(found: Ranking) -> RenderableType:
    content = [[option, ranks, _worth(found, quality), gain] for ranks, option, quality, gain in found.tried()]
    title = "what more bits, or float, bring back, one at a time, rounded to nearest"
    header = ["option of quantize", "for #", "then", "brings back"]
    return rows(title, header, content, left=(0, 1, 2), names=(), wraps=(2, 3), copied=(0,))


def _worth(found: Ranking, quality: Quality) -> str:
    return " ".join(found.figure(quality))
