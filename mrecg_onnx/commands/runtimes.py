"""``mrecg-onnx runtimes``: one file in every runtime that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from mrecg_onnx.commands._completion import offering, runtimes_known
from mrecg_onnx.commands._console import VERBOSE, asked, show
from mrecg_onnx.commands._errors import guarded
from mrecg_onnx.commands._files import Extras, check_writes, write_json
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._options import image_options, output_options
from mrecg_onnx.commands._paths import PATH
from mrecg_onnx.commands._progress import counter
from mrecg_onnx.commands._runtimes import details, summary
from mrecg_onnx.commands._sections import IMAGES, Command
from mrecg_onnx.commands._settings import preprocess_from
from mrecg_onnx.converters.metadata_keys import VERSION_KEY
from mrecg_onnx.machine import parse_byte_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto

    from mrecg_onnx.data import Preprocess

__all__ = ["runtimes_command"]


@click.command("runtimes", cls=Command)
@click.argument("file", metavar="FILE.onnx", type=PATH)
@cloup.option(
    "--against",
    type=PATH,
    metavar="FP32.onnx",
    help="The float model: its time in the same runtime is compared.",
)
@cloup.option(
    "--only",
    multiple=True,
    metavar="NAME",
    shell_complete=offering(runtimes_known),
    help="One runtime, by its short name: opencv, tvm, onnxruntime-web, ... (a wrong one lists all); repeatable.  [default: all]",
)
@cloup.option(
    "--python",
    "pythons",
    multiple=True,
    type=PATH,
    metavar="PATH",
    help="Python of another environment whose runtimes are tried, too; it needs numpy and the runtime alone. Repeatable.",
)
@cloup.option(
    "--data",
    "--calib",
    "data",
    type=PATH,
    metavar="PATH",
    group=IMAGES,
    help="Folder of images, or .npy/.npz of inputs.  [default: normal random numbers]",
)
@cloup.option(
    "--samples",
    type=int,
    default=64,
    metavar="N",
    group=IMAGES,
    show_default=True,
    help="Items compared at most.",
)
@cloup.option("--batch", type=int, metavar="N", help="Items a run.  [default: what FILE fixes, else 1]")
@cloup.option(
    "--threads",
    type=int,
    default=1,
    metavar="N",
    show_default=True,
    help="Threads inside an operator; 0: each runtime's own choice.",
)
@cloup.option("--runs", type=int, default=20, metavar="N", show_default=True, help="Timed runs; 0: no timing.")
@cloup.option(
    "--timeout",
    type=float,
    default=300.0,
    metavar="SECONDS",
    show_default=True,
    help="What one runtime may take.",
)
@cloup.option(
    "--memory",
    metavar="SIZE",
    help="Memory one runtime may take, such as 2GB.  [default: half of what is free]",
)
@image_options(stored="FILE")
@output_options
def runtimes_command(
    *, file: Path, data: Path | None, against: Path | None, json_file: Path | None, debug: bool, **options: Any
) -> None:
    """Open FILE in every runtime that is installed, each in a process of its own.

    Says whether it loads, whether it predicts what the graph as written does on ONNX Runtime, whether convolutions and products
    run on integers, and its time against the float model. What crashes or hangs is a row that says so.

    \b
    mrecg-onnx runtimes model_mrecg_w4a8.onnx --against model.onnx --data images/
    mrecg-onnx runtimes model_mrecg_w4a8.onnx --only opencv --only tvm --python ~/tvm/bin/python
    """  # noqa: D301 - click wants the character, not backslash and b
    with guarded(debug=debug, writes=[json_file] if json_file else []):
        check_writes({"--json": json_file}, [file, *([against] if against else [])])
        memory = parse_byte_size("--memory", options["memory"]) if options["memory"] is not None else None

        with loading():
            from mrecg_onnx.running import runtimes

        feeds = _inputs(file, against, data, options) if data is not None else None
        with counter("runtimes") as report:
            found = runtimes(
                file,
                feeds,
                against=against,
                read_back=_read_back,
                only=options["only"],
                python=options["pythons"],
                samples=options["samples"],
                batch=options["batch"],
                threads=options["threads"] or None,
                runs=options["runs"],
                timeout=options["timeout"],
                memory=memory,
                progress=report,
            )
        extras = Extras()
        extras.write(json_file, lambda path: write_json(found.to_json(), path))
        show(*summary(found, data, _form(file)), *(details(found) if asked(VERBOSE) else ()))
        extras.settle()


def _inputs(file: Path, against: Path | None, data: Path, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Images or arrays as the file's inputs."""
    from mrecg_onnx.data import open_validation
    from mrecg_onnx.running import read_graph, specs_of

    def stored() -> Preprocess:
        return _stored(file, against)

    specs = specs_of(read_graph(file), str(file))
    preprocess = preprocess_from(options, stored) or stored()
    return open_validation(data, specs, preprocess, "none", options["samples"]).load()


def _read_back(model: ModelProto) -> ModelProto | None:
    """What ONNX Runtime runs in the place of a file with Quant nodes; None where it runs the file, or nothing is read back."""
    from mrecg_onnx.converters.errors import MrecgError
    from mrecg_onnx.writing import runnable

    try:
        found = runnable(model)
    except (MrecgError, OSError):
        return None
    return None if found is model else found


def _stored(file: Path, against: Path | None) -> Preprocess:
    """How images become inputs: what the file says of itself, or lies beside the float model."""
    from mrecg_onnx.data import Preprocess, beside
    from mrecg_onnx.running import read_graph
    from mrecg_onnx.validating import preprocess_of

    metadata = {entry.key: entry.value for entry in read_graph(file).metadata_props}
    return preprocess_of(metadata, str(file)) or (beside(against) if against is not None else None) or Preprocess()


def _form(file: Path) -> tuple[str, str] | None:
    """Target and container of a result of quantize; None for a file of another tool."""
    from mrecg_onnx.converters.errors import ModelError
    from mrecg_onnx.running import read_graph
    from mrecg_onnx.writing import container_of, target_of

    model = read_graph(file)
    if all(entry.key != VERSION_KEY for entry in model.metadata_props):
        return None
    try:
        return target_of(model, str(file)), container_of(model, str(file))
    except ModelError:  # what runtimes say of it was asked for; convert says what is wrong with its metadata
        return None
