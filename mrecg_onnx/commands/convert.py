"""``mrecg-onnx convert``: a quantized file for another target or in another container, without calibrating again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import cloup

from mrecg_onnx.commands._console import show
from mrecg_onnx.commands._errors import guarded
from mrecg_onnx.commands._files import Extras, check_new, check_writes, write_json
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._options import CONTAINER, TARGET, force_option, output_options
from mrecg_onnx.commands._paths import FILE, PATH
from mrecg_onnx.commands._progress import counter
from mrecg_onnx.commands._sections import Choice, Command
from mrecg_onnx.commands._tables import grid
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.kinds import require_kind
from mrecg_onnx.machine import byte_size, ratio

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from mrecg_onnx.conversion import Conversion
    from mrecg_onnx.litert import LiteRTFile

__all__ = ["convert_command"]


@click.command("convert", cls=Command)
@click.argument("quantized", metavar="QUANT.onnx", type=PATH)
@cloup.option(
    "--to",
    type=Choice(["onnx", "tflite"]),
    default="onnx",
    help="An ONNX file, or a flatbuffer of LiteRT (TensorFlow Lite) with integer kernels, whose filters --container packed "
    "stores in int4 where they fit.",
)
@cloup.option("--container", **CONTAINER | {"help": f"{CONTAINER['help']}  [default: as in QUANT]"})
@cloup.option("--target", **TARGET | {"help": f"{TARGET['help']}  [default: as in QUANT]"})
@cloup.option(
    "--batch",
    type=int,
    metavar="N",
    help="Fix the batch size: some compilers (IREE) take no free one.  [default: as it is]",
)
@cloup.option(
    "-o",
    "--output",
    "out",
    type=FILE,
    metavar="OUT",
    help="The file to write.  [default: <QUANT>_<target>_<container>_batch<N>.onnx in this folder, <QUANT>_<container>.tflite]",
)
@force_option
@output_options
def convert_command(
    *,
    quantized: Path,
    to: str,
    container: str | None,
    target: str | None,
    batch: int | None,
    out: Path | None,
    json_file: Path | None,
    debug: bool,
) -> None:
    """Rewrite QUANT.onnx, a result of quantize, for another target or container.

    Nothing is calibrated or trained again; the result computes the same, which is checked on ONNX Runtime.

    \b
    mrecg-onnx convert model_mrecg_w4a8.onnx --container packed -o small.onnx
    mrecg-onnx convert model_mrecg_w4a8.onnx --target openvino
    mrecg-onnx convert model_mrecg_w4a8.onnx --target portable --batch 1
    mrecg-onnx convert model_mrecg_w4a8.onnx --to tflite
    """  # noqa: D301 - click wants the character, not backslash and b
    from pathlib import Path

    if to == "tflite" and target:
        raise click.UsageError("--to tflite is a target of its own: leave out --target")
    if to == "tflite" and batch is not None:
        raise click.UsageError("--to tflite: leave out --batch, which fixes that of ONNX files")
    if to == "onnx" and out is not None and out.suffix == ".tflite":
        raise click.UsageError(f"{out} would be an ONNX file: add --to tflite")
    parts = list(
        filter(
            None, [Path(target).stem if target else "", container or "", f"batch{batch}" if batch is not None else ""]
        )
    )
    if to == "onnx":
        parts = parts or ["converted"]
    out = out or Path("_".join([quantized.stem, *parts]) + f".{to}")
    with guarded(debug=debug, writes=[path for path in (out, json_file) if path]):
        if json_file is not None and json_file.resolve() == out.resolve():
            raise SettingsError(f"--json {json_file} is an output file: choose another file")
        check_writes({"--output": out, "--json": json_file}, [quantized])
        require_kind(out, "tflite" if to == "tflite" else "model", "--output")
        check_new(out)
        with loading():
            from mrecg_onnx.conversion import convert

        with counter("convert"):
            result: Conversion | LiteRTFile
            if to == "tflite":
                result = convert(quantized, container, to="tflite", output=out)
                summary = _litert_summary(result)
            else:
                result = convert(quantized, container, target, batch=batch, output=out)
                summary = _summary(result)
        extras = Extras()
        extras.write(json_file, lambda path: write_json(result.to_json(), path))
        show(summary)
        extras.settle(f"{out} is written")


def _summary(result: Conversion) -> RenderableType:
    sizes = f"{byte_size(result.size)} against {byte_size(result.size_before)}"
    return grid(
        {
            "output": f"{result.output}, {sizes}, {ratio(result.size_before, result.size, 'smaller', 'larger')}",
            "target": " -> ".join(dict.fromkeys((result.before[0], result.after[0]))),
            "container": " -> ".join(dict.fromkeys((result.before[1], result.after[1]))),
            "outputs": "the same bit for bit, both graphs run as written on noise"
            if result.compared
            else "not compared: the input's sizes are free",
            "opened by": result.opened.line(),
            "notes": list(result.notes),
        }
    )


def _litert_summary(result: LiteRTFile) -> RenderableType:
    sizes = f"{byte_size(len(result.content))} against {byte_size(result.size_before)}"
    last = [name for name, order in result.layouts.items() if order != tuple(sorted(order))]
    return grid(
        {
            "output": f"{result.output}, {sizes}",
            "operators": ", ".join(f"{name} {count}" for name, count in result.operators.items()),
            "channels last": ", ".join(last) or "nothing that comes in or out",
            "opened by": result.opened.line(),
            "notes": list(result.notes),
        }
    )
