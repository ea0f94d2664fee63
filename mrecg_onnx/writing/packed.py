"""The container ``packed``: weights in the smallest type that holds their codes, unpacked when the file is loaded.

They are UINT4 or UINT2 initializers behind ``Cast(INT8)`` and ``Sub`` of one offset a channel, or, where codes lie around 0,
INT4 or INT2 behind ``Cast`` alone. Both nodes are constants to ONNX Runtime, which folds them when it loads the file and runs
the same kernels (measured with 1.31; 1.25 to 1.32 open all four, 1.23 those of 4 bits). What it can work out itself is
left out: the scales of biases, which are products of two others, and the types of constants. Zero points that are 0 are one
tensor for all layers of so many channels: the default would do, but ONNX Runtime's converter to its mobile format refuses nodes
without (1.31 and 1.32), and its QGemm wants one, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mrecg_onnx.planning import readers
from mrecg_onnx.writing.constants import Array, Constants, along, array_of, stored_tensor
from mrecg_onnx.writing.opsets import TWO_BITS, Limits
from mrecg_onnx.writing.pairs import dequantizers

__all__ = ["pack", "unpack"]

#: Types of packed weights, unsigned and signed, the smallest first, and how many codes they have.
_PACKED = ((ir.DataType.UINT2, ir.DataType.INT2, 4), (ir.DataType.UINT4, ir.DataType.INT4, 16))
#: Names of zero points that layers share; a layer's own ends in ``_zero_point``.
_SHARED = re.compile(r"zeros_u?int\d+(_\d+)*")
#: Channels from which a computed scale takes fewer bytes than a stored one: the node has about 200.
_WORTH = 48


def _insert(
    graph: ir.Graph, before: ir.Node, op: str, inputs: list[ir.Value], output: str, **attributes: int
) -> ir.Value:
    """A node without a name (it says nothing that its output's does not) in front of another one."""
    node = ir.node(op, inputs, attributes, name="", outputs=[ir.Value(name=output)])
    graph.insert_before(before, node)
    return node.outputs[0]


def pack(model: ir.Model, limits: Limits) -> list[str]:
    """From ``int8`` to ``packed`` in place, with types that ``limits`` allow; returns what stays in INT8."""
    constants, wide = Constants(model), 0
    shared: dict[tuple[str, tuple[int, ...]], ir.Value] = {}
    kinds = [kind for kind in _PACKED if kind[0] != ir.DataType.UINT2 or limits.opset >= TWO_BITS]
    for node, codes, _, zero in dequantizers(model):
        if stored_tensor(codes) is None or len(codes.uses()) > 1:
            continue
        if zero is not None:
            _share_zeros(constants, shared, node)
        if codes.dtype == ir.DataType.INT32:
            _leave_out_bias_scale(model.graph, constants, node)
        elif not _pack_weight(model.graph, constants, node, codes, kinds):
            wide += 1
    constants.write()
    return [f"{wide} layers have codes of more than 4 bits and stay in INT8"] if wide else []


def _pack_weight(
    graph: ir.Graph,
    constants: Constants,
    node: ir.Node,
    codes: ir.Value,
    kinds: Sequence[tuple[ir.DataType, ir.DataType, int]],
) -> bool:
    """Store a layer's codes in the smallest type of ``kinds``; False where none is smaller than INT8."""
    values, axis = array_of(codes).astype(np.int16), node.attributes.get_int("axis", 1)
    dtype, offsets = next(
        (found for kind in kinds if (found := _typed(values, axis, *kind)) is not None),
        (None, None),
    )
    if dtype is None or offsets is None:
        return False
    name = codes.name or ""
    shaped = along(offsets, axis, values.ndim)
    packed = constants.new(constants.name(f"{name}_packed"), values + shaped, dtype, behind=codes)
    constants.drop(codes)
    if offsets.any():
        offset = constants.new(constants.name(f"{name}_offset"), shaped, ir.DataType.INT8)
        cast = _insert(graph, node, "Cast", [packed], constants.name(f"{name}_cast"), to=ir.DataType.INT8)
        made = _insert(graph, node, "Sub", [cast, offset], name)
    else:
        made = _insert(graph, node, "Cast", [packed], name, to=ir.DataType.INT8)
    node.replace_input_with(0, made)
    return True


def _typed(
    values: Array, axis: int, unsigned: ir.DataType, signed: ir.DataType, levels: int
) -> tuple[ir.DataType, Array] | None:
    """The type of ``levels`` codes that holds ``values`` and what is added to them first; None where neither does."""
    lowest, highest = int(values.min()), int(values.max())
    for dtype, low in ((unsigned, 0), (signed, -levels // 2)):
        if low <= lowest and highest < low + levels:
            return dtype, np.array(0)
    offsets = _offsets(values, axis, levels)
    return None if offsets is None else (unsigned, offsets)


def _offsets(values: Array, axis: int, levels: int) -> Array | None:
    """What is added to the codes so that they lie in 0..levels-1: one number where that does, else one a channel."""
    if int(values.max()) - int(values.min()) < levels:
        return np.array(-int(values.min()))
    lines = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    low, high = lines.min(1), lines.max(1)
    return -low if int((high - low).max()) < levels else None


def _share_zeros(constants: Constants, shared: dict[tuple[str, tuple[int, ...]], ir.Value], node: ir.Node) -> None:
    """Let a zero point of 0 be the one of ``shared`` with its type and shape, where :func:`unpack` finds its name and place."""
    _, scale, zero = node.inputs
    stored = stored_tensor(zero)
    if stored is None or scale is None or zero is None or zero.dtype is None or len(zero.uses()) > 1:
        return
    values = stored.numpy()
    if values.any() or constants.next_to(scale) is not zero or zero.name != _zero_name(scale):
        return
    key = (zero.dtype.name.lower(), tuple(values.shape))
    if key not in shared:
        name = constants.name("_".join(("zeros", key[0], *map(str, key[1]))))
        shared[key] = constants.new(name, values, zero.dtype)
    node.replace_input_with(2, shared[key])
    constants.drop(zero)


def _is_shared(zero: ir.Value | None) -> bool:
    """True for a zero point of :func:`_share_zeros`, and for one that is left out, as older files have it."""
    return zero is None or _SHARED.fullmatch(zero.name or "") is not None


def _zero_name(scale: ir.Value) -> str:
    return (scale.name or "").removesuffix("_scale") + "_zero_point"


def _leave_out_bias_scale(graph: ir.Graph, constants: Constants, node: ir.Node) -> None:
    """Let the scale of a bias be computed: it is the product of the scales of the layer's input and weight."""
    codes, scale = node.inputs[:2]
    stored, users = stored_tensor(scale), readers(node.outputs[0])
    makers = [v.producer() if v is not None else None for v in (users[0].inputs[:2] if len(users) == 1 else ())]
    factors = [m.inputs[1] for m in makers if m is not None and m.op_type == "DequantizeLinear"]
    known = [v for v in factors if v is not None and stored_tensor(v) is not None]
    if (
        stored is None
        or scale is None
        or len(scale.uses()) > 1
        or constants.next_to(codes) is not scale
        or len(known) < 2
    ):
        return
    product = array_of(known[0]) * array_of(known[1])
    if product.size < _WORTH or product.shape != stored.numpy().shape or not np.array_equal(product, stored.numpy()):
        return
    constants.drop(scale)
    node.replace_input_with(1, _insert(graph, node, "Mul", known, scale.name or ""))


def unpack(model: ir.Model) -> None:
    """From ``packed`` back to ``int8`` in place."""
    graph, constants = model.graph, Constants(model)
    for node, codes, scale, zero in dequantizers(model):
        if codes.producer() is not None and codes.producer().op_type in {"Cast", "Sub"}:  # type: ignore[union-attr]
            codes = _unpack_weight(graph, constants, node, codes)  # noqa: PLW2901 - what it stands for now
        if stored_tensor(codes) is None:
            continue
        product = scale.producer()
        if product is not None:
            values = array_of(product.inputs[0]) * array_of(product.inputs[1])
            scale = constants.new(scale.name or "", values, ir.DataType.FLOAT, behind=codes)  # noqa: PLW2901
            node.replace_input_with(1, scale)
            graph.remove(product, safe=True)
        if _is_shared(zero):
            assert codes.dtype is not None
            zeros = np.zeros(array_of(scale).shape)
            node.resize_inputs(3)
            node.replace_input_with(2, constants.new(_zero_name(scale), zeros, codes.dtype, behind=scale))
            if zero is not None and not zero.uses():
                constants.drop(zero)
    constants.write()


def _unpack_weight(graph: ir.Graph, constants: Constants, node: ir.Node, codes: ir.Value) -> ir.Value:
    """The codes in INT8, in the place and with the name that they had."""
    last = codes.producer()
    assert last is not None
    cast = last.inputs[0].producer() if last.op_type == "Sub" else last  # type: ignore[union-attr]
    assert cast is not None
    packed = cast.inputs[0]
    assert packed is not None
    values = array_of(packed).astype(np.int16)
    if last is not cast:
        offset = last.inputs[1]
        assert offset is not None
        values = values - array_of(offset).astype(np.int16)
        constants.drop(offset)
    plain = constants.new(codes.name or "", values, ir.DataType.INT8, behind=packed)
    constants.drop(packed)
    node.replace_input_with(0, plain)
    graph.remove(last, safe=True)
    if last is not cast:
        graph.remove(cast, safe=True)
    return plain
