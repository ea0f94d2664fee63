"""Inputs that are not what a quantized model was calibrated on: the commonest mistake is another preprocessing.

A quantized file keeps the smallest and the largest value of each input on the calibration data, whether the input is quantized
or not. Of files that do not (other tools', older ones) the QuantizeLinear behind an input says what fits into its codes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.metadata_keys import INPUT_RANGES_KEY
from mrecg_onnx.running import read_graph

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mrecg_onnx.machine import Workers
    from mrecg_onnx.running import Model

__all__ = ["Range", "Watch", "calibrated_ranges", "ranges_entry"]

GOOD_PART = 0.05
"""Share of values outside the calibrated range from which on it is said."""
LEAST_USED = 0.25
"""Share of the calibrated range that the values have to span; less is said."""
MARGIN = 0.02
"""How far outside, in shares of the range, a value may lie without counting: clipping it costs next to nothing."""
#: Operators between an input and its quantizer that keep its values.
_KEEPS = frozenset({"Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
#: Codes by the type of the zero point.
_CODES = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
}


class Range(NamedTuple):
    """Smallest and largest value."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


def ranges_entry(data: Mapping[str, Any]) -> str:
    """The metadata entry for calibration inputs by name, arrays or tensors ``[N, ...]``; float and uint8 ones have a range."""
    found = {}
    for name, values in data.items():
        array = np.asarray(values)
        if (array.dtype.kind == "f" or array.dtype == np.uint8) and array.size:
            found[name] = [float(array.min()), float(array.max())]
    return json.dumps(found, separators=(",", ":"))


def calibrated_ranges(metadata: Mapping[str, str], model: Model, name: str) -> dict[str, Range]:
    """What each input was calibrated on, as far as that is known.

    Args:
        metadata: metadata_props of the quantized model.
        model: the quantized model.
        name: how messages call it.

    Raises:
        ModelError: The metadata are there and are no ranges.
    """
    stored = metadata.get(INPUT_RANGES_KEY)
    if stored is None:
        return dict(_ranges_of_quantizers(read_graph(model).graph))
    try:
        return {str(key): _range(*pair) for key, pair in dict(json.loads(stored)).items()}
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{name}: metadata {INPUT_RANGES_KEY} cannot be used: they are no ranges by input") from error


def _range(low: float, high: float) -> Range:
    found = Range(float(low), float(high))
    if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low <= found.high):
        raise ValueError(found)
    return found


def _ranges_of_quantizers(graph: onnx.GraphProto) -> Iterator[tuple[str, Range]]:
    """Of each graph input with a QuantizeLinear of one scale behind it: the values that its codes stand for."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def scalar(node: onnx.NodeProto, index: int) -> float | None:
        tensor = constants.get(node.input[index]) if len(node.input) > index else None
        if tensor is None or math.prod(tensor.dims) != 1 or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return float(numpy_helper.to_array(tensor).item())

    for value in graph.input:
        ahead, seen = [value.name], {value.name}
        while ahead:
            for node in readers.get(ahead.pop(), ()):
                if node.op_type in _KEEPS and node.output[0] not in seen:
                    ahead.append(node.output[0])
                    seen.add(node.output[0])
                scale = scalar(node, 1) if node.op_type == "QuantizeLinear" else None
                if scale is None or not math.isfinite(scale) or scale <= 0:
                    continue
                zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
                codes = _CODES.get(zero_point.data_type if zero_point is not None else TensorProto.UINT8)
                if codes is None:
                    continue
                low, high = codes
                for clip in readers.get(node.output[0], ()):  # fewer than 8 bits in 8-bit tensors
                    bounds = (scalar(clip, 1), scalar(clip, 2)) if clip.op_type == "Clip" else (None, None)
                    low, high = (int(b) if b is not None else c for b, c in zip(bounds, (low, high), strict=True))
                zero = scalar(node, 2) or 0.0
                yield value.name, Range((low - zero) * scale, (high - zero) * scale)


@dataclass
class _Seen:
    """What one input held so far."""

    count: int = 0
    outside: int = 0
    low: float = math.inf
    high: float = -math.inf

    def merge(self, other: _Seen) -> _Seen:
        """Both together."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return _Seen(self.count + other.count, self.outside + other.outside, low, high)


@dataclass
class Watch:
    """Compares inputs with what they were calibrated on while they go by.

    Attributes:
        ranges: what each input was calibrated on; inputs without are not watched.
    """

    ranges: dict[str, Range]
    _seen: dict[str, _Seen] = field(default_factory=dict)

    def add(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take in the inputs of one batch."""
        for name, x in feeds.items():
            wanted = self.ranges.get(name)
            if wanted is None or not (x.dtype.kind == "f" or x.dtype == np.uint8) or not x.size:
                continue
            margin = max(MARGIN * (wanted.high - wanted.low), 1e-6 * max(abs(wanted.low), abs(wanted.high)))
            outside = np.count_nonzero(x < wanted.low - margin) + np.count_nonzero(x > wanted.high + margin)
            found = _Seen(x.size, int(outside), float(x.min()), float(x.max()))
            self._seen[name] = self._seen.get(name, _Seen()).merge(found)

    def join(self, workers: Workers) -> None:
        """Put together what all processes saw, each of its share."""
        parts = workers.gather(self._seen)
        if len(parts) > 1:
            self._seen = {}
            for part in parts:
                self._seen |= {name: self._seen.get(name, _Seen()).merge(seen) for name, seen in part.items()}

    def warnings(self, *, images: bool) -> tuple[str, ...]:
        """A sentence for each input that is not what it was calibrated on; ``images`` says where the values come from."""
        if images:
            advice = (
                "images are prepared in another way than at calibration; check --preprocess, --mean, --std and --scale"
            )
        else:
            advice = "arrays are prepared in another way than at calibration"
        found = []
        for name, seen in self._seen.items():
            wanted, held = self.ranges[name], Range(seen.low, seen.high)
            span = wanted.high - wanted.low
            if seen.outside > GOOD_PART * seen.count:
                share = f"{seen.outside / seen.count:.0%} of its values, {held}, lie outside"
            elif held.high - held.low < LEAST_USED * span:
                share = f"its values, {held}, use only {(held.high - held.low) / span:.0%} of"
            else:
                continue
            found.append(f"input {name!r}: {share} {wanted}, what it was calibrated on: {advice}")
        return tuple(found)
