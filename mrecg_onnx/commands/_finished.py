"""What ``inspect`` prints of a finished file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mrecg_onnx.commands._console import VERBOSE, asked
from mrecg_onnx.commands._repeat import rule_text
from mrecg_onnx.commands._sections import FIELDS
from mrecg_onnx.commands._tables import grid, rows, width
from mrecg_onnx.converters.module_names import NodeNames
from mrecg_onnx.converters.text import bounded
from mrecg_onnx.machine import byte_size
from mrecg_onnx.settings import changed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from mrecg_onnx.inspecting import FinishedFile

__all__ = ["finished_tables"]

# Characters shown of what a file says as text.
_LONGEST = 80
# A SHA-256 is told from others by so many of its 64; --verbose has all.
_DIGEST = 12
# So many values of a setting are shown.
_MOST = 12
#: Shown apart, or another name for what is.
_ELSEWHERE = frozenset({"preprocess", "wbits", "abits", "method", "target", "container"})


def finished_tables(found: FinishedFile) -> Iterator[RenderableType]:
    """What it is, its layers, its activations and the units it was learned in."""
    names = NodeNames(found.modules)
    integer = [layer for layer in found.layers if not layer.in_float]
    own = changed(found.settings, made=found.origin is not None)
    others = {name: value for name, value in own.items() if name not in _ELSEWHERE}
    yield grid(
        {
            "file": f"{found.name}, {byte_size(found.size_bytes)}, opset {found.opset}",
            "made by": f"mrecg-onnx {bounded(found.version, _LONGEST)}",
            "from": f"a float model with SHA-256 {_digest(found.source_sha256)}" if found.source_sha256 else "",
            "bits": _bits(found),
            "target": found.target,
            "container": found.container,
            "needs": [row.note() for row in found.needs],
            "method": str(found.settings.get("method", "")),
            "settings": [
                f"{name} {_setting(value)}" for name, value in others.items() if name in FIELDS | {"bits", "exclude"}
            ],
            "cut": found.cut,
            "measured": found.worth,
            "protected": ", ".join(map(names, found.protected)),
            "images": f"made by {found.origin.get('data', '?')}" if found.origin is not None else "",
            "preprocessing": found.preprocess.describe() if found.preprocess else "none, calibrated on arrays",
            "layers": f"{len(integer)} of {len(found.layers)} can run on integer kernels, by the graph",
        }
    )
    content = [
        [
            names(layer.name),
            layer.op,
            "x".join(str(size) for size in layer.shape),
            f"{layer.params:,}",
            width(layer.wbits),
            width(layer.abits),
            layer.in_float or "integer",
        ]
        for layer in found.layers
    ]
    header = ["layer", "op", "weight", "parameters", "W", "A", "runs in"]
    yield rows(
        f"{len(found.layers)} weighted layers", header, content, left=(0, 1, 6), less=("parameters", "weight", "op")
    )
    tensors = [[names(name), str(bits)] for name, bits in found.activations.items()]
    yield rows(f"{len(found.activations)} activation quantizers", ["tensor", "bits"], tensors)
    joined = [[str(i + 1), ", ".join(map(names, unit))] for i, unit in enumerate(found.units)]
    yield rows(f"{len(found.units)} reconstruction units", ["", "layers"], joined, left=(1,), names=())


def _digest(text: str) -> str:
    return (
        bounded(text, _LONGEST) if asked(VERBOSE) or len(text) <= _DIGEST else f"{bounded(text[:_DIGEST], _LONGEST)}..."
    )


def _setting(value: Any) -> str:
    """A stored setting as its option has it: rules of widths by their words, several behind each other."""
    if isinstance(value, dict) and "pattern" in value:
        return bounded(rule_text(value), _LONGEST)
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value[:_MOST])) + (
            f" and {len(value) - _MOST} more" if len(value) > _MOST else ""
        )
    return str(value)


def _bits(found: FinishedFile) -> str:
    quantized = [layer for layer in found.layers if layer.held is not None]
    params = sum(layer.params for layer in quantized)
    average = sum(layer.params * layer.wbits for layer in quantized) / params if params else math.nan
    weights = f"weights of {len(quantized)} layers, {average:.2f} bits on average"
    return f"{found.widths}: {weights}; {len(found.activations)} activations"
