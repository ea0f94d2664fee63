"""What a quantized file says, as LiteRT needs it: sizes of all tensors, constants, and codes with their bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ExportError
from mrecg_onnx.converters.passes.shapes import infer_shapes
from mrecg_onnx.converters.protos import editable
from mrecg_onnx.planning import readers

__all__ = ["Codes", "Sizes", "codes_of", "constant_ints", "constant_of", "first_input", "refused", "sizes_of"]

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a tensor; 1 for the batch where it is free."""

    shape: tuple[int, ...]
    free: tuple[bool, ...]


@dataclass(frozen=True)
class Codes:
    """A quantizer: QuantizeLinear and the bounds of its codes, which are the file's, from 0 to 255.

    Attributes:
        scale: float32, shape ().
        zero: zero point.
        low: smallest code.
        high: largest code.
        ceiling: largest code of each channel, shape (C,); None where all have ``high``.
        names: what is made of codes on the way.
        value: name of the value that is quantized, for people.
    """

    scale: Array
    zero: int
    low: int
    high: int
    ceiling: Array | None
    names: tuple[str, ...]
    value: str


def refused(node: ir.Node, why: str) -> ExportError:
    """The line that ends the conversion at ``node``."""
    return ExportError(f"node '{node.name}' ({node.op_type}) cannot be written for LiteRT: {why}")


def constant_of(value: ir.Value | None) -> Array | None:
    """The array of an initializer, None for what is computed."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def first_input(node: ir.Node, index: int = 0) -> ir.Value:
    """An input that is there."""
    value = node.inputs[index]
    assert value is not None
    return value


def constant_ints(node: ir.Node, index: int) -> list[int] | None:
    """A constant input of whole numbers, None where it is left out.

    Raises:
        ExportError: it is computed.
    """
    value = node.inputs[index] if len(node.inputs) > index else None
    found = constant_of(value)
    if value is not None and found is None:
        raise refused(node, f"'{value.name}' is no constant")
    return None if found is None else [int(n) for n in found.reshape(-1)]


def codes_of(quantize: ir.Node) -> Codes:
    """The quantizer that begins with ``quantize``.

    Raises:
        ExportError: its codes have another form than that of this package's files.
    """
    scale, zero = constant_of(quantize.inputs[1]), constant_of(quantize.inputs[2] if len(quantize.inputs) > 2 else None)
    if scale is None or zero is None or scale.size != 1 or zero.dtype != np.uint8:
        raise refused(quantize, "it is no quantizer of uint8 codes with one scale")
    low, high, ceiling = 0, 255, None
    codes = quantize.outputs[0]
    names = [codes.name or ""]
    while True:
        users = readers(codes)
        bounded = [node for node in users if node.op_type in {"Clip", "Min"}]
        if not bounded:
            break
        node = bounded[0]
        ends = [constant_of(v) for v in node.inputs[1:]]
        if len(users) > 1 or any(end is None for end in ends):
            raise refused(node, "its bounds are no constants, or codes are read in front of it, too")
        if node.op_type == "Clip":
            low, high = max(low, int(ends[0])), min(high, int(ends[1]))  # type: ignore[arg-type]
        else:
            ceiling = ends[0].reshape(-1)  # type: ignore[union-attr]
        codes = node.outputs[0]
        names.append(codes.name or "")
    source = quantize.inputs[0]
    return Codes(
        scale.astype(np.float32).reshape(()),
        int(zero.reshape(())),
        low,
        high,
        ceiling,
        tuple(names),
        (source and source.name) or "",
    )


def sizes_of(model: onnx.ModelProto) -> dict[str, Sizes]:
    """Sizes of all tensors, by shape inference with one and with two items: what differs is the batch's.

    Raises:
        ExportError: sizes of the inputs other than the batch are free.
    """
    found = []
    for batch in (1, 2):
        fixed = onnx.ModelProto()
        fixed.CopyFrom(model)
        del fixed.graph.value_info[:]
        for value in fixed.graph.input:
            for axis, size in enumerate(value.type.tensor_type.shape.dim):
                if size.HasField("dim_value"):
                    continue
                if axis:
                    raise ExportError(
                        f"input '{value.name}' has a free size (axis {axis}): LiteRT's file needs all but the batch"
                    )
                size.dim_value = batch
        for value in fixed.graph.output:
            value.type.tensor_type.ClearField("shape")
        inferred = ir.to_proto(infer_shapes(editable(fixed))).graph
        found.append({v.name: _shape(v) for v in (*inferred.input, *inferred.value_info, *inferred.output)})
    sizes = {}
    for name, one in found[0].items():
        two = found[1].get(name)
        if one is not None and two is not None and len(one) == len(two):
            sizes[name] = Sizes(one, tuple(a != b for a, b in zip(one, two, strict=True)))
    return sizes


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(size.HasField("dim_value") for size in kind.shape.dim):
        return None
    return tuple(size.dim_value for size in kind.shape.dim)
