"""Fold constants.

Own code rather than onnxscript's folder: that one leaves its own metadata in the user's file, does not fold nodes with
several outputs, gives up names on the nodes it rewrites, and does not follow the scalar Gather of the usual exports.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from mrecg_onnx.converters.passes.shapes import inferred_shapes
from mrecg_onnx.converters.passes.values import add_initializer, constant, is_standard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Inputs = Mapping[str, NDArray[np.generic] | None]

__all__ = ["MAX_FOLDED_BYTES", "fold_constants", "make_constant"]

logger = logging.getLogger(__name__)

MAX_FOLDED_BYTES = 256 * 10**6
"""So much larger than what they replace all folded constants of a model are together at most; the next nodes stay."""

# A node that would make so many more bytes than its inputs have (Expand, Tile) stays a node.
_MOST_GROWTH = 16 * 10**6

# The reference implementation has these from later opsets on, which merely took in more types.
_IMPLEMENTED_FROM = {"DequantizeLinear": 19, "QuantizeLinear": 19}

# Bytes of the widest element.
_WIDEST = 8
_INTEGERS = frozenset({ir.AttributeType.INT, ir.AttributeType.INTS})
# What ONNX's inference computes is an int64; sizes below keep its products from turning over.
_LARGEST_SIZE = 2**31
# Operators that multiply or add sizes: the places of the inputs that hold such; attributes may, too.
_SIZED: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "AveragePool": (),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "Conv": (),
    "ConvTranspose": (),
    "Expand": (1,),
    "LpPool": (),
    "MaxPool": (),
    "MaxUnpool": (2,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Resize": (2, 3),
    "Tile": (1,),
    "Upsample": (1,),
}
# The reference implementation goes through their elements in Python: some 50 microseconds each.
_SLOW = frozenset(
    {
        "AveragePool",
        "Col2Im",
        "Conv",
        "ConvTranspose",
        "DeformConv",
        "GridSample",
        "LpPool",
        "MaxPool",
        "MaxUnpool",
        "Resize",
        "RoiAlign",
        "Upsample",
    }
)
_MOST_SLOW = 2**18
# What they make is at most as large as what they read, for each axis of that, and no size is inferred for them.
_SHRINKING = frozenset({"Compress", "NonZero", "Unique"})
# Key of a model's ``meta``: by how many bytes its folded constants are larger than what they replaced.
_GROWN = "mrecg_onnx.grown"

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

    A node that makes a graph output stays, as a graph output cannot be an initializer everywhere. So does one that would make
    16 MB more than it reads, other than by a wider type (DequantizeLinear and Cast of weights), and one of whose result no size
    is known before it is computed: a small file must not become a large graph.

    Returns:
        Whether anything was folded.
    """
    version = model.opset_imports.get("", 0)
    folded = False
    for node in list(model.graph):
        if not _foldable(node):
            continue
        inputs = {value.name: constant(value) for value in node.inputs if value is not None and value.name}
        room = MAX_FOLDED_BYTES - model.meta.get(_GROWN, 0)
        if not _may_grow(node, _size_made(node, version, inputs), inputs, room):
            logger.debug("node %s (%s) is not folded: what it makes is too large", node.name, node.op_type)
            continue
        results = _evaluate(node, version, inputs)
        if results is None:
            continue
        model.meta[_GROWN] = model.meta.get(_GROWN, 0) + _growth(results, inputs)
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


def _may_grow(node: ir.Node, size: int | None, inputs: Inputs, room: int) -> bool:
    """Tell whether ``node`` may be computed: it makes ``size`` elements, None where nobody knows."""
    if size is None:
        return False
    if node.op_type in _SLOW and size > _MOST_SLOW:
        return False
    known = [array for array in inputs.values() if array is not None]
    widest = max([_WIDEST, *(array.dtype.itemsize for array in known)])
    grown = size - sum(array.size for array in known)
    return grown * widest <= min(_MOST_GROWTH, room)


def _growth(results: Sequence[NDArray[np.generic]], inputs: Inputs) -> int:
    given = sum(array.size for array in inputs.values() if array is not None)
    made = sum(array.size for array in results)
    return max(0, made - given) * max(array.dtype.itemsize for array in results)


def _size_made(node: ir.Node, version: int, inputs: Inputs) -> int | None:
    """How many elements ``node`` makes, or an upper bound, known before it is computed; None where it is not."""
    arrays = [None if value is None else inputs.get(value.name or "") for value in node.inputs]
    if node.op_type in _SHRINKING:
        return max(1, *(array.size * max(1, array.ndim) for array in arrays if array is not None)) * len(node.outputs)
    if node.op_type == "Einsum":
        return _einsum_size(node, arrays)
    if node.op_type in _SIZED and not _sizes_below(node, arrays, _LARGEST_SIZE):
        return None
    shapes = inferred_shapes(node, version)
    if shapes is None:
        return None
    return sum(math.prod(shape) for shape in shapes)


def _sizes_below(node: ir.Node, arrays: Sequence[NDArray[np.generic] | None], bound: int) -> bool:
    """Tell whether all sizes that an operator of :data:`_SIZED` is given lie between -``bound`` and ``bound``."""
    for place in _SIZED[node.op_type]:
        array = arrays[place] if place < len(arrays) else None
        if array is not None and not all(-bound < number < bound for number in array.reshape(-1).tolist()):
            return False
    listed = [attribute for attribute in node.attributes.values() if attribute.type in _INTEGERS]
    numbers = [n for a in listed for n in (a.as_ints() if a.type == ir.AttributeType.INTS else [a.as_int()])]
    return all(-bound < number < bound for number in numbers)


def _einsum_size(node: ir.Node, arrays: Sequence[NDArray[np.generic] | None]) -> int | None:
    """The product of all sizes that an Einsum names: what it makes, or makes on the way, is no larger."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    sizes: dict[str, int] = {}
    rest = 1
    for term, array in zip(terms, arrays, strict=False):
        if array is None:
            return None
        letters = term.replace("...", "")
        rest *= math.prod(array.shape) if "..." in term else 1
        for letter, size in zip(letters, array.shape, strict=False):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values()) * rest


def _evaluate(node: ir.Node, version: int, inputs: Inputs) -> list[NDArray[np.generic]] | None:
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
    if any(array.dtype.kind in "OSU" for array in arrays):
        logger.debug("node %s (%s) is not folded: it makes texts", node.name, node.op_type)
        return None
    found = iter(arrays)
    return [next(found) if output.name else np.empty(0) for output in node.outputs]
