"""``quantize --dry-run``: what would be done and written, and about what it would take."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mrecg_onnx.commands._console import VERBOSE, asked
from mrecg_onnx.commands._summary import bits_line
from mrecg_onnx.commands._tables import grid, rows, width
from mrecg_onnx.machine import byte_size, duration
from mrecg_onnx.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from rich.console import RenderableType

    from mrecg_onnx.commands._names import Names
    from mrecg_onnx.inspecting import Estimate
    from mrecg_onnx.planning import LayerPlan

__all__ = ["foreseen", "from_the_start"]

#: Bits of a float.
FLOAT = 32
#: Units that are listed without --verbose.
LISTED = 12
#: What came before the estimate: Python and its libraries.
START = "start"
#: Stages that are named: those of a tenth of the time or more.
NAMED = 0.1


def from_the_start(found: Estimate, before: tuple[float, float]) -> Estimate:
    """``found`` with what the command had taken before it, in seconds on the clock and of the processor."""
    return dataclasses.replace(
        found,
        seconds={START: before[0], **found.seconds},
        cpu_seconds={START: before[1], **found.cpu_seconds},
    )


def foreseen(found: Estimate, model: Path, writes: Sequence[Path], names: Names) -> Iterator[RenderableType]:
    """The plan, time and memory; the units below."""
    from mrecg_onnx.running import size_bytes

    settings, plan = found.settings, found.plan
    layers = [layer.name for layer in plan.layers]
    matched = names.matched("--exclude", settings.exclude, layers, only_layers=False)
    # Widths that a budget chooses are rules, too; the plan has them.
    matched += names.matched("--bits", [rule.pattern for rule in settings.bits], layers, only_layers=True)
    floats = [layer.name for layer in plan.layers if layer.excluded]
    yield grid(
        {
            "model": f"{model}, {byte_size(size_bytes(model))}",
            "would write": [f"{path}{' (is there: only with --force)' if path.is_file() else ''}" for path in writes],
            "target": f"{settings.target}, container {settings.container}",
            "bits": bits_line(plan, settings),
            "in float": names.some(floats) if floats else "",
            "matched": matched,
            "method": _method(found),
            "images": f"{found.images} for calibration",
            "time": _time(found),
            "memory": f"about {byte_size(found.memory)}",
        }
    )
    yield from _units(found, names)


def _method(found: Estimate) -> list[str]:
    settings = found.settings
    if METHODS[settings.method].granularity == "none":
        return [f"{settings.method}: no unit is learned"]
    lines = [f"{settings.method}, {len(found.plan.merged_units())} units, {found.iters:,} iterations together"]
    if METHODS[settings.method].merge and settings.scheme == "loss":
        lines.append("which units are joined is decided by a probing run: half of them are reckoned with")
    if settings.stop == "auto":
        lines.append("--stop auto may end before")
    if found.steps:
        lines.append(f"then {found.steps} steps of the whole network")
    return lines


def _time(found: Estimate) -> str:
    whole, used = sum(found.seconds.values()), sum(found.cpu_seconds.values())
    most = sorted(found.seconds.items(), key=lambda entry: -entry[1])
    parts = ", ".join(f"{name} {duration(spent)}" for name, spent in most if spent >= NAMED * whole)
    return f"about {duration(whole)} while the machine is as busy as now ({duration(used)} of processor time): {parts}"


def _widths(layer: LayerPlan) -> str:
    """``W4A8``, with float activations ``W4``, ``float`` for a layer that stays so."""
    if layer.excluded or layer.wbits == FLOAT:
        return width(FLOAT)
    return f"W{layer.wbits}" + (f"A{layer.abits}" if layer.abits != FLOAT else "")


def _units(found: Estimate, names: Names) -> Iterator[RenderableType]:
    units = found.plan.merged_units()
    if METHODS[found.settings.method].granularity == "none" or not units:
        return
    layers = {layer.name: layer for layer in found.plan.layers}
    shown = units if asked(VERBOSE) else units[:LISTED]
    content = [
        [
            str(number),
            names(unit.name),
            str(len(unit.layers)),
            ", ".join(dict.fromkeys(_widths(layers[n]) for n in unit.layers)),
        ]
        for number, unit in enumerate(shown, 1)
    ]
    more = f", the first {len(shown)} (--verbose lists all)" if len(shown) < len(units) else ""
    yield rows(f"{len(units)} units{more}", ["", "unit", "layers", "bits"], content, left=(1, 3), names=(1,))
