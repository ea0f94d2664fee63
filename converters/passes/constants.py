"""Fold constants.

Own code rather than onnxscript's folder: that one leaves its own metadata in the user's file, does not fold nodes with
several outputs, gives up names on the nodes it rewrites, and does not follow the scalar Gather of the usual exports.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from mrecg_onnx.converters.passes.values import add_initializer, constant, is_standard

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_FOLDED_BYTES", "fold_constants", "make_constant"]

logger = logging.getLogger(__name__)

MAX_FOLDED_BYTES = 256 * 2**20
"""A node that would blow its constant inputs up to more than this (Expand, Tile) stays a node.

It does not where it makes other numbers of as many, as DequantizeLinear and Cast do of weights.
"""

# The reference implementation has these from later opsets on, which merely took in more types.
_IMPLEMENTED_FROM = {"DequantizeLinear": 19, "QuantizeLinear": 19}

# Bytes that a byte may become: int8 to float64.
_WIDER = 8

# Different at each run. (Weights that were stored in integers are floats again: it is quantized activations that make a
# quantized model.)
_NEVER = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


def fold_constants(model: ir.Model) -> bool:
    """Replace every node whose inputs are all constant by initializers under its outputs' names.

    A node that makes a graph output stays, as a graph output cannot be an initializer everywhere.

    Returns:
        Whether anything was folded.
    """
    version = model.opset_imports.get("", 0)
    folded = False
    for node in list(model.graph):
        if not _foldable(node):
            continue
        inputs = {value.name: constant(value) for value in node.inputs if value is not None and value.name}
        results = _evaluate(node, version, inputs)
        if results is None:
            continue
        for output, array in zip(node.outputs, results, strict=True):
            if output.name and output.uses():
                make_constant(output, array)
        model.graph.remove(node, safe=True)
        folded = True
    return folded


def make_constant(output: ir.Value, array: NDArray[np.generic]) -> ir.Value:
    """Let the readers of ``output`` read an initializer of the same name that holds ``array``."""
    node = output.producer()
    assert node is not None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    assert output.name is not None
    name, output.name = output.name, None
    initializer = add_initializer(graph, name, array, free=True)
    initializer.metadata_props.update(output.metadata_props)
    initializer.doc_string = output.doc_string
    ir.convenience.replace_all_uses_with(output, initializer)
    return initializer


def _foldable(node: ir.Node) -> bool:
    if not is_standard(node) or node.op_type in _NEVER:
        return False
    if any(
        attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for attribute in node.attributes.values()
    ):
        return False
    if any(output.is_graph_output() for output in node.outputs):
        return False
    return all(value is None or constant(value) is not None for value in node.inputs)


def _evaluate(
    node: ir.Node, version: int, inputs: dict[str, NDArray[np.generic] | None]
) -> list[NDArray[np.generic]] | None:
    """Run one node on ONNX's reference implementation; None where that has no implementation of it."""
    proto = ir.to_proto(node)
    names = [name for name in proto.output if name]
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.ValueInfoProto(name=name) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in names],
    )
    version = max(version, _IMPLEMENTED_FROM.get(node.op_type, 0))
    single = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    try:
        # The reference implementation raises whatever numpy or its own code does; then the node simply stays.
        results = onnx.reference.ReferenceEvaluator(single).run(None, inputs)
    except Exception as error:  # noqa: BLE001
        logger.debug("node %s (%s) is not folded: %s", node.name, node.op_type, error)
        return None
    arrays = [np.asarray(result) for result in results]
    given = sum(array.nbytes for array in inputs.values() if array is not None)
    if sum(array.nbytes for array in arrays) > max(MAX_FOLDED_BYTES, _WIDER * given):
        return None
    found = iter(arrays)
    return [next(found) if output.name else np.empty(0) for output in node.outputs]
