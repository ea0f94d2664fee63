"""One run of onnx's shape inference over a model in memory, in time that grows with its nodes.

``onnx_ir``'s own pass looks through all inputs for each initializer (the square of their number) and builds the whole graph
anew to read the shapes that came back; here the shapes are read from what onnx made, and only those.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run_inference"]

logger = logging.getLogger(__name__)

# Larger constants decide no shape; onnx gets their types alone.
_LARGEST = 1000

# Bytes that a process of its own may take beyond its libraries, and seconds.
_ROOM = 2**28
_LIMIT_S = 60.0
_ALONE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import onnx
try:
    import resource
    with open("/proc/self/statm", encoding="ascii") as file:
        bound = int(file.read().split()[0]) * resource.getpagesize() + int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
except (ImportError, OSError, ValueError):
    pass  # no such bound here, or a lower one is set
model = onnx.load_from_string(sys.stdin.buffer.read())
found = onnx.shape_inference.infer_shapes(model, **json.loads(sys.argv[3]))
sys.stdout.buffer.write(found.SerializeToString())
"""

_Known = tuple["ir.Shape | None", "ir.DataType | None"]


def run_inference(model: ir.Model, *, data_prop: bool, apart: bool = False) -> bool:
    """Give values the shapes and types that onnx infers, with the values of sizes followed or not.

    Args:
        model: Changed in place.
        data_prop: Follow them.
        apart: In a process of its own, which may take :data:`_ROOM` and :data:`_LIMIT_S`.

    Returns:
        False where onnx fails, or takes more than that: the model is as it was.
    """
    try:
        with _types_alone(model):
            proto = ir.to_proto(model)
        infer = _apart if apart else onnx.shape_inference.infer_shapes
        found = infer(proto, check_type=False, strict_mode=False, data_prop=data_prop)
    except Exception as error:  # noqa: BLE001 - onnx raises of all kinds; shapes are then as they were declared
        logger.debug("shape inference failed: %s", error)
        return False
    _take(model.graph, found.graph, {})
    return True


def _apart(proto: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """Infer with ``options`` in another process: where onnx runs out of memory it may take its process along.

    Raises:
        subprocess.SubprocessError: It failed, or took too much.
        OSError: There is no other process here.
        ValueError: It gave no model.
    """
    path = json.dumps([folder for folder in sys.path if folder])
    done = subprocess.run(  # noqa: S603 - this interpreter, on code that stands here
        [sys.executable, "-I", "-c", _ALONE, path, str(_ROOM), json.dumps(options)],
        input=proto.SerializeToString(),
        capture_output=True,
        timeout=_LIMIT_S,
        check=True,
    )
    return onnx.load_from_string(done.stdout)


@contextmanager
def _types_alone(model: ir.Model) -> Iterator[None]:
    """Let initializers be inputs meanwhile, and large ones nothing else."""
    graph = model.graph
    values = list(graph.initializers.values())
    tensors = [value.const_value for value in values]
    inputs = list(graph.inputs)
    given = set(inputs)
    try:
        for value, tensor in zip(values, tensors, strict=True):
            if tensor is not None and value.shape is None:
                value.shape = ir.Shape(tensor.shape)  # type: ignore[arg-type]
            if tensor is not None and value.dtype is None:
                value.dtype = tensor.dtype
            if value not in given:
                graph.inputs.append(value)
            if tensor is None or tensor.nbytes > _LARGEST:
                value.const_value = None
                del graph.initializers[str(value.name)]
        yield
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor
            graph.initializers[str(value.name)] = value
        graph.inputs.clear()
        graph.inputs.extend(inputs)


def _take(graph: ir.Graph, proto: onnx.GraphProto, known: dict[bytes, _Known]) -> None:
    """Take shapes and types from ``proto``, which has the nodes of ``graph`` in their order; ``known``: those read before."""
    found = {info.name: info.type for part in (proto.value_info, proto.input, proto.output) for info in part}
    for tensor in proto.initializer:
        if tensor.name not in found:
            found[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    for value in _values(graph):
        if value.name in found:
            _set(value, *_known(found[value.name], known))
    inner = [_graphs(node) for node in graph]
    if any(inner):
        for graphs, made in zip(inner, proto.node, strict=True):
            attributes = {attribute.name: attribute for attribute in made.attribute}
            for name, subgraphs in graphs.items():
                protos = [attributes[name].g] if attributes[name].HasField("g") else attributes[name].graphs
                for subgraph, of in zip(subgraphs, protos, strict=True):
                    _take(subgraph, of, known)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _graphs(node: ir.Node) -> dict[str, list[ir.Graph]]:
    """The graphs among the attributes of ``node``, by name."""
    found = {}
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            found[name] = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            found[name] = list(attribute.as_graphs())
    return found


def _known(kind: onnx.TypeProto, known: dict[bytes, _Known]) -> _Known:
    """Shape and type of elements; the tensors of a network have few different ones."""
    key = kind.SerializeToString()
    if key not in known:
        of = ir.serde.deserialize_type_proto_for_type(kind)
        known[key] = ir.serde.deserialize_type_proto_for_shape(kind), None if of is None else of.dtype
    return known[key]


def _set(value: ir.Value, shape: ir.Shape | None, dtype: ir.DataType | None) -> None:
    if shape is not None and value.shape is not shape and value.shape != shape:
        value.shape = shape
    if dtype is not None and value.dtype != dtype:
        value.dtype = dtype
