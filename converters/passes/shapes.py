"""Shape and type inference."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from mrecg_onnx.converters.passes.values import constant, is_standard

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["drop_stale", "infer_node", "infer_shapes", "is_vague"]

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
    kept = [(value, value.shape, value.type) for value in (*model.graph.inputs, *model.graph.outputs)]
    fixed = {id(value) for value, _, _ in kept}
    old: list[tuple[ir.Value, ir.Shape]] = []
    for node in model.graph:
        for output in node.outputs:
            if id(output) not in fixed and output.shape is not None and not output.shape.is_static():
                old.append((output, output.shape))
                output.shape = None
    _infer(model)
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
    declared stays where inference has nothing to say, and at outputs, where it has, the names of free sizes.
    """
    declared: list[tuple[ir.Value, ir.Shape]] = []
    for graph in model.graphs():
        for node in graph:
            for output in node.outputs:
                if output.shape is not None:
                    declared.append((output, output.shape))
                    output.shape = None
    _infer(model)
    for value, shape in declared:
        value.shape = shape if value.shape is None else _merged(shape, value.shape, value)
    return model


def _infer(model: ir.Model) -> None:
    """Run onnx's inference on values without a shape.

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
        ir_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    finally:
        for cut, value, guard in guards:
            cut.replace_input_with(0, value)
            assert cut.graph is not None
            cut.graph.remove(guard, safe=True)
        if guards:
            del model.functions[function.identifier()], model.opset_imports[_GUARD]


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
    if not is_standard(node) or not onnx.defs.has(node.op_type, version):
        return
    proto = ir.to_proto(node)
    if any(attribute.HasField("g") or attribute.graphs for attribute in proto.attribute):
        return
    # Sequences have no shape here.
    known = [value for value in node.inputs if value is not None and isinstance(value.type, ir.TensorType)]
    types = {value.name or "": _type_proto(value) for value in known}
    if len(types) < len({value for value in node.inputs if value is not None}):
        return
    if any(isinstance(size, int) and size < 0 for value in known for size in value.shape or ()):  # as in _infer
        return
    try:
        found = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, version),
            proto,
            types,
            _small_constants(known),
            opset_imports=[onnx.helper.make_opsetid("", version)],
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        logger.debug("no shapes for node %s: %s", node.name, error)
        return
    for output in node.outputs:
        if output.name in found and output.type is None and found[output.name].tensor_type.elem_type:
            output.type = ir.TensorType(ir.DataType(found[output.name].tensor_type.elem_type))
        if output.name in found and found[output.name].tensor_type.HasField("shape"):
            dims = found[output.name].tensor_type.shape.dim
            output.shape = ir.Shape([d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims])


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    sizes = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    element = onnx.TensorProto.UNDEFINED if value.dtype is None else int(value.dtype)
    return onnx.helper.make_tensor_type_proto(element, sizes)


def _small_constants(values: Iterable[ir.Value]) -> dict[str, onnx.TensorProto]:
    arrays = {value.name or "": constant(value) for value in values}
    return {
        name: onnx.numpy_helper.from_array(array, name)
        for name, array in arrays.items()
        if array is not None and array.size <= _MAX_LENGTH
    }
