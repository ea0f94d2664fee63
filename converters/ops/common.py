"""What the converters share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import torch
from onnx import TensorProto, numpy_helper

from mrecg_onnx.converters.errors import ConversionError, RefusedError
from mrecg_onnx.converters.registry import OnnxGraph, OnnxMapping, OnnxNode, OperationConverterResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

__all__ = [
    "OnnxGraph",
    "OnnxNode",
    "OperationConverterResult",
    "constant_ints",
    "constant_of",
    "element_type",
    "has_input",
    "input_name",
    "integers",
    "n_outputs",
    "rank_of",
    "refuse_training",
    "reject",
    "result",
    "same_pads",
    "to_tensor",
    "torch_dtype",
]

_DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
}


def torch_dtype(data_type: int) -> torch.dtype:
    """Return the torch type of an ONNX element type.

    Raises:
        ConversionError: torch has no such type.
    """
    if data_type not in _DTYPES:
        raise ConversionError(f"element type {TensorProto.DataType.Name(data_type)} has no counterpart in torch")
    return _DTYPES[data_type]


def to_tensor(proto: TensorProto) -> Tensor:
    """Return a copy of an ONNX tensor as a torch tensor of the same type."""
    torch_dtype(proto.data_type)
    array = numpy_helper.to_array(proto)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def result(module: nn.Module, node: OnnxNode, inputs: Sequence[str] | None = None) -> OperationConverterResult:
    """Return what a converter returns: ``module``, called with the tensors ``inputs`` (default: all of the node's)."""
    names = tuple(node.input_values) if inputs is None else tuple(inputs)
    return OperationConverterResult(
        torch_module=module, onnx_mapping=OnnxMapping(inputs=names, outputs=tuple(node.output_values))
    )


def reject(node: OnnxNode, why: str) -> ConversionError:
    """Return the error for a node that has a converter, but not for what it asks for."""
    return ConversionError(f"{node.operation_type} with {why} cannot be converted to torch")


def refuse_training(node: OnnxNode) -> RefusedError:
    """Return the error for a node that trains."""
    return RefusedError(f"{node.operation_type} is in training mode; export the model in eval mode")


def input_name(node: OnnxNode, index: int) -> str:
    """Return the name of input ``index``, "" where the node has none."""
    return str(node.input_values[index]) if index < len(node.input_values) else ""


def has_input(node: OnnxNode, index: int) -> bool:
    """Tell whether input ``index`` is there."""
    return bool(input_name(node, index))


def n_outputs(node: OnnxNode) -> int:
    """Return the number of outputs the node names."""
    return sum(1 for name in node.output_values if name)


def constant_of(node: OnnxNode, index: int, graph: OnnxGraph) -> Tensor | None:
    """Return input ``index`` if it is an initializer, or made by a Constant node with a tensor; None otherwise."""
    name = input_name(node, index)
    if name in graph.initializers and name not in graph.input_values:
        return to_tensor(graph.initializers[name].proto)
    return None


def constant_ints(node: OnnxNode, index: int, graph: OnnxGraph) -> list[int] | None:
    """Return input ``index`` as a list of integers if it is constant, None otherwise."""
    found = constant_of(node, index, graph)
    return None if found is None else [int(item) for item in found.reshape(-1).tolist()]


def element_type(node: OnnxNode, index: int, graph: OnnxGraph) -> int:
    """Return the ONNX element type of input ``index``, 0 where it is not known."""
    name = input_name(node, index)
    if name in graph.initializers:
        return int(graph.initializers[name].proto.data_type)
    return int(graph.value_info[name].type.tensor_type.elem_type) if name in graph.value_info else 0


def rank_of(node: OnnxNode, index: int, graph: OnnxGraph) -> int | None:
    """Return the number of axes of input ``index``, None where it is not known."""
    name = input_name(node, index)
    if name in graph.initializers:
        return len(graph.initializers[name].proto.dims)
    if name not in graph.value_info or not graph.value_info[name].type.tensor_type.HasField("shape"):
        return None
    return len(graph.value_info[name].type.tensor_type.shape.dim)


def integers(value: Tensor | Sequence[int]) -> list[int]:
    """Return the integers in a tensor or a sequence as a flat list."""
    return [int(item) for item in (value.reshape(-1).tolist() if hasattr(value, "reshape") else value)]


def same_pads(
    auto_pad: str, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Return the pads (all begins, then all ends) that ``auto_pad`` means, per the ONNX operator specification.

    SAME_UPPER and SAME_LOWER give ceil(size / stride) outputs; where the sum of an axis is odd, the larger half is at
    the end or at the beginning.
    """
    begins, ends = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = 0
        if auto_pad != "VALID":
            outputs = -(-size // stride)
            total = max((outputs - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small = total // 2
        begins.append(small if auto_pad == "SAME_UPPER" else total - small)
        ends.append(total - begins[-1])
    return [*begins, *ends]
