"""The weighted layers of a quantized file, as its graph has them: what each reads and makes, and what its weights stand for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mrecg_onnx.converters.metadata_keys import BITS_KEY, VERSION_KEY
from mrecg_onnx.planning import PRESERVING_OPS, WEIGHTED_OPS, channel_ceilings, clamp_bounds, readers
from mrecg_onnx.writing import as_written, contained

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

__all__ = ["Codes", "WrittenLayer", "int8_form", "layers_of", "stored_bits"]

_SPATIAL = frozenset({"Conv", "ConvTranspose"})
#: Rows of the entry of widths beyond which it was not written here.
_MOST_WIDTHS = 1_000_000
_FLOAT_BITS = 32
#: What may stand between a layer and the quantizer behind it: the runtime takes it into the codes.
_BOUNDS = frozenset({"Clip", "Max", "Min", "Relu"})


@dataclass(frozen=True)
class Clamp:
    """A Relu, a Clip or a Min by channel that a layer reads, through nothing but ops that move what it makes.

    Attributes:
        of: the tensor that it reads.
        made: the tensor that it makes.
        low: its lower bound, None without one.
        high: its upper bound, () or [1, C, 1, ...]; None without one.
    """

    of: str
    made: str
    low: float | None
    high: npt.NDArray[Any] | None


@dataclass(frozen=True)
class Codes:
    """Codes and what they stand for: ``(code - zero) * scale``.

    Attributes:
        codes: of a weight, its shape; () for an activation, whose codes are computed.
        scale: one, or one along ``axis``.
        zero: likewise.
        axis: of the scales, None where there is one.
        low: smallest code that is used.
        high: largest.
        of: the tensor that is quantized; "" for a weight.
        ceiling: largest code of each channel of an activation, [1, C, 1, ...]; None where there is one for all.
        clamps: what makes that tensor is a clamp itself.
        clamp: what became bounds of the codes, as :meth:`behind` knows it of the float model.
    """

    codes: npt.NDArray[Any]
    scale: npt.NDArray[Any]
    zero: npt.NDArray[Any]
    axis: int | None
    low: int
    high: int
    of: str = ""
    ceiling: npt.NDArray[Any] | None = None
    clamps: bool = False
    clamp: Clamp | None = None

    def along(self, part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Scale or zero point in a shape that meets that of the codes."""
        if self.axis is None or part.size == 1:
            return part.reshape(())
        return part.reshape([-1 if i == self.axis % self.codes.ndim else 1 for i in range(self.codes.ndim)])

    def values(self) -> npt.NDArray[np.float64]:
        """What the codes of a weight stand for, float64."""
        zero, scale = self.along(self.zero).astype(np.float64), self.along(self.scale).astype(np.float64)
        return (self.codes.astype(np.float64) - zero) * scale

    def behind(self, clamp: Clamp | None) -> Codes:
        """These codes with the float model's clamp in front of them, where its bounds became theirs.

        They did where the quantizer is given what the clamp reads, also under the name of what the clamp makes (files of ONNX
        Runtime's tool), and where a Clip whose channels were rescaled left a largest code for each channel.
        """
        if clamp is None:
            return self
        if clamp.of == self.of or (clamp.made == self.of and not self.clamps):
            return replace(self, clamp=clamp)
        if clamp.high is None or self.ceiling is None:
            return self
        return replace(self, clamp=replace(clamp, low=None, high=self._most()))

    def given(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What a quantizer is given, behind a clamp that became bounds of its codes: that takes nothing off.

        Args:
            values: of the tensor :attr:`of`, in its shape.
        """
        low, high = (self.clamp.low, self.clamp.high) if self.clamp is not None else (None, None)
        if low is None and self.low == int(self.zero.reshape(-1)[0]):
            low = 0.0  # a Relu, of which the file alone tells
        values = values if low is None else np.maximum(values, low)
        return values if high is None else np.minimum(values, high)

    def rounded(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Values of the tensor :attr:`of`, in its shape, as the codes of an activation hold them, float64."""
        scale, zero = float(self.scale.reshape(-1)[0]), float(self.zero.reshape(-1)[0])
        codes = np.clip(np.rint(values.astype(np.float64) / scale) + zero, self.low, self.high)
        return ((codes if self.ceiling is None else np.minimum(codes, self.ceiling)) - zero) * scale

    def cut(self, values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """What of that a quantizer is given, in the shape of :attr:`of`, lies more than half a step below and above all codes."""
        half, (low, high) = float(self.scale.reshape(-1)[0]) / 2, self.ends
        most = high if self.ceiling is None else np.minimum(high, self._most())
        return values < low - half, values > most + half

    def _most(self) -> npt.NDArray[Any]:
        """The largest value of each channel, [1, C, 1, ...]."""
        assert self.ceiling is not None
        return (self.ceiling.astype(np.float64) - float(self.zero.reshape(-1)[0])) * float(self.scale.reshape(-1)[0])

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value that an activation may have."""
        scale, zero = float(self.scale.reshape(-1)[0]), float(self.zero.reshape(-1)[0])
        return (self.low - zero) * scale, (self.high - zero) * scale


@dataclass(frozen=True)
class WrittenLayer:
    """A layer with a constant weight.

    Attributes:
        name: of the node.
        op: Conv, ConvTranspose, Gemm or MatMul.
        weight: the initializer that it was made from, as the float model calls it.
        shape: the weight's.
        groups: of a convolution.
        params: numbers in the weight.
        wbits: width of the weight, 32 for float.
        abits: width of what it reads, 32 for float.
        reads: the tensor it reads.
        makes: the tensor it makes.
        in_float: why its graph lets no integer kernel take it, "" where one may.
        held: codes of the weight; None for a float one.
        fed: quantizer of what it reads; None for floats.
        clamp: what it reads is made by, in a float model; None for anything else.
        plain: a float weight.
    """

    name: str
    op: str
    weight: str
    shape: tuple[int, ...]
    groups: int
    params: int
    wbits: int
    abits: int
    reads: str
    makes: str
    in_float: str = ""
    held: Codes | None = field(default=None, repr=False, compare=False)
    fed: Codes | None = field(default=None, repr=False, compare=False)
    clamp: Clamp | None = field(default=None, repr=False, compare=False)
    plain: npt.NDArray[Any] | None = field(default=None, repr=False, compare=False)

    def weights(self) -> npt.NDArray[np.float64]:
        """What the layer multiplies with, float64."""
        if self.held is not None:
            return self.held.values()
        assert self.plain is not None
        return self.plain.astype(np.float64)


def stored_bits(metadata: Mapping[str, str]) -> dict[str, int]:
    """Width of every quantized tensor by the file's metadata; empty where they do not say, or no sense."""
    try:
        found = json.loads(metadata.get(BITS_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or len(found) > _MOST_WIDTHS:
        return {}
    return {name: bits for name, bits in found.items() if type(bits) is int and 1 <= bits <= _FLOAT_BITS}


def int8_form(model: onnx.ModelProto, where: str = "the model") -> onnx.ModelProto:
    """A file of this package with all codes in 8-bit tensors; one of another tool as it is.

    Raises:
        ModelError: its metadata cannot be read, or another tool has changed it.
    """
    if all(entry.key != VERSION_KEY for entry in model.metadata_props):
        return model
    with as_written(where):
        return contained(model, "int8", where).model


def layers_of(model: onnx.ModelProto, where: str = "the model") -> list[WrittenLayer]:
    """All layers with constant weights, in the order of the graph; ``model`` is in :func:`int8_form`, or in float.

    Raises:
        ModelError: another tool has changed it.
    """
    with as_written(where):
        return _layers(model)


def _layers(model: onnx.ModelProto) -> list[WrittenLayer]:
    graph = ir.from_proto(model)
    widths = stored_bits({entry.key: entry.value for entry in model.metadata_props})
    found = []
    for node in graph.graph:
        index = _weight_index(node) if node.op_type in WEIGHTED_OPS and node.domain in {"", "ai.onnx"} else None
        if index is None:
            continue
        value, data = node.inputs[index], node.inputs[1 - index if node.op_type == "MatMul" else 0]
        held, fed = _held(value), _fed(data)
        plain = None if held is not None else _array(value)
        shape = held.codes.shape if held is not None else plain.shape  # type: ignore[union-attr]
        name = _source(value)
        found.append(
            WrittenLayer(
                name=node.name or node.outputs[0].name or "",
                op=node.op_type,
                weight=name,
                shape=tuple(shape),
                groups=node.attributes.get_int("group", 1) if node.op_type in _SPATIAL else 1,
                params=math.prod(shape),
                wbits=widths.get(name, _width_of_weight(held)) if held is not None else _FLOAT_BITS,
                abits=widths.get(_quantizer_name(data), _width(fed)) if fed is not None else _FLOAT_BITS,
                reads=(data and data.name) or "",
                makes=node.outputs[0].name or "",
                in_float=_why_float(node, held, fed),
                held=held,
                fed=fed,
                clamp=_clamp(data),
                plain=plain,
            )
        )
    return found


def _array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    tensor = value.const_value if value is not None else None
    return None if tensor is None else tensor.numpy()


def _weight_index(node: ir.Node) -> int | None:
    for index in (1, 0) if node.op_type == "MatMul" else (1,):
        value = node.inputs[index] if len(node.inputs) > index else None
        if _held(value) is not None:
            return index
        plain = _array(value)
        if plain is not None and plain.ndim >= 2 and plain.dtype.kind == "f":
            return index
    return None


def _held(value: ir.Value | None) -> Codes | None:
    """The constant codes behind a DequantizeLinear."""
    node = value.producer() if value is not None else None
    codes = _array(node.inputs[0]) if node is not None and node.op_type == "DequantizeLinear" else None
    if node is None or codes is None or codes.ndim < 2:
        return None
    scale, zero = _array(node.inputs[1]), _array(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or scale.ndim > 1:  # blocks of an axis with a scale each are not written here
        return None
    zero = np.zeros(scale.shape, np.int64) if zero is None else zero
    axis = node.attributes.get_int("axis", 1) if scale.size > 1 else None
    return Codes(codes, scale, zero.astype(np.int64), axis, int(codes.min(initial=0)), int(codes.max(initial=0)))


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear in front of ``value``, through ops that only move what it makes."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in PRESERVING_OPS:
        before = node.inputs[0]
        node = before.producer() if before is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _clamp(value: ir.Value | None) -> Clamp | None:
    """The clamp that makes ``value``, through ops that only move what it makes."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in PRESERVING_OPS:
        node = _made_codes(node)
    bounds = clamp_bounds(node) if node is not None else None
    ceilings = channel_ceilings(node) if node is not None and bounds is None else None
    if node is None or (bounds is None and ceilings is None):
        return None
    source = node.inputs[0]
    of = (source.name if source is not None else "") or ""
    if ceilings is not None:
        shape = (1, -1, *[1] * (len(source.shape) - 2))  # type: ignore[union-attr, arg-type]
        return Clamp(of, node.outputs[0].name or "", None, np.asarray(ceilings).reshape(shape))
    low, high = bounds  # type: ignore[misc]
    return Clamp(of, node.outputs[0].name or "", low, None if high is None else np.asarray(high))


def _made_codes(node: ir.Node) -> ir.Node | None:
    """What makes the first input of ``node``."""
    return node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None


def _fed(value: ir.Value | None) -> Codes | None:
    """The quantizer in front of a DequantizeLinear, with the bounds of its codes."""
    node = _dequantizer(value)
    if node is None:
        return None
    scale, zero = _array(node.inputs[1]), _array(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or zero is None or zero.dtype.kind not in "iu":
        return None
    ends = np.iinfo(zero.dtype)
    low, high, ceiling = int(ends.min), int(ends.max), None
    maker = _made_codes(node)
    while maker is not None and maker.op_type != "QuantizeLinear":
        if maker.op_type == "Clip":
            bounds = [_array(v) for v in maker.inputs[1:3]]
            low = max(low, int(bounds[0])) if bounds and bounds[0] is not None else low
            high = min(high, int(bounds[1])) if len(bounds) > 1 and bounds[1] is not None else high
        if maker.op_type == "Min" and len(maker.inputs) == 2:
            ceiling = _array(maker.inputs[1])
        maker = _made_codes(maker)
    given = maker.inputs[0] if maker is not None else None
    ahead = _dequantizer(given)
    if (
        ahead is not None and ahead.inputs[1] is node.inputs[1]
    ):  # values that lie on the grid already are moved and written again
        return _fed(ahead.outputs[0])
    of = (given.name if given is not None else "") or ""
    source = given.producer() if given is not None else None
    clamps = source is not None and source.op_type in _BOUNDS
    return Codes(np.zeros(()), scale, zero.astype(np.int64), None, low, high, of, ceiling, clamps)


def _source(value: ir.Value | None) -> str:
    """The name of a weight in the float model: files of this package add to it."""
    node = value.producer() if value is not None else None
    name = (value.name if node is None else node.inputs[0].name) or ""  # type: ignore[union-attr]
    return name.removesuffix("_quantized")


def _quantizer_name(value: ir.Value | None) -> str:
    """What the metadata call the quantizer in front of ``value``: the tensor that its names were made of."""
    node = _dequantizer(value)
    scale = node.inputs[1] if node is not None else None
    return ((scale.name if scale is not None else "") or "").removesuffix("_scale")


def _width(codes: Codes | None) -> int:
    return _FLOAT_BITS if codes is None else max(1, math.ceil(math.log2(codes.high - codes.low + 1)))


def _width_of_weight(held: Codes | None) -> int:
    """The bits that the codes of a weight take, a channel's span at most."""
    if held is None or not held.codes.size:
        return _FLOAT_BITS
    others = None if held.axis is None else tuple(i for i in range(held.codes.ndim) if i != held.axis % held.codes.ndim)
    codes = held.codes.astype(np.int64)
    span = int((codes.max(axis=others) - codes.min(axis=others)).max())
    return max(1, math.ceil(math.log2(span + 1)))


def _why_float(node: ir.Node, held: Codes | None, fed: Codes | None) -> str:
    """Why no integer kernel can take a layer, by the graph alone."""
    if held is None:
        return "its weight is in float"
    if node.op_type == "ConvTranspose":
        return "ONNX Runtime has no integer kernel for ConvTranspose"
    if fed is None:
        return "what it reads is not quantized"
    if fed.high - fed.low > 255:
        return "activations of 16 bits, for which ONNX Runtime has no integer kernels"
    if node.op_type in {"Gemm", "MatMul"}:
        return ""
    users = [user for made in node.outputs for user in readers(made)]
    while len(users) == 1 and users[0].op_type in _BOUNDS:
        users = [user for made in users[0].outputs for user in readers(made)]
    quantized = bool(users) and all(user.op_type == "QuantizeLinear" for user in users)
    return "" if quantized else "what it makes is not quantized"
