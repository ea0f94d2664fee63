"""``mrecg-onnx report``: a page on a finished file, from its metadata and what is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import cloup

from mrecg_onnx.commands._console import say
from mrecg_onnx.commands._errors import guarded
from mrecg_onnx.commands._files import check_writes
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._options import image_options, labels_option, metric_options, talk_options
from mrecg_onnx.commands._paths import FILE, PATH
from mrecg_onnx.commands._repeat import stored_command
from mrecg_onnx.commands._sections import IMAGES, Command
from mrecg_onnx.commands._settings import metric_from, preprocess_from
from mrecg_onnx.commands.quantize import quantize_command
from mrecg_onnx.commands.validate import stored_or_beside

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["report_command"]


@click.command("report", cls=Command)
@click.argument("quantized", type=PATH, metavar="QUANT.onnx")
@cloup.option("--against", type=PATH, metavar="FP32.onnx", help="The float model it was made from.")
@cloup.option(
    "--data",
    type=PATH,
    group=IMAGES,
    metavar="PATH",
    help="Images to run both on; labelled ones for top-1.",
)
@labels_option
@metric_options
@cloup.option("--limit", type=int, metavar="N", group=IMAGES, help="Images used at most.")
@image_options(stored="QUANT")
@cloup.option("-o", "--output", "out", type=FILE, required=True, metavar="OUT.html", help="The page to write.")
@talk_options
def report_command(
    *, quantized: Path, against: Path | None, data: Path | None, out: Path, debug: bool, **options: Any
) -> None:
    """Write a page on QUANT.onnx, a result of quantize.

    One HTML file without anything beside it: widths, settings and needs from the file's metadata; with --against and --data
    also accuracy, every layer's error, the worst tensors and images on which the two differ.

    \b
    mrecg-onnx report model_mrecg_w4a8.onnx -o page.html
    mrecg-onnx report model_mrecg_w4a8.onnx --against model.onnx --data labelled_images/ -o page.html
    """  # noqa: D301 - click wants the character, not backslash and b
    with guarded(debug=debug, writes=[out]):
        with loading():
            from mrecg_onnx.converters import load_model
            from mrecg_onnx.converters.kinds import require_kind
            from mrecg_onnx.inspecting import inspect_result
            from mrecg_onnx.reporting import report, require_packages

            require_packages()
            from mrecg_onnx.running import specs_of

        require_kind(out, "page", "--output")
        check_writes({"--output": out}, [quantized, *([against] if against is not None else [])])
        found = inspect_result(quantized)
        specs = specs_of(load_model(quantized), str(quantized))
        given = preprocess_from(options, lambda: stored_or_beside(against, quantized))
        report(
            quantized,
            out,
            against=against,
            data=data,
            labels=options["labels"],
            preprocess=given,
            limit=options["limit"],
            metric=metric_from(options),
            command=stored_command(found, quantize_command, model=str(against or "MODEL.onnx"), specs=specs),
        )
        say(f"page           {out}", err=False)
