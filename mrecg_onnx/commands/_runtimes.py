"""What runtimes made of a file: on one screen what opened, what agrees and what to do, and all that was found with --verbose."""

from __future__ import annotations

import re
import shlex
import sys
from typing import TYPE_CHECKING

from mrecg_onnx.commands._repeat import argument
from mrecg_onnx.commands._tables import grid, rows
from mrecg_onnx.machine import milliseconds, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from mrecg_onnx.running import Attempt, RuntimesReport

__all__ = ["details", "summary"]

#: Targets whose grids are settled when ranges are found: convert does not make them of a file for another one.
_BY_QUANTIZE = ("tensorrt", "qonnx")


def summary(found: RuntimesReport, data: Path | None, form: tuple[str, str] | None) -> Iterator[RenderableType]:
    """What a user decides by.

    Args:
        found: of all runtimes.
        data: what they were fed; None for noise.
        form: target and container of the file; None for one of another tool.
    """
    threads = "each runtime's own" if found.threads is None else str(found.threads)
    yield grid(
        {
            "file": found.file + (f" against {found.against}" if found.against else ""),
            "data": f"{found.items} items of {data or 'noise'}, batch {found.batch}, threads: {threads}",
            "compared with": found.reference + ("; speed 2x: half FP32's time" if found.against else ""),
        }
    )
    tried = found.installed
    if tried:
        yield _short_table(found, tried)
    run = [one for one in tried if one.runs]
    told = [one for one in run if found.agrees(one) is not None]
    agree = sum(map(bool, map(found.agrees, told)))
    yield grid(
        {
            "opened": [f"{len(run)} of {len(tried)} installed", *(_failed(one) for one in tried if not one.runs)],
            "agree": [
                f"{agree} of {len(told)} (wanted: {found.wanted})" if told else "not known: nothing was compared",
                *(f"{one.label} does not: {found.likeness(one)}" for one in told if not found.agrees(one)),
            ]
            if run
            else "",
            "fastest": _fastest(run),
            "to do": list(_to_do(found, form)),
            "not tried": _passed_over(found),
            "not installed": _missing(found),
        }
    )


def _short_table(found: RuntimesReport, tried: tuple[Attempt, ...]) -> RenderableType:
    content = [
        [
            one.label,
            "no" if not one.runs else "yes" if one.fixed_batch is None else f"batch {one.fixed_batch}",
            _agrees(found, one),
            "-" if not one.sqnr_by_output else f"{min(one.sqnr_by_output.values()):.1f} dB",
            "-" if one.arithmetic is None else f"{one.arithmetic.integer} of {one.arithmetic.layers}",
            "-" if one.median_s is None else f"{milliseconds(one.median_s)} ms",
            *([_speed(one)] if found.against else []),
        ]
        for one in tried
    ]
    header = ["runtime", "runs", "agrees", "SQNR", "integer", "time", *(["speed"] if found.against else [])]
    return rows("", header, content, left=(0, 1), names=(), wraps=(0,), less=("integer", "SQNR"))


def _agrees(found: RuntimesReport, one: Attempt, of: str = "") -> str:
    """The share of equal predictions where they count, else whether the worst output is near enough."""
    if not one.runs:
        return "-"
    if one.agreement is not None and not found.noise:
        return f"{one.agreement:.1%}{of}"
    return {None: "not known", True: "yes", False: "no"}[found.agrees(one)]


def _failed(one: Attempt) -> str:
    return f"{one.label} {'opens it and does not run it' if one.loads else 'does not'}: {one.reason}"


def _fastest(run: list[Attempt]) -> str:
    timed = [(one.median_s, one) for one in run if one.median_s is not None]
    if len(timed) < 2:
        return ""
    seconds, one = min(timed, key=lambda pair: pair[0])
    against = f", {_ratio(one.time_ratio)} than FP32 there" if one.time_ratio is not None else ""
    against = against.replace("the same than", "the same as")
    return f"{one.label}, {milliseconds(seconds)} ms a batch{against}"


def _to_do(found: RuntimesReport, form: tuple[str, str] | None) -> Iterator[str]:
    """What helps those that do not run the file, or compute something else; one line for all that it helps."""
    helps: dict[str, list[str]] = {}
    for one in found.installed:
        if not one.runs or found.agrees(one) is False or one.fixed_batch is not None:
            helps.setdefault(_help(one, found, form), []).append(one.label)
    for what, labels in helps.items():
        yield f"{'; '.join(labels)}: {what}"


#: What runtimes say of libraries that are not there; the form of a file is not at fault then.
_LACKS = re.compile(r"could not be loaded|cannot open shared object|please install", re.IGNORECASE)


def _help(one: Attempt, found: RuntimesReport, form: tuple[str, str] | None) -> str:
    """What helps one of them."""
    from mrecg_onnx.running import RUNTIMES

    wanted = RUNTIMES[one.name].form
    if not one.loads and _LACKS.search(one.reason):
        return "no other form of the file helps: libraries are missing beside it, as its message says"
    if one.reason.startswith("stopped") and not one.runs:
        return "a longer --timeout or more --memory; else docs/deployment.md 3"
    if form is None and one.runs and found.agrees(one) is not False:
        return f"takes no free batch: fix {one.fixed_batch} in the model"
    target, container = form or ("", "")
    options = []
    if wanted and wanted != target:
        if target != "ort" or wanted in _BY_QUANTIZE:
            return f"quantize with --target {wanted}" + (
                " (files for ort are converted to most targets)" if form else ""
            )
        options += ["--target", wanted]
    elif container not in {"int8", ""} and (not one.runs or found.agrees(one) is False):
        options += ["--container", "int8"]
    if one.fixed_batch is not None:
        options += ["--batch", str(one.fixed_batch)]
    if not options and form and wanted == target and one.runs:
        return "this is the form for it; --abits 8 leaves less to rounding (docs/deployment.md 3)"
    if not options or not form:
        return "no form is known that it runs right (docs/deployment.md 3)"
    return shlex.join(["mrecg-onnx", "convert", argument(found.file), *options])


def _passed_over(found: RuntimesReport) -> list[str]:
    labels: dict[str, list[str]] = {}
    for one in found.passed_over:
        labels.setdefault(one.reason, []).append(one.label)
    return [f"{'; '.join(names)}: {what}" for what, names in labels.items()]


def _missing(found: RuntimesReport) -> str:
    names = [one.title for one in found.attempts if one.loads is None and not one.environment]
    return f"{'; '.join(names)} (--verbose: what installs them)" if names else ""  # some have commas in them


def details(found: RuntimesReport) -> Iterator[RenderableType]:
    """All that is known of each, and where those live that are not of this environment."""
    yield _table(found)
    own = [one for one in found.attempts if one.environment and one.environment != sys.executable]
    yield grid({one.label: one.environment for one in own})


def _table(found: RuntimesReport) -> RenderableType:
    header = ["runtime", "version", "loads", "agrees", "SQNR", "layers", "time"]
    content = [
        [
            one.title,
            one.version,
            _loads(one),
            _agrees(found, one, f" of {one.items}"),
            "-" if not one.sqnr_by_output else f"{min(one.sqnr_by_output.values()):.1f} dB",
            str(one.arithmetic or ("not said" if one.runs else "-")),
            "-" if one.median_s is None else f"{milliseconds(one.median_s)} ms",
            *([] if not found.against else [_ratio(one.time_ratio), _ratio(one.cpu_ratio)]),
            _note(one),
        ]
        for one in found.attempts
    ]
    return rows(
        "",
        [*header, *(["against FP32", "by CPU time"] if found.against else []), ""],
        content,
        left=(0, 1, 2, len(content[0]) - 1),
        names=(),
    )


def _speed(one: Attempt) -> str:
    """FP32's time over the file's, where a screen has no room for more."""
    return "-" if not one.time_ratio else f"{1 / one.time_ratio:.2f}x"


def _ratio(share: float | None) -> str:
    return "-" if share is None else ratio(1.0, share, "faster", "slower")


def _loads(one: Attempt) -> str:
    if one.loads is None:
        return "not tried" if one.environment else "not installed"
    if not one.loads or not one.runs:
        return "opens, does not run" if one.loads else "no"
    return "yes" if one.fixed_batch is None else f"with batch {one.fixed_batch}"


def _note(one: Attempt) -> str:
    if one.loads is None:
        return one.reason or one.install
    float_model = f"FP32 does not: {one.against_reason}" if one.against_reason else ""
    return "; ".join(filter(None, [one.reason, float_model]))
