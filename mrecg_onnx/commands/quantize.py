"""``mrecg-onnx quantize``: an FP32 model and images in, a low-bit model out."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from mrecg_onnx.commands._config import config_beside, resolved
from mrecg_onnx.commands._console import VERBOSE, asked, say, show, warn
from mrecg_onnx.commands._dry_run import foreseen, from_the_start
from mrecg_onnx.commands._durations import so_far
from mrecg_onnx.commands._errors import guarded
from mrecg_onnx.commands._files import CONFIG, STDOUT, Extras, check_new, check_writes, write_json
from mrecg_onnx.commands._loading import loading
from mrecg_onnx.commands._names import Names
from mrecg_onnx.commands._options import (
    budget_options,
    calib_option,
    calibration_options,
    force_option,
    image_options,
    learning_options,
    output_options,
    plan_options,
    report_option,
)
from mrecg_onnx.commands._paths import FILE, PATH
from mrecg_onnx.commands._presets import given_beside, preset_option
from mrecg_onnx.commands._progress import progress
from mrecg_onnx.commands._repeat import argument, given_command
from mrecg_onnx.commands._sections import RUN, Command, option
from mrecg_onnx.commands._settings import metric_from, preprocess_from, settings_from
from mrecg_onnx.commands._summary import at_once, details, summary, used_images
from mrecg_onnx.commands._unused import unused_options
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.files import claimed
from mrecg_onnx.converters.kinds import require_kind
from mrecg_onnx.converters.results import write_text
from mrecg_onnx.machine import is_first
from mrecg_onnx.measures import named_detections

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrecg_onnx.quantization import QuantizationResult
    from mrecg_onnx.settings import Settings

__all__ = ["quantize_command"]

#: What stands for data of the user's.
_ARRAYS = "ARRAYS.npz"


@click.command("quantize", cls=Command)
@click.argument("model", type=PATH)
@calib_option
@cloup.option(
    "-o",
    "--output",
    "out",
    type=FILE,
    metavar="OUT",
    help="The file to write.  [default: <model>_<method>_w4a4.onnx in this folder]",
)
@force_option
@preset_option
@option(
    RUN,
    "--dry-run",
    is_flag=True,
    help="Say what would be done and written, and about how much time and memory it takes, and stop there.",
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
    dry_run: bool,
    **options: Any,
) -> None:
    """Quantize MODEL to low bits with learned rounding.

    MODEL is an FP32 ONNX file; the result is a QDQ model in ONNX's standard domain, checked on ONNX Runtime.

    \b
    mrecg-onnx quantize model.onnx --calib images/ --wbits 4 --abits 8
    mrecg-onnx quantize model.onnx --calib images/ --wbits 2 --abits 4 --bits 'head=W8A8' -o small.onnx
    mrecg-onnx quantize model.onnx --calib images/ --size-budget 1.8MB
    mrecg-onnx quantize model.onnx --calib images/ --report page.html
    mrecg-onnx quantize model.onnx --calib images/ --preset best --dry-run
    """  # noqa: D301 - click wants the character, not backslash and b
    budgets = [options[name] for name in ("size_budget", "avg_wbits", "max_drop")]
    widths = f"w{options['wbits']}" if budgets == [None] * 3 else "mixed_"
    out = out or Path(f"{model.stem}_{options['method']}_{widths}a{options['abits']}.onnx")
    config, options_used = config_beside(ctx, out), resolved(ctx, shlex.quote(argument(model)))
    writes = [path for path in (out, json_file, report_file, config) if path]
    with guarded(debug=debug, writes=writes, kept=lambda: _kept(checkpoint)), ExitStack() as claims:
        settings, metric = settings_from(options), metric_from(options)
        _check_paths(model, out, json_file, report_file, config, new=not dry_run)
        given = given_beside(ctx)
        if report_file is not None:
            from mrecg_onnx.reporting import require_packages

            require_packages()
            given = [name for name in given if name not in {"data", "labels", "metric"}]  # the page measures on them
        for sentence in unused_options(settings, given, calib):
            warn(sentence)
        if dry_run:
            if settings.max_drop is not None and data is None:
                raise SettingsError("--max-drop needs --data: images on which the drop is measured")
            _foresee(model, calib, settings, writes, json_file)
            return

        if is_first():
            claims.enter_context(
                claimed(out, ahead=True)
            )  # before all that takes time: another run may have begun, or ended meanwhile
            check_new(out)
        with loading():
            from mrecg_onnx.quantization import quantize

        names = Names(model)
        with progress(settings.iters, names) as report:
            result = quantize(
                model,
                calib,
                settings,
                output=out,
                checkpoint=checkpoint,
                data=data,
                labels=labels,
                metric=metric,
                progress=report,
            )
        if not is_first():
            return
        if config is not None:
            write_text(options_used, config)
        extras = Extras()
        extras.write(json_file, lambda path: write_json(result.to_json(), path))

        def report_to(path: Path) -> None:
            from mrecg_onnx.reporting import report_quantization

            report_quantization(result, path, data=data, labels=labels, metric=metric, command=given_command(ctx))

        page = extras.write(report_file, report_to)
        stated = preprocess_from(options)
        show(summary(result, model, names, stated=stated, data=data is not None, page=page))
        if asked(VERBOSE):
            show(details(result, names))
        say(err=False)
        say(f"Next: {_next(ctx, result, model, out)}", err=False)
        extras.settle(
            f"{out} is written, and `mrecg-onnx report {shlex.quote(argument(out))} -o PAGE.html` makes a page of it"
        )


def _next(ctx: click.Context, result: QuantizationResult, model: Path, out: Path) -> str:
    """The command that says what the result is worth, or what it takes where nothing does."""
    program, both = ctx.find_root().command_path.split(), [argument(model), argument(out)]
    if at_once(result) > 1:
        return shlex.join([*program, "benchmark", *both])
    if result.settings.container != "qonnx":
        return shlex.join([*program, "validate", *both, *_validated_on(ctx, result)])
    # What ONNX Runtime runs of Quant nodes is the file that says the same without them.
    convert = [*program, "convert", both[1], "--container", "int8"]
    both[1] = argument(Path(f"{out.stem}_int8.onnx"))
    return f"{shlex.join(convert)} && {shlex.join([*program, 'validate', *both, *_validated_on(ctx, result)])}"


def _validated_on(ctx: click.Context, result: QuantizationResult) -> list[str]:
    """Options of ``validate`` for data like those of this run: the same, or what stands for them."""
    given = {name: ctx.params.get(name) for name in ("data", "labels", "metric")}
    if given["data"] is None:
        given["data"] = "LABELLED_IMAGES/" if used_images(result) or result.origin is not None else _ARRAYS
        if result.verification.agreement_float is None:  # no classes: what it is worth says a metric
            detector = named_detections(output.name for output in result.model.graph.output)
            if (
                given["metric"] is None and detector and given["data"] != _ARRAYS
            ):  # arrays have their targets beside them
                given["labels"] = given["labels"] or "BOXES.json"
            given["metric"] = given["metric"] or ("mAP" if detector else "MODULE:FUNCTION")
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    return [*words, "--lower-is-better"] if ctx.params.get("lower_is_better") else words


def _foresee(
    model: Path, calib: str | Path, settings: Settings, writes: Sequence[Path], json_file: Path | None
) -> None:
    """Say what the run would be; nothing is written, JSON only to standard output."""
    with loading():
        from mrecg_onnx.inspecting import estimate

    before, names = so_far(), Names(model)
    with progress(settings.iters, names) as report:
        found = from_the_start(estimate(model, calib, settings, progress=report), before)
    if not is_first():
        return
    if json_file == STDOUT:
        write_json(found.to_json(), STDOUT)
    show(*foreseen(found, model, [path for path in writes if path != STDOUT], names))


def _kept(checkpoint: Path | None) -> str:
    """What an interrupted run leaves to go on from."""
    if checkpoint is None:
        return "with --checkpoint DIR the same command goes on where it was interrupted"
    count = sum(1 for _ in checkpoint.rglob("*.pt"))
    if count == 0:
        return "no unit is kept yet"
    units = "1 unit is" if count == 1 else f"{count} units are"
    return f"{units} kept in {checkpoint}: the same command goes on there"


def _check_paths(
    model: Path, out: Path, json_file: Path | None, report_file: Path | None, config: Path | None, *, new: bool
) -> None:
    files = (("--json", json_file, [out, config]), ("--report", report_file, [out, config, json_file]))
    for named, path, others in (*files, ("the file of options", config, [out])):
        if path is not None and path.resolve() in {other.resolve() for other in others if other is not None}:
            if path is config:
                raise SettingsError(
                    f"--output {out} is the name of the options that are written beside it: let it end in .onnx"
                )
            raise SettingsError(f"{named} {path} is an output file: choose another file")
    given = click.get_current_context().meta.get(CONFIG)
    anew = given is not None and config is not None and given.resolve() == config.resolve()  # with --force
    check_writes(
        {
            "--output": out,
            "--json": json_file,
            "--report": report_file,
            "the file of options": None if anew else config,
        },
        [model],
    )
    if new:
        require_kind(out, "model", "--output")
    for path in filter(None, (out, config) if new else ()):
        check_new(path)
