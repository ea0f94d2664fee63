"""A flatbuffer in the making: tensors, buffers and operators of LiteRT's schema, counted and packed.

The schema's classes come with ai-edge-litert, an extra of this package; they are imported when a file is begun.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mrecg_onnx.converters.errors import SettingsError

__all__ = ["INT4_VERSIONS", "Array", "Flatbuffer", "Held", "Scales", "channels_last", "plain_order"]

Array = npt.NDArray[Any]
#: Versions of operators (tensorflow/lite/tools/versioning/op_version.cc) with int8 codes; floats have the lower ones of each.
_INT8_VERSIONS = {
    "ADD": 2, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "DEQUANTIZE": 2, "FULLY_CONNECTED": 4, "MAXIMUM": 2,
    "MAX_POOL_2D": 2, "MEAN": 2, "MINIMUM": 2, "MUL": 2, "PAD": 2, "PADV2": 2, "STRIDED_SLICE": 2, "SUB": 2, "TRANSPOSE": 2,
}  # fmt: skip
_FLOAT_VERSIONS = {"RESIZE_BILINEAR": 3, "RESIZE_NEAREST_NEIGHBOR": 3}
#: Beyond those: filters of 4 bits, groups, a scale a channel in constants that are dequantized.
INT4_VERSIONS = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10, "DEQUANTIZE": 6}


@dataclass(frozen=True)
class Scales:
    """How the codes of a tensor are read.

    Attributes:
        scale: float32, shape () or (C,).
        zero: zero point in the codes of the flatbuffer; 0 for constants.
        axis: axis of a vector of scales, of the tensor as it is stored.
    """

    scale: Array
    zero: int = 0
    axis: int = 0


@dataclass(frozen=True)
class Held:
    """A tensor of the flatbuffer and how it is to be read.

    Attributes:
        index: its place among the tensors.
        kind: its type, a name of the schema's.
        shape: sizes in ONNX's order of axes; that of the batch is 1 where it is free.
        free: whether a size grows with the batch, each.
        order: for each axis as it is stored which of ONNX's it is.
        scales: of integers.
        low: smallest code that occurs.
        high: largest one.
    """

    index: int
    kind: str
    shape: tuple[int, ...]
    free: tuple[bool, ...]
    order: tuple[int, ...]
    scales: Scales | None = None
    low: int = -128
    high: int = 127

    @property
    def zero(self) -> int:
        """Zero point."""
        assert self.scales is not None
        return self.scales.zero

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Sizes as they are stored."""
        return tuple(self.shape[axis] for axis in self.order)


def plain_order(rank: int) -> tuple[int, ...]:
    """ONNX's own."""
    return tuple(range(rank))


def channels_last(rank: int) -> tuple[int, ...]:
    """The order of LiteRT's convolutions: batch, places, channels."""
    return (0, *range(2, rank), 1)


@dataclass
class Flatbuffer:
    """Tensors and operators, in the order in which they run."""

    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with the empty buffer that tensors without constants name."""
        self.schema = _schema()
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [self.schema.BufferT()]
        self.operators: list[Any] = []
        self.codes: dict[tuple[int, int], int] = {}
        self._constants: dict[tuple[Any, ...], int] = {}

    def tensor(self, name: str, like: Held, content: bytes | None = None) -> Held:
        """``like`` as a new tensor called ``name``, with ``content`` where it is a constant."""
        made = self.schema.TensorT()
        made.name, made.type = name, getattr(self.schema.TensorType, like.kind)
        made.shape, made.hasRank, made.buffer = list(like.stored_shape), True, 0
        if any(like.free):
            made.shapeSignature = [-1 if like.free[axis] else like.shape[axis] for axis in like.order]
        if like.scales is not None:
            made.quantization = self.schema.QuantizationParametersT()
            made.quantization.scale = np.atleast_1d(like.scales.scale).astype(np.float32)
            made.quantization.zeroPoint = np.full(made.quantization.scale.shape, like.scales.zero, np.int64)
            made.quantization.quantizedDimension = like.scales.axis
        if content is not None:
            made.buffer = len(self.buffers)
            held = self.schema.BufferT()
            held.data = np.frombuffer(content, np.uint8)
            self.buffers.append(held)
        self.tensors.append(made)
        return replace(like, index=len(self.tensors) - 1)

    def constant(self, name: str, array: Array, scales: Scales | None = None, kind: str | None = None) -> Held:
        """A constant in the order in which it is to be stored; equal ones are stored once.

        Args:
            name: what it is called.
            array: float32, int32 or int8; [-8, 7] for ``kind`` "INT4".
            scales: of codes.
            kind: the schema's type where it is not the array's.
        """
        kind = kind or {"float32": "FLOAT32", "int32": "INT32", "int8": "INT8"}[array.dtype.name]
        content = _nibbles(array) if kind == "INT4" else np.ascontiguousarray(array).tobytes()
        marks = (scales.scale.tobytes(), scales.zero, scales.axis) if scales is not None else None
        key = (kind, array.shape, content, marks)
        rank = plain_order(array.ndim)
        like = Held(
            -1,
            kind,
            array.shape,
            (False,) * array.ndim,
            rank,
            scales,
            int(array.min(initial=0)),
            int(array.max(initial=0)),
        )
        if key in self._constants:
            return replace(like, index=self._constants[key])
        made = self.tensor(name, like, content)
        self._constants[key] = made.index
        return made

    def operator(
        self,
        op: str,
        inputs: Sequence[Held | None],
        output: Held,
        options: tuple[str, Mapping[str, Any]] | None = None,
        version: int | None = None,
    ) -> Held:
        """Append an operator; returns ``output``.

        Args:
            op: name in the schema.
            inputs: None is one that is left out.
            output: what it makes.
            options: name of its table in the schema, and its fields.
            version: of the operator, where it is more than the types of its tensors ask for.
        """
        codes = "INT8" in {held.kind for held in (*inputs, output) if held is not None}
        level = version or (_INT8_VERSIONS if codes else _FLOAT_VERSIONS).get(op, 1)
        made = self.schema.OperatorT()
        made.opcodeIndex = self.codes.setdefault((getattr(self.schema.BuiltinOperator, op), level), len(self.codes))
        made.inputs = [held.index if held is not None else -1 for held in inputs]
        made.outputs = [output.index]
        if options is not None:
            table, fields = options
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, table)
            made.builtinOptions = getattr(self.schema, f"{table}T")()
            for name, value in fields.items():
                setattr(made.builtinOptions, name, value)
        self.operators.append(made)
        first = next((held.kind for held in inputs if held is not None), output.kind)
        kind = "int8" if first == output.kind == "INT8" else "float" if "FLOAT32" in {first, output.kind} else first
        label = f"{op} {kind}"
        self.counts[label] = self.counts.get(label, 0) + 1
        return output

    def packed(self, inputs: Mapping[str, Held], outputs: Mapping[str, Held], metadata: Mapping[str, bytes]) -> bytes:
        """The file: its in- and outputs by name, and what it says of itself."""
        import flatbuffers  # type: ignore[import-untyped] # noqa: PLC0415 - comes with ai-edge-litert

        schema = self.schema
        model, graph = schema.ModelT(), schema.SubGraphT()
        graph.tensors, graph.operators, graph.name = self.tensors, self.operators, "main"
        graph.inputs = [held.index for held in inputs.values()]
        graph.outputs = [held.index for held in outputs.values()]
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = (
            [_mapped(schema, name, held) for name, held in places.items()] for places in (inputs, outputs)
        )
        model.version, model.subgraphs, model.description = 3, [graph], "mrecg-onnx"
        model.operatorCodes = [_code(schema, op, version) for op, version in self.codes]
        model.signatureDefs, model.metadata = [signature], []
        for name, content in metadata.items():
            held, entry = schema.BufferT(), schema.MetadataT()
            held.data, entry.name, entry.buffer = np.frombuffer(content, np.uint8), name, len(self.buffers)
            self.buffers.append(held)
            model.metadata.append(entry)
        model.buffers = self.buffers
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _schema() -> Any:
    try:
        return importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError as error:
        raise SettingsError("files for LiteRT need its schema: pip install 'mrecg-onnx[litert]'") from error


def _nibbles(array: Array) -> bytes:
    """Two codes a byte, the first one in the lower half."""
    flat = array.reshape(-1).astype(np.int8).view(np.uint8) & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return (flat[::2] | flat[1::2] << 4).tobytes()


def _code(schema: Any, op: int, version: int) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode, made.deprecatedBuiltinCode, made.version = op, min(op, 127), version
    return made


def _mapped(schema: Any, name: str, held: Held) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, held.index
    return made
