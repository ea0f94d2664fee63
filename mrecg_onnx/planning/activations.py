"""Which values of a graph are activations, and who computes, passes on or reads them.

A thin index over a normalized :class:`onnx_ir.Model`; everything above asks here instead of walking nodes itself.
"""

from __future__ import annotations

import onnx_ir as ir

from mrecg_onnx.converters.passes.pooling import miscounts

__all__ = [
    "CAPTURES", "CLAMPS", "FALLBACK", "FLOATS", "FLOAT_ONLY", "FLOAT_RESULT", "INTEGER_OPS", "OWNER", "PRESERVING_OPS",
    "WEIGHTED_OPS", "activation_inputs", "activation_outputs", "ahead_of_layers", "behind_layers", "channel_ceilings",
    "clamp_bounds", "constant", "is_activation", "is_bridge", "is_clamp", "is_fallback", "is_layer", "is_preserving",
    "is_weighted", "lacks_kernel", "only_reader", "readers", "reads_activations", "weight_index",
]  # fmt: skip

#: Ops that may carry weights.
WEIGHTED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: Ops whose outputs are values of their input: codes move, the scale stays. Pad only with zeros, Resize only nearest.
PRESERVING_OPS = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
#: Computing ops for which ONNX Runtime's CPU provider has integer kernels behind Q/DQ (measured with 1.31).
INTEGER_OPS = frozenset({
    "Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "MatMul", "Mul", "Resize", "Sigmoid", "Softmax",
})  # fmt: skip
#: Layers for which ONNX Runtime's CPU provider has no integer kernel.
FLOAT_ONLY = frozenset({"ConvTranspose"})
#: Layers with integer kernels that write floats.
FLOAT_RESULT = frozenset({"Gemm", "MatMul"})
#: Ops that a quantizer behind them absorbs: they only clamp.
CLAMPS = frozenset({"Relu", "Clip"})
#: Ops that read sizes, not values.
_SIZES = frozenset({"Shape", "Size"})
#: Attributes through which a node may read tensors that are not among its inputs.
_BODIES = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})
_DEPENDS = "mrecg_onnx.depends_on_input"
#: Element types of activations.
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})

#: Keys of a node's ``meta``, written by :func:`mrecg_onnx.planning.fallback.mark_fallbacks`: why torch cannot run it; the
#: outer values that its subgraphs read; the node of the main graph whose subgraph it is in.
FALLBACK, CAPTURES, OWNER = "mrecg_onnx.fallback", "mrecg_onnx.captures", "mrecg_onnx.owner"


def is_fallback(node: ir.Node) -> bool:
    """True for a node that ONNX Runtime runs inside the torch module, forward only."""
    return FALLBACK in node.meta


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant behind ``value`` (an initializer), None for everything computed."""
    return value.const_value if value is not None and value.is_initializer() else None


def is_activation(value: ir.Value | None) -> bool:
    """True for a float tensor (unknown types count as float) that is fed, or computed from what is fed.

    False for constants, integers, floats computed from constants and sizes alone (an expanded token, a square root of
    a width), and what is known to have no element.
    """
    if value is None or value.is_initializer() or (value.shape is not None and 0 in value.shape):
        return False
    return (value.dtype is None or value.dtype in FLOATS) and _depends_on_input(value)


def _depends_on_input(value: ir.Value) -> bool:
    """True if ``value`` depends on the values, not only the sizes, of a graph input; remembered in its ``meta``."""
    stack = [value]
    while stack:
        top = stack[-1]
        maker = top.producer()
        if _DEPENDS not in top.meta and maker is not None:
            inputs = () if maker.op_type in _SIZES else maker.inputs
            sources = [v for v in inputs if v is not None and not v.is_initializer()]
            unknown = [v for v in sources if _DEPENDS not in v.meta]
            if unknown:
                stack += unknown
                continue
            has_body = any(a.type in _BODIES for a in maker.attributes.values())
            top.meta[_DEPENDS] = has_body or any(v.meta[_DEPENDS] for v in sources)
        top.meta.setdefault(_DEPENDS, True)
        stack.pop()
    return bool(value.meta[_DEPENDS])


def reads_activations(node: ir.Node) -> bool:
    """True if :func:`activation_inputs` has any; a Sum of thousands is not looked through for that."""
    return any(v is not None and is_activation(v) for v in (*node.inputs, *node.meta.get(CAPTURES, ())))


def activation_inputs(node: ir.Node) -> list[ir.Value]:
    """Float inputs of ``node`` that are not constant, and what its subgraphs read of such, without repetition."""
    values = (*node.inputs, *node.meta.get(CAPTURES, ()))
    return list(dict.fromkeys(v for v in values if v is not None and is_activation(v)))


def activation_outputs(node: ir.Node) -> list[ir.Value]:
    """Float outputs of ``node`` that have a name."""
    return [v for v in node.outputs if v.name and is_activation(v)]


def readers(value: ir.Value) -> list[ir.Node]:
    """Nodes of the main graph that read ``value``, without repetition, in the order of its uses."""
    return list(dict.fromkeys(node.meta.get(OWNER, node) for node, _ in value.uses()))


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node of the main graph that alone reads ``value``, None if there are none or several."""
    found = None
    for node, _ in value.uses():
        owner = node.meta.get(OWNER, node)
        if found is not None and owner is not found:
            return None
        found = owner
    return found


def weight_index(node: ir.Node) -> int | None:
    """Position of the constant weight among the inputs of a weighted node, None if there is none."""
    if node.op_type not in WEIGHTED_OPS or node.domain not in {"", "ai.onnx"} or is_fallback(node):
        return None
    for index in (1,) if node.op_type != "MatMul" else (1, 0):
        if index >= len(node.inputs):
            continue
        tensor = constant(node.inputs[index])
        if tensor is not None and len(tensor.shape) >= 2 and is_activation(node.inputs[0 if index else 1]):
            return index
    return None


def is_weighted(node: ir.Node) -> bool:
    """True for a Conv, ConvTranspose, Gemm or MatMul with a constant weight of two or more dimensions."""
    return weight_index(node) is not None


def is_bridge(node: ir.Node) -> bool:
    """True for a weighted layer that only scales and shifts each channel: a BatchNormalization that no layer took."""
    weight = constant(node.inputs[1]) if is_weighted(node) and node.op_type == "Conv" else None
    if weight is None:
        return False
    steps = node.attributes.get_ints("strides", [1]), node.attributes.get_ints("pads", [0])
    alone = weight.shape[0] == node.attributes.get_int("group", 1) and all(size == 1 for size in list(weight.shape)[1:])
    return alone and all(step == 1 for step in steps[0]) and not any(steps[1])


def is_layer(node: ir.Node) -> bool:
    """True for a weighted layer that is no bridge: what is first, last, or one of a unit's."""
    return is_weighted(node) and not is_bridge(node)


def _all_zero(value: ir.Value | None) -> bool:
    tensor = constant(value)
    return value is None or (tensor is not None and not tensor.numpy().any())


def is_preserving(node: ir.Node) -> bool:
    """True if the first output of ``node`` only holds values of its first input, or zeros."""
    if node.op_type not in PRESERVING_OPS or node.domain not in {"", "ai.onnx"} or not node.inputs:
        return False
    if not is_activation(node.inputs[0]) or is_fallback(node):
        return False
    if node.op_type == "Pad":
        mode = node.attributes.get_string("mode", "constant")
        return mode != "constant" or _all_zero(node.inputs[2] if len(node.inputs) > 2 else None)
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1 or not node.outputs[1].uses()
    return True


def lacks_kernel(node: ir.Node) -> str | None:
    """Why ONNX Runtime's integer kernel cannot do what a node of :data:`INTEGER_OPS` does (measured with 1.31 and 1.32).

    QLinearAveragePool has no dilations, and divides by the whole window where one hangs over pads that count;
    QLinearGlobalAveragePool wants an axis to average over. None for every other node.
    """
    if node.op_type == "AveragePool":
        if any(step != 1 for step in node.attributes.get_ints("dilations", [1])):
            return "dilated windows"
        if miscounts(node):
            return "windows over the edge beside pads that count"
    if node.op_type == "GlobalAveragePool":
        value = node.inputs[0]
        if value is not None and value.shape is not None and len(value.shape) < 3:
            return "no axis to average over"
    return None


def clamp_bounds(node: ir.Node) -> tuple[float | None, float | None] | None:
    """(low, high) of a Relu or a Clip with constant bounds, None for any other node."""
    if node.op_type not in CLAMPS or is_fallback(node):
        return None
    if node.op_type == "Relu":
        return 0.0, None
    bounds: list[float | None] = []
    for index in (1, 2):
        value = node.inputs[index] if index < len(node.inputs) else None
        tensor = constant(value)
        if value is not None and (tensor is None or tensor.size != 1):
            return None
        bounds.append(None if tensor is None else float(tensor.numpy().item()))
    return bounds[0], bounds[1]


def channel_ceilings(node: ir.Node) -> tuple[float, ...] | None:
    """Upper bound of each channel behind a Min with one activation and a constant [1, C, 1, ...], None for any other node."""
    if node.op_type != "Min" or len(node.inputs) != 2 or not is_activation(node.inputs[0]):
        return None
    tensor, source = constant(node.inputs[1]), node.inputs[0]
    if tensor is None or source is None or source.shape is None or len(source.shape) < 2:
        return None
    array = tensor.numpy()
    if array.ndim != len(source.shape) or array.shape[1] != source.shape[1] or array.size != array.shape[1]:
        return None
    return tuple(float(x) for x in array.reshape(-1))


def is_clamp(node: ir.Node) -> bool:
    """True for an op that only clamps, and that a quantizer behind it absorbs: bounds of its own, or one a channel."""
    return clamp_bounds(node) is not None or channel_ceilings(node) is not None


def ahead_of_layers(model: ir.Model) -> set[ir.Node]:
    """Nodes from which a weighted layer can be reached (the layer itself not counted)."""
    result: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        for output in node.outputs:
            if any(reader in result or is_layer(reader) for reader in readers(output)):
                result.add(node)
    return result


def behind_layers(model: ir.Model) -> set[ir.Node]:
    """Nodes that a weighted layer reaches (the layer itself not counted)."""
    result: set[ir.Node] = set()
    for node in model.graph:
        makers = [v.producer() for v in node.inputs if v is not None]
        if any(maker is not None and (maker in result or is_layer(maker)) for maker in makers):
            result.add(node)
    return result
