"""``mrecg-onnx compare``: several methods at several widths on one model, one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from mrecg_onnx.commands._completion import listed, offering
from mrecg_onnx.commands._console import FORCE, asked, show, warn
from mrecg_onnx.commands._errors import Failure, guarded, interrupted
from mrecg_onnx.commands._files import Extras, check_writes, write_json
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._options import (
    CALIBRATION,
    calibration_options,
    force_option,
    image_options,
    labels_option,
    learning_options,
    metric_options,
    output_options,
    outputs_option,
    plan_options,
    report_option,
)
from mrecg_onnx.commands._paths import PATH
from mrecg_onnx.commands._progress import cells
from mrecg_onnx.commands._repeat import given_command
from mrecg_onnx.commands._sections import BITS, IMAGES, METHOD, Command, all_but
from mrecg_onnx.commands._settings import metric_from, settings_from
from mrecg_onnx.commands._tables import grid, rows
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.text import counted
from mrecg_onnx.methods import METHODS

if TYPE_CHECKING:
    from mrecg_onnx.comparing import Comparison

__all__ = ["compare_command"]


@click.command("compare", cls=Command)
@click.argument("model", type=PATH)
@cloup.option(
    "--calib",
    type=CALIBRATION,
    required=True,
    group=IMAGES,
    metavar="PATH|zeroq",
    help="Folder of images, .npy/.npz of inputs, or zeroq: images made from the model.",
)
@cloup.option(
    "--data",
    type=PATH,
    required=True,
    group=IMAGES,
    help="Images to validate on; folder names are their labels.",
)
@labels_option
@metric_options
@outputs_option
@cloup.option("--limit", type=int, metavar="N", group=IMAGES, help="Images of --data used at most.")
@cloup.option("-o", "--output", "folder", type=PATH, required=True, metavar="DIR", help="Folder for all that is made.")
@cloup.option(
    "--methods",
    default="nearest,adaround,brecq,qdrop,mrecg",
    group=METHOD,
    metavar="NAME,...",
    show_default=True,
    shell_complete=listed(METHODS),
    help="Methods to compare; names as in quantize --method.",
)
@cloup.option(
    "--base-method",
    group=METHOD,
    metavar="NAME",
    shell_complete=offering(METHODS),
    help="The one McNemar's test compares with.  [default: the first]",
)
@cloup.option(
    "--bits",
    "widths",
    default="W4A4",
    group=BITS,
    metavar="W4A4,...",
    show_default=True,
    help="Widths of weights and activations to compare.",
)
@cloup.option(
    "--layer-bits",
    "bits",
    multiple=True,
    group=BITS,
    metavar="REGEX=W8A8",
    help="Bits of single layers by name, in all cells; repeatable.",
)
@cloup.option("--latency-batch", type=int, default=1, metavar="N", help="Images a timed run.", show_default=True)
@cloup.option(
    "--repeats", type=int, default=50, metavar="N", help="Timed runs of each file; 0: no timing.", show_default=True
)  # fmt: skip
@all_but(plan_options, "wbits", "abits", "bits", "method")
@all_but(learning_options, "checkpoint")
@calibration_options
@image_options()
@report_option
@force_option
@output_options
@click.pass_context
def compare_command(
    ctx: click.Context,
    /,
    *,
    model: Path,
    calib: Path,
    data: Path,
    labels: str | Path | None,
    limit: int | None,
    outputs: tuple[str, ...],
    folder: Path,
    methods: str,
    base_method: str | None,
    widths: str,
    latency_batch: int,
    repeats: int,
    report_file: Path | None,
    json_file: Path | None,
    debug: bool,
    **options: Any,
) -> None:
    """Quantize MODEL by several methods at several widths and compare them.

    Every combination is quantized and validated in a process of its own, in order. What is finished is kept in DIR: the
    same command goes on from there, also inside a combination, and more methods or widths can be added later. DIR gets the
    quantized files and the table as comparison.md, .csv, .json and .png.

    \b
    mrecg-onnx compare model.onnx --calib images/ --data labelled_images/ --methods nearest,qdrop,mrecg --bits W4A4,W2A4 -o out/
    """  # noqa: D301 - click wants the character, not backslash and b
    with guarded(debug=debug, writes=[path for path in (json_file, report_file) if path]):
        settings, metric = settings_from(options), metric_from(options)
        names, bits = _names("--methods", methods), _names("--bits", widths)

        with loading():
            from mrecg_onnx.comparing import compare

        if report_file is not None:
            from mrecg_onnx.reporting import report_comparison, require_packages

            require_packages()
        check_writes({"--json": json_file, "--report": report_file}, [model])

        with cells(settings.iters) as report:
            try:
                result = compare(
                    model,
                    calib,
                    data,
                    folder,
                    methods=names,
                    bits=bits,
                    settings=settings,
                    base_method=base_method,
                    labels=labels,
                    limit=limit,
                    outputs=outputs or None,
                    latency_batch=latency_batch,
                    repeats=repeats,
                    metric=metric,
                    force=asked(FORCE),
                    progress=report,
                )
            except KeyboardInterrupt as error:
                raise interrupted(_kept(report.finished, folder), error) from error
        extras = Extras()
        extras.write(json_file, lambda path: write_json(result.to_json(), path))
        _summary(
            result, extras.write(report_file, lambda path: report_comparison(result, path, command=given_command(ctx)))
        )
        extras.settle(f"all else is in {folder}, and the same command makes it from there")
        if result.failed:
            what = ", ".join(cell.name for cell in result.failed)
            raise Failure(f"{len(result.failed)} of {counted(len(result.cells), 'cell')} failed: {what}")


def _names(option: str, text: str) -> list[str]:
    """The parts of a list with commas.

    Raises:
        SettingsError: there are none, or one is empty.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise SettingsError(f"{option} '{text}': expected names with commas between them")
    return parts


def _kept(finished: int, folder: Path) -> str:
    if finished == 0:
        return f"no cell is finished yet; units that are done are kept in {folder}, and the same command goes on there"
    be = "is" if finished == 1 else "are"
    return f"{counted(finished, 'cell')} {be} finished and kept in {folder}; the same command goes on there"


def _summary(result: Comparison, page: Path | None) -> None:
    from mrecg_onnx.comparing import minor, table, timed

    headings, content = table(result)
    wraps, less = (len(headings) - 1,), minor(result)
    for warning in result.warnings:
        warn(warning)
    pairs = {
        "images": f"{result.images}" if result.images else "",
        "latency": timed(result) if result.fp32_latency_s is not None else "",
        "preprocessing": result.settings.preprocess.describe() if result.settings.preprocess.source is not None else "",
        "written": [str(path) for path in result.written],
        "page": str(page or ""),
    }
    show(
        rows(f"{result.model.name}", headings, content, left=(0, 1), wraps=wraps, less=less),
        grid(pairs),
    )
