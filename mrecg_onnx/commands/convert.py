"""``mrecg-onnx convert``: a quantized file for another target or in another container, without calibrating again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mrecg_onnx.commands._console import show
from mrecg_onnx.commands._errors import guarded
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._options import CONTAINER, PATH, TARGET
from mrecg_onnx.commands._sections import Command, Option
from mrecg_onnx.commands._tables import grid, mebibytes, ratio

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from mrecg_onnx.conversion import Conversion

__all__ = ["convert_command"]


@click.command("convert", cls=Command)
@click.argument("quantized", metavar="QUANT.onnx", type=PATH)
@click.option("--container", cls=Option, **CONTAINER)
@click.option("--target", cls=Option, **TARGET)
@click.option(
    "-o",
    "--output",
    "out",
    type=PATH,
    cls=Option,
    metavar="OUT",
    help="The file to write.  [default: <QUANT>_<target>_<container>.onnx in this folder]",
)
@click.option("--debug", is_flag=True, cls=Option, help="Show log messages, and the traceback of an error.")
def convert_command(
    *, quantized: Path, container: str | None, target: str | None, out: Path | None, debug: bool
) -> None:
    """Rewrite QUANT.onnx, a result of quantize, for another target or container.

    Nothing is calibrated or trained again; the result computes the same, which is checked on ONNX Runtime.

    \b
    mrecg-onnx convert model_w4a4.onnx --container packed -o small.onnx
    mrecg-onnx convert model_w4a4.onnx --target tensorrt
    """  # noqa: D301 - click wants the character, not backslash and b
    from pathlib import Path

    parts = [Path(target).stem if target else "", container or ""]
    out = out or Path("_".join([quantized.stem, *filter(None, parts if any(parts) else ["converted"])]) + ".onnx")
    with guarded(debug=debug, writes=[out]):
        with loading():
            from mrecg_onnx.conversion import convert

        show(_summary(convert(quantized, container, target, output=out)))


def _summary(result: Conversion) -> RenderableType:
    sizes = f"{mebibytes(result.size)} against {mebibytes(result.size_before)}"
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
