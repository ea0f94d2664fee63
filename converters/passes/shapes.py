"""Shape and type inference."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from mrecg_onnx.converters.passes.inference import run_inference
from mrecg_onnx.converters.passes.lengths import followed_sizes
from mrecg_onnx.converters.passes.values import constant, is_standard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["drop_stale", "infer_node", "infer_shapes", "inferred_shapes", "is_vague"]

logger = logging.getLogger(__name__)

# What onnx calls a size that it knows nothing about.
_MADE_UP = "unk__"
# The domain of what is in front of each Slice while shapes are inferred.
_GUARD = "mrecg_onnx.guard"
# Where sizes come from, and what exporters compute with them.
_OF_SHAPES = frozenset({"Constant", "Shape", "Size"})
_ON_SIZES = frozenset(
    {"Add", "Cast", "Concat", "Div", "Floor", "Gather", "Identity", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze"}
)
# Sizes that inference follows at most, at 140 bytes each in memory.
_MOST_SIZES = 2**20
# Key of a model's ``meta``: inference cannot follow its sizes.
_LONG = "mrecg_onnx.long_sizes"
# So many of those follow each other at most.
_MOST_STEPS = 8
# Longer constants do not decide the shape of anything.
_MAX_LENGTH = 64


def infer_shapes(model: ir.Model) -> ir.Model:
    """Infer every value's shape and type, with data propagation; what the user declared for in- and outputs stays.

    Symbolic shapes of inner values are inferred anew, because names that an earlier run made up (``unk__0``) hide the
    user's own (``batch``) which become visible once shape arithmetic has been folded. Where inference has nothing to
    say (custom operators, a Reshape whose -1 is a multiple of ``batch``), the old shape stays.
    """
    sizes = followed_sizes(model.graph.all_nodes())
    kept = [(value, value.shape, value.type) for value in (*model.graph.inputs, *model.graph.outputs)]
    fixed = {id(value) for value, _, _ in kept}
    old: list[tuple[ir.Value, ir.Shape]] = []
    for node in model.graph:
        for output in node.outputs:
            if id(output) not in fixed and output.shape is not None and not output.shape.is_static():
                old.append((output, output.shape))
                output.shape = None
    _infer(model, sizes)
    for value, shape in old:
        if value.shape is None or (is_vague(value.shape) and not is_vague(shape)):
            value.shape = shape
    for value, shape_, type_ in kept:
        if shape_ is not None:
            value.shape = shape_
        if type_ is not None:
            value.type = type_
    return model


def drop_stale(model: ir.Model) -> ir.Model:
    """Let what is inferred of inner values and outputs win over what the file declares, where the two contradict each other.

    Files keep declarations of a size that their inputs no longer have, and ONNX Runtime goes on with what it infers. What is
    declared stays where inference has nothing to say, and at outputs, where it has, the names of free sizes; what follows from
    that is inferred.
    """
    declared: list[tuple[ir.Value, ir.Shape]] = []
    for graph in model.graphs():
        for node in graph:
            for output in node.outputs:
                if output.shape is not None:
                    declared.append((output, output.shape))
                    output.shape = None
    _infer(model, followed_sizes(model.graph.all_nodes()))
    stays = False
    for value, shape in declared:
        inferred = value.shape
        value.shape = shape if inferred is None else _merged(shape, inferred, value)
        stays = stays or (value.shape != inferred and bool(value.uses()))
    return infer_shapes(model) if stays else model


def _infer(model: ir.Model, sizes: float) -> None:
    """Run onnx's inference on values without a shape; ``sizes``: how many it follows at most.

    Its code for Slice ends the process where a size below 0 is cut (onnx 1.23 as it is on PyPI), and kernels larger than what
    they read make such sizes without a word. So a call of a function that gives what it is given stands in front of each Slice
    meanwhile, and makes sizes below 0 unknown.
    """
    guards: list[tuple[ir.Node, ir.Value, ir.Node]] = []
    for graph in model.graphs():
        for cut in [node for node in graph if is_standard(node, "Slice")]:
            value = cut.inputs[0] if cut.inputs else None
            if value is None or _holds_sizes(value):
                continue
            guard = ir.node("Same", [value], domain=_GUARD, name=f"{_GUARD}/{len(guards)}")
            guard.outputs[0].name = guard.name
            graph.insert_before(cut, guard)
            cut.replace_input_with(0, guard.outputs[0])
            guards.append((cut, value, guard))
    if guards:
        function = _same()
        model.functions[function.identifier()] = function
        model.opset_imports[_GUARD] = 1
    try:
        _propagate(model, sizes)
    finally:
        for cut, value, guard in guards:
            cut.replace_input_with(0, value)
            assert cut.graph is not None
            cut.graph.remove(guard, safe=True)
        if guards:
            del model.functions[function.identifier()], model.opset_imports[_GUARD]


def _propagate(model: ir.Model, sizes: float) -> None:
    """Infer with the values of ``sizes`` sizes, or without them where these are many.

    Where their number follows from sizes itself (a ConstantOfShape of a product of sizes, added to something), another process
    infers, in bounded memory.
    """
    if _LONG not in model.meta:
        if sizes == math.inf and run_inference(model, data_prop=False):
            sizes = followed_sizes(model.graph.all_nodes())
        unknown = sizes == math.inf
        if (unknown or sizes <= _MOST_SIZES) and run_inference(model, data_prop=True, apart=unknown):
            return
    if run_inference(model, data_prop=False):
        model.meta[_LONG] = True


def _same() -> ir.Function:
    """A function that reshapes a tensor to its own shape: the same tensor, in an opset where inference sees that."""
    given = ir.Value(name="given")
    shape = ir.node("Shape", [given])
    same = ir.node("Reshape", [given, shape.outputs[0]])
    shape.outputs[0].name, same.outputs[0].name = "shape", "same"
    graph = ir.Graph([given], same.outputs, nodes=[shape, same], name="same", opset_imports={"": 18})
    return ir.Function(_GUARD, "Same", graph=graph, attributes=[])


def _holds_sizes(value: ir.Value, steps: int = _MOST_STEPS) -> bool:
    """Tell whether ``value`` is computed from shapes and constants alone: what inference propagates, and of no size below 0."""
    node = value.producer()
    if node is None:
        return value.is_initializer()
    if node.op_type in _OF_SHAPES:
        return True
    passes = node.op_type in _ON_SIZES and is_standard(node) and steps > 0
    return passes and all(_holds_sizes(source, steps - 1) for source in node.inputs if source is not None)


def _merged(declared: ir.Shape, inferred: ir.Shape, value: ir.Value) -> ir.Shape:
    if len(declared) != len(inferred):
        return inferred
    pairs = list(zip(declared, inferred, strict=True))
    if any(isinstance(old, int) and isinstance(new, int) and old != new for old, new in pairs):
        logger.debug("the declared shape %s of '%s' is not %s", declared, value.name, inferred)
        return inferred
    return declared if value.is_graph_output() else ir.Shape([old if _unknown(new) else new for old, new in pairs])


def _unknown(size: int | ir.SymbolicDim) -> bool:
    return not isinstance(size, int) and (size.value is None or size.value.startswith(_MADE_UP))


def is_vague(shape: ir.Shape) -> bool:
    """Tell whether a size of ``shape`` is unknown, without even a name that the user gave."""
    return any(_unknown(size) for size in shape)


def infer_node(node: ir.Node, version: int) -> None:
    """Infer the outputs' shapes, and types that are not known, of one node of opset ``version`` from its inputs' as they are now.

    Shape inference of the whole model has to be repeated for each Reshape that becomes known; this has not.
    """
    found = _inferred(node, version)
    for output in node.outputs:
        if output.name in found and output.type is None and found[output.name].tensor_type.elem_type:
            output.type = ir.TensorType(ir.DataType(found[output.name].tensor_type.elem_type))
        if output.name in found and found[output.name].tensor_type.HasField("shape"):
            dims = found[output.name].tensor_type.shape.dim
            output.shape = ir.Shape([d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims])


def inferred_shapes(node: ir.Node, version: int) -> list[list[int]] | None:
    """The shapes of a node's outputs that follow from its inputs as they are now, None unless all are known as numbers.

    What is declared of the outputs says nothing here.
    """
    found = _inferred(node, version)
    shapes = []
    for output in node.outputs:
        if not output.name:
            continue
        kind = found[output.name].tensor_type if output.name in found else None
        if kind is None or not kind.HasField("shape"):
            return None
        sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim]
        if any(size < 0 for size in sizes):
            return None
        shapes.append(sizes)
    return shapes


def _inferred(node: ir.Node, version: int) -> Mapping[str | None, onnx.TypeProto]:
    if not is_standard(node) or not onnx.defs.has(node.op_type, version):
        return {}
    proto = ir.to_proto(node)
    if any(attribute.HasField("g") or attribute.graphs for attribute in proto.attribute):
        return {}
    # Sequences have no shape here.
    known = [value for value in node.inputs if value is not None and isinstance(value.type, ir.TensorType)]
    known = [value for value in known if value.dtype not in {None, ir.DataType.UNDEFINED}]  # a type may be left open
    types = {value.name or "": _type_proto(value) for value in known}
    if len(types) < len({value for value in node.inputs if value is not None}):
        return {}
    if any(isinstance(size, int) and size < 0 for value in known for size in value.shape or ()):  # as in _infer
        return {}
    try:
        found: dict[str | None, onnx.TypeProto] = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, version),
            proto,
            types,
            _small_constants(known),
            opset_imports=[onnx.helper.make_opsetid("", version)],
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        logger.debug("no shapes for node %s: %s", node.name, error)
        return {}
    return found


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    sizes = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return onnx.helper.make_tensor_type_proto(int(value.dtype or ir.DataType.UNDEFINED), sizes)


def _small_constants(values: Iterable[ir.Value]) -> dict[str, onnx.TensorProto]:
    arrays = {value.name or "": constant(value) for value in values}
    return {
        name: onnx.numpy_helper.from_array(array, name)
        for name, array in arrays.items()
        if array is not None and array.size <= _MAX_LENGTH
    }
