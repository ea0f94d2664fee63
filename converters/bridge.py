"""From an ONNX graph to a torch.fx module, node by node.

torch.fx writes Python source that names every node, module and constant, and runs it. What a file calls them is text from
outside: it stays in ``meta``, and torch gets names made here from a kind and a number.
"""

from __future__ import annotations

import inspect
import itertools
import linecache
import logging
import operator
import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from torch import fx, nn
from torch.fx import graph_module

import mrecg_onnx.converters.ops  # noqa: F401 - registers the converters
from mrecg_onnx.converters.errors import ConversionError, RefusedError
from mrecg_onnx.converters.fallback import convert_by_runtime
from mrecg_onnx.converters.load import RUNTIME_DOMAINS, load_model
from mrecg_onnx.converters.normalize import editable, restructure
from mrecg_onnx.converters.ops.common import to_tensor
from mrecg_onnx.converters.passes.values import claim
from mrecg_onnx.converters.registry import OnnxGraph, OnnxNode, find_converter
from mrecg_onnx.converters.types import foreign_tensor, tensor_types

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from torch.fx.graph import PythonCode

    from mrecg_onnx.converters.registry import OperationConverterResult

__all__ = ["TorchModel", "fallback_nodes", "to_torch"]

logger = logging.getLogger(__name__)

# So many are named when several nodes cannot be converted.
_NAMED_AT_MOST = 5


class TorchModel(fx.GraphModule):
    """A ``torch.fx.GraphModule`` that knows which ONNX node each of its fx nodes is; copies of it know it too."""

    def recompile(self) -> PythonCode:
        """Write the source of ``forward`` anew; torch would keep every source that it ever wrote, for tracebacks."""
        written = super().recompile()
        forward = type(self).forward  # torch makes a class of each module
        weakref.finalize(forward, _forget_source, forward.__code__.co_filename).atexit = False
        return written

    @property
    def onnx_nodes(self) -> dict[str, str]:
        """The names of the ONNX nodes by the names of the fx nodes that call their modules, in topological order."""
        return {node.name: node.meta["onnx_node"] for node in self.graph.nodes if "onnx_node" in node.meta}

    @property
    def fallback_nodes(self) -> dict[str, str]:
        """The ONNX nodes that run through ONNX Runtime, by name, and why torch cannot run them; in topological order."""
        return {
            node.meta["onnx_node"]: node.meta["onnx_fallback"]
            for node in self.graph.nodes
            if "onnx_fallback" in node.meta
        }

    def layer(self, onnx_node: str) -> nn.Module:
        """The module of the ONNX node of that name.

        Raises:
            KeyError: There is none.
        """
        for node in self.graph.nodes:
            if node.meta.get("onnx_node") == onnx_node:
                return self.get_submodule(str(node.target))
        raise KeyError(onnx_node)


def _forget_source(name: str) -> None:
    """Drop the source that torch.fx keeps under that name: the function made of it is gone."""
    linecache.cache.pop(name, None)
    graph_module._loader.eval_cache.pop(name, None)  # noqa: SLF001 - torch itself never removes one


def to_torch(model: onnx.ModelProto | ir.Model | str | Path) -> TorchModel:
    """Convert an ONNX model to a ``torch.fx.GraphModule`` with one module per node.

    The module is in eval mode, nothing in it requires a gradient, and it is called with the graph's inputs in order. It
    returns a tensor, or a tuple in the order of the graph's outputs if there are several.

    Nodes, modules and constants of it are numbered ("node_0", "input_0", "constant_0"): nothing that the file calls them
    reaches the source that torch.fx generates. ``module.onnx_nodes`` maps the name of each fx node that calls a module to
    the name of its ONNX node, and ``module.layer`` gives its module. Such a node's ``meta`` holds ``onnx_node`` (the
    name), ``onnx_op_type``, ``onnx_inputs`` and ``onnx_outputs`` (names of tensors, "" for absent ones). Constants that
    are arguments are ``get_attr`` nodes with their name in ``meta["onnx_tensor"]``, as are inputs and single outputs of
    nodes with several. Conv, ConvTranspose, Gemm and MatMul with a constant weight are the modules of
    :mod:`mrecg_onnx.converters.ops.weighted`.

    Args:
        model: A path or a model. Functions are inlined and Constant nodes become constants; otherwise it is converted
            as it is, node by node (:func:`mrecg_onnx.converters.normalize` first gives a simpler one). An
            ``onnx_ir.Model`` is taken as it is. Nothing is changed in it.

    A node that torch cannot run exactly is run by ONNX Runtime inside the module, forward only;
    ``module.fallback_nodes`` lists those.

    Raises:
        ModelError: The file cannot be read or is not valid.
        ConversionError: A node can be run by neither torch nor ONNX Runtime; the message names them.
    """
    return _Builder(ir.to_proto(_prepared(model))).build()


def fallback_nodes(model: onnx.ModelProto | ir.Model | str | Path) -> dict[str, str]:
    """Return the nodes that :func:`to_torch` would leave to ONNX Runtime, by name, and why.

    Raises:
        ModelError: As :func:`to_torch`.
        ConversionError: Likewise.
    """
    converted = _Builder(ir.to_proto(_prepared(model))).convert_all()
    return {result.name: result.fallback for result in converted if result.fallback}


def _prepared(model: onnx.ModelProto | ir.Model | str | Path) -> ir.Model:
    return model if isinstance(model, ir.Model) else restructure(editable(load_model(model)), opset=False)


@dataclass(frozen=True)
class _Converted:
    """A node and its module; ``fallback`` says why it is one of ONNX Runtime's, "" where it is torch's own.

    ``name`` is the node's, or for one without its operator's with a number.
    """

    node: onnx.NodeProto
    name: str
    converted: OperationConverterResult
    fallback: str = ""


class _Builder:
    """Builds one module: values by name on the one side, fx nodes on the other."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.onnx_graph = OnnxGraph(proto.graph)
        self.opsets = {
            ("" if entry.domain == "ai.onnx" else entry.domain): entry.version for entry in proto.opset_import
        }
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.root.add_module("constants", nn.Module())
        self.counts: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)
        self.values: dict[str, fx.Node] = {}
        self.initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.types = tensor_types(proto)

    def build(self) -> TorchModel:
        for value in self.proto.graph.input:
            if value.name in self.initializers:
                continue
            identifier = self._identifier("input")
            node = self.graph.create_node("placeholder", identifier, name=identifier)
            node.meta["onnx_tensor"] = value.name
            self.values[value.name] = node
        for converted in self.convert_all():
            self._add_node(converted)
        outputs = tuple(self._value(value.name) for value in self.proto.graph.output)
        self.graph.output(outputs[0] if len(outputs) == 1 else outputs)
        self.graph.lint()
        module = TorchModel(self.root, self.graph)
        module.eval().requires_grad_(False)
        return module

    def convert_all(self) -> list[_Converted]:
        """Convert every node, or raise one error about all that cannot be."""
        converted, failures = [], []
        taken: set[str | None] = {proto.name for proto in self.proto.graph.node}
        for index, proto in enumerate(self.proto.graph.node):
            name = proto.name or claim(f"{proto.op_type}_{index}", taken)
            try:
                converted.append(self._convert(proto, name))
            except ConversionError as error:
                failures.append(f"node '{name}': {error}")
        if failures:
            rest = len(failures) - _NAMED_AT_MOST
            more = f"; and {rest} more nodes" if rest > 0 else ""
            raise ConversionError("; ".join(failures[:_NAMED_AT_MOST]) + more)
        return converted

    def _convert(self, proto: onnx.NodeProto, name: str) -> _Converted:
        """Convert a node to torch, or, where that cannot be done exactly, have ONNX Runtime run it."""
        domain = _domain(proto.domain)
        if domain not in self.opsets:
            raise ConversionError(f"{domain}::{proto.op_type} is of a domain the model does not import")
        try:
            return _Converted(proto, name, self._to_torch(proto, name, domain))
        except RefusedError:
            raise
        except ConversionError as error:
            reason = str(error)
        try:
            found = convert_by_runtime(proto, name, self.proto, self.types, self.initializers)
        except ConversionError as error:
            if domain not in RUNTIME_DOMAINS:
                raise ConversionError(
                    f"{domain}::{proto.op_type} version {self.opsets[domain]} is of a domain that neither torch nor "
                    "ONNX Runtime knows; export the model with standard operators"
                ) from error
            raise ConversionError(f"{reason}; {error}") from error
        return _Converted(proto, name, found, reason)

    def _to_torch(self, proto: onnx.NodeProto, name: str, domain: str) -> OperationConverterResult:
        foreign = foreign_tensor(proto, self.types)
        if foreign is not None:
            raise ConversionError(f"{proto.op_type} with {foreign} cannot be converted to torch")
        convert = find_converter(proto.op_type, domain, self.opsets[domain])
        try:
            return convert(OnnxNode(proto, unique_name=name), self.onnx_graph)
        except ConversionError:
            raise
        # onnx2torch's converters raise whatever they meet (KeyError, AttributeError, RuntimeError, ...).
        except Exception as error:
            raise ConversionError(
                f"{domain or 'ai.onnx'}::{proto.op_type} cannot be converted to torch: {type(error).__name__}: {error}"
            ) from error

    def _add_node(self, result: _Converted) -> None:
        proto, converted = result.node, result.converted
        identifier = self._identifier("node")
        self.root.add_module(identifier, converted.torch_module)
        args, kwargs = self._arguments(converted)
        node = self.graph.create_node("call_module", identifier, args, kwargs, name=identifier)
        node.meta["onnx_node"] = result.name
        node.meta["onnx_op_type"] = proto.op_type
        node.meta["onnx_inputs"] = list(proto.input)
        node.meta["onnx_outputs"] = list(proto.output)
        if result.fallback:
            node.meta["onnx_fallback"] = result.fallback
        named = [(index, output) for index, output in enumerate(proto.output) if output]
        if len(named) == 1 and named[0][0] == 0:
            self.values[named[0][1]] = node
            return
        for index, output in named:
            item = self.graph.create_node(
                "call_function", operator.getitem, (node, index), name=self._identifier("output")
            )
            item.meta["onnx_tensor"] = output
            self.values[output] = item

    def _arguments(self, converted: OperationConverterResult) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the module is called with: positional up to the first absent input, by keyword behind it."""
        values = [self._value(name) if name else None for name in converted.onnx_mapping.inputs]
        if None not in values:
            return tuple(values), {}
        first = values.index(None)
        parameters = list(inspect.signature(converted.torch_module.forward).parameters)
        named = zip(parameters[first:], values[first:], strict=False)
        return tuple(values[:first]), {name: value for name, value in named if value is not None}

    def _identifier(self, kind: str) -> str:
        """Return the next name of a kind: no text of the model stands in the source that torch.fx generates and runs."""
        return f"{kind}_{next(self.counts[kind])}"

    def _value(self, name: str) -> fx.Node:
        """Return the fx node of a tensor; a constant gets one when it is first used."""
        if name not in self.values:
            if name not in self.initializers:
                raise ConversionError(f"tensor '{name}' is read but made by no node, input or initializer")
            identifier = self._identifier("constant")
            self.root.get_submodule("constants").register_buffer(identifier, to_tensor(self.initializers[name]))
            node = self.graph.create_node("get_attr", f"constants.{identifier}", name=identifier)
            node.meta["onnx_tensor"] = name
            self.values[name] = node
        return self.values[name]


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
