"""One ONNX node inside a torch module, run by ONNX Runtime on the CPU, forward only.

Where torch has no counterpart of an operator, its node runs as a model of its own: the node as it stands, with its constants
and, for If, Loop and Scan, the outer tensors that its subgraphs read as further inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from mrecg_onnx.converters.arrays import from_array, to_array
from mrecg_onnx.converters.deadline import TimeLimitError, run_limited
from mrecg_onnx.converters.errors import ConversionError, first_line
from mrecg_onnx.converters.passes.values import claim
from mrecg_onnx.converters.registry import OnnxMapping, OperationConverterResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["OnnxRuntimeNode", "captured_names", "convert_by_runtime"]

# A model in memory must stay below protobuf's 2 GB; larger constants are fed with each call.
_CONSTANT_BYTES = 1 << 28

# Types that numpy has no name for come out of ONNX Runtime as one that holds all of their values.
_CARRIERS = {
    TensorProto.BFLOAT16: (TensorProto.FLOAT, ml_dtypes.bfloat16),
    TensorProto.FLOAT8E4M3FN: (TensorProto.FLOAT, ml_dtypes.float8_e4m3fn),
    TensorProto.FLOAT8E4M3FNUZ: (TensorProto.FLOAT, ml_dtypes.float8_e4m3fnuz),
    TensorProto.FLOAT8E5M2: (TensorProto.FLOAT, ml_dtypes.float8_e5m2),
    TensorProto.FLOAT8E5M2FNUZ: (TensorProto.FLOAT, ml_dtypes.float8_e5m2fnuz),
    TensorProto.FLOAT8E8M0: (TensorProto.FLOAT, ml_dtypes.float8_e8m0fnu),
    TensorProto.INT4: (TensorProto.INT8, ml_dtypes.int4),
    TensorProto.UINT4: (TensorProto.UINT8, ml_dtypes.uint4),
    TensorProto.INT2: (TensorProto.INT8, ml_dtypes.int2),
    TensorProto.UINT2: (TensorProto.UINT8, ml_dtypes.uint2),
}
# Of those, the ones that fill bytes are fed as they are: a cast on the way in would saturate infinities.
_FED_AS_THEY_ARE = frozenset(
    {
        TensorProto.BFLOAT16,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.FLOAT8E4M3FNUZ,
        TensorProto.FLOAT8E5M2,
        TensorProto.FLOAT8E5M2FNUZ,
        TensorProto.FLOAT8E8M0,
    }
)


class OnnxRuntimeNode(nn.Module):
    """A model of one node, run by ONNX Runtime.

    Attributes:
        name: The node, for messages.
        carried: Types of the outputs that come out as another type, by place.
        fed: Types of the inputs that numpy has no name for, by place.
    """

    def __init__(self, model: onnx.ModelProto, name: str, carried: Mapping[int, Any], fed: Mapping[int, int]) -> None:
        super().__init__()
        self.name, self.carried, self.fed = name, dict(carried), dict(fed)
        self._content = model.SerializeToString()
        self._open()

    def _open(self) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # nothing on stderr: what fails is raised
        options.intra_op_num_threads = torch.get_num_threads()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(self._content, options, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: sessions cannot be copied, the model can."""
        return {key: value for key, value in self.__dict__.items() if key != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the model again."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._open()

    def forward(self, *inputs: Any) -> Any:
        """Run the node: tensors, arrays of strings, lists for sequences, None for absent optional values.

        Raises:
            ConversionError: ONNX Runtime cannot run the node, or, in the backward pass, always.
        """
        learned = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
        if torch.is_grad_enabled() and learned:
            found = _ForwardOnly.apply(self, *inputs)  # type: ignore[no-untyped-call]
            return found[0] if len(self._outputs) == 1 else found
        values = self.run(inputs)
        return values[0] if len(values) == 1 else values

    def run(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Run the node on ``inputs``, without a thought of gradients; all outputs.

        Raises:
            ConversionError: ONNX Runtime cannot run the node.
        """
        feeds = {
            name: self._feed(place, value) for place, (name, value) in enumerate(zip(self._inputs, inputs, strict=True))
        }
        try:
            found = run_limited(self._session, self._outputs, feeds, f"node '{self.name}'")
        except TimeLimitError:
            raise
        # Its exceptions share no base below Exception.
        except Exception as error:
            raise ConversionError(f"node '{self.name}' fails in ONNX Runtime: {first_line(error)}") from error
        device = next((value.device for value in inputs if isinstance(value, Tensor)), torch.device("cpu"))
        return tuple(_on(device, from_array(self._fetch(place, value))) for place, value in enumerate(found))

    def _feed(self, place: int, value: Any) -> Any:
        array = to_array(value)
        if place not in self.fed:
            return array
        data_type = self.fed[place]
        if data_type in _FED_AS_THEY_ARE:
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), data_type)
        return array.astype(helper.tensor_dtype_to_np_dtype(_CARRIERS[data_type][0]))

    def _fetch(self, place: int, value: Any) -> Any:
        return value.astype(self.carried[place]) if place in self.carried else value

    def extra_repr(self) -> str:
        """Name the node."""
        return self.name


class _ForwardOnly(torch.autograd.Function):
    """Runs a node that gradients cannot pass: they would be lost without a word otherwise."""

    @staticmethod
    def forward(ctx: Any, module: OnnxRuntimeNode, *inputs: Any) -> tuple[Any, ...]:
        ctx.name = module.name
        return module.run(inputs)

    @staticmethod
    def backward(ctx: Any, *_gradients: Any) -> NoReturn:
        raise ConversionError(
            f"node '{ctx.name}' runs through ONNX Runtime, forward only: nothing in front of it can be trained from behind"
        )


def convert_by_runtime(
    node: onnx.NodeProto,
    name: str,
    model: onnx.ModelProto,
    types: Mapping[str, onnx.TypeProto],
    constants: Mapping[str, TensorProto],
) -> OperationConverterResult:
    """Make a module that runs ``node`` through ONNX Runtime.

    Args:
        node: The node, with all of its subgraphs.
        name: What messages call it.
        model: The model it is of, whose opsets and IR version it keeps.
        types: The types of the tensors it reads and makes, by name; those of outputs may be missing.
        constants: The model's initializers by name.

    Raises:
        ConversionError: A type is not known, or ONNX Runtime does not open the node.
    """
    read = list(dict.fromkeys([*(name for name in node.input if name), *captured_names(node)]))
    graph = onnx.GraphProto(name="node")
    inputs: list[str] = []
    fed: dict[int, int] = {}
    taken: set[str | None] = {*read, *node.output}
    for source in read:
        if source in constants and constants[source].ByteSize() <= _CONSTANT_BYTES:
            graph.initializer.append(constants[source])
            continue
        data_type = _element_type(types.get(source))
        kind = types.get(source)
        if source in constants:
            kind = helper.make_tensor_type_proto(constants[source].data_type, list(constants[source].dims))
        if kind is None:
            raise ConversionError(f"the type of its input '{source}' is not known")
        inner = source
        if data_type in _CARRIERS:
            fed[len(inputs)] = data_type
            if data_type not in _FED_AS_THEY_ARE:
                inner = claim(f"{source}/fed", taken)
                kind = helper.make_tensor_type_proto(_CARRIERS[data_type][0], None)
                graph.node.append(helper.make_node("Cast", [inner], [source], to=data_type))
        graph.input.append(onnx.ValueInfoProto(name=inner, type=_free(kind)))
        inputs.append(source)
    graph.node.append(_without_value_info(node))
    carried = {}
    for place, made in enumerate(output for output in node.output if output):
        data_type = _element_type(types.get(made))
        outer = made
        if data_type in _CARRIERS:
            carrier, carried[place] = _CARRIERS[data_type]
            outer = claim(f"{made}/carried", taken)
            graph.node.append(helper.make_node("Cast", [made], [outer], to=carrier))
        graph.output.append(onnx.ValueInfoProto(name=outer))
    alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    try:
        module = OnnxRuntimeNode(alone, name, carried, fed)
    # Its exceptions share no base below Exception; protobuf adds its own for what is too large.
    except Exception as error:
        raise ConversionError(f"ONNX Runtime does not open it: {first_line(error)}") from error
    return OperationConverterResult(
        torch_module=module, onnx_mapping=OnnxMapping(inputs=tuple(inputs), outputs=tuple(node.output))
    )


def captured_names(node: onnx.NodeProto) -> list[str]:
    """Return the outer tensors that the subgraphs of ``node`` read, in order and without repetition."""
    found: dict[str, None] = {}
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            for inner in graph.node:
                read = [name for name in inner.input if name] + captured_names(inner)
                found.update(dict.fromkeys(name for name in read if name not in known))
                known.update(inner.output)
            found.update(dict.fromkeys(value.name for value in graph.output if value.name not in known))
    return list(found)


def _without_value_info(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return a copy of ``node`` whose subgraphs say nothing of the tensors inside: ONNX Runtime infers them itself.

    Shape inference writes types of sequences as those of their elements there.
    """
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    pending = [copy]
    while pending:
        for attribute in pending.pop().attribute:
            for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                del graph.value_info[:]
                pending.extend(graph.node)
    return copy


def _element_type(kind: onnx.TypeProto | None) -> int:
    return 0 if kind is None or not kind.HasField("tensor_type") else kind.tensor_type.elem_type


def _free(kind: onnx.TypeProto) -> onnx.TypeProto:
    """Return a type without its shape: the node is also run on other sizes than the model says, such as batches."""
    copy = onnx.TypeProto()
    copy.CopyFrom(kind)
    inner = copy
    while not inner.HasField("tensor_type"):
        if inner.HasField("sequence_type"):
            inner = inner.sequence_type.elem_type
        elif inner.HasField("optional_type"):
            inner = inner.optional_type.elem_type
        else:
            return copy
    inner.tensor_type.ClearField("shape")
    return copy


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
