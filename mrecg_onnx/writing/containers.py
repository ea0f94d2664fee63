"""How the codes of a quantized file are stored: three forms of one graph, each made from ``int8`` and brought back to it.

``int8`` is what :mod:`mrecg_onnx.writing.qdq` writes: every code in an 8-bit tensor. The others start from it.

``packed`` stores weights as UINT4 or UINT2 initializers, the smallest that holds a layer's codes, behind ``Cast(INT8)`` and
``Sub`` of one offset a channel. Both are constants to ONNX Runtime, which folds them when it loads the file and runs the same
kernels (measured with 1.31). What it can work out itself is left out: the scales of biases, which are products of two others,
and the types of constants. Zero points that are 0 are one tensor for all layers of so many channels: the default would do, but
ONNX Runtime's converter to its mobile format refuses nodes without (1.31 and 1.32), and its QGemm wants one, too.

``typed`` stores 4-bit codes in true INT4 and UINT4 tensors with Q/DQ of these types. ONNX Runtime 1.31 does not load such
tensors in some places; those stay as they are in ``int8``, and the notes name them.

All three compute the same, bit for bit, on a runtime that runs the graph as it is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ExportError, ModelError, SettingsError
from mrecg_onnx.converters.passes.opset import raise_opset, require_raisable
from mrecg_onnx.converters.passes.values import claim
from mrecg_onnx.planning import readers
from mrecg_onnx.targets import CONTAINER_NAMES

__all__ = [
    "CONTAINERS", "CONTAINER_KEY", "Array", "Contained", "Container", "along", "array_of", "contained", "container_of",
]  # fmt: skip

#: Entry of metadata_props: the container, and the opset and IR version of the ``int8`` form. Files without it are ``int8``.
CONTAINER_KEY = "mrecg_onnx.container"
#: Entry that every file of :func:`mrecg_onnx.quantize` has.
VERSION_KEY = "mrecg_onnx.version"
#: Opset that brought UINT4 and INT4, and the one that brought UINT2.
FOUR_BITS, TWO_BITS = 21, 25
#: Ops whose operands ONNX Runtime 1.31 loads in UINT4 where all of them have that type (deployment tests of every op).
_TYPED_READERS = frozenset({"Add", "AveragePool", "Conv", "Gemm", "GlobalAveragePool", "MatMul"})

#: Types of packed weights, the smallest first, and how many codes they have.
_PACKED = ((ir.DataType.UINT2, 4), (ir.DataType.UINT4, 16))
#: Names of zero points that layers share; a layer's own ends in ``_zero_point``.
_SHARED = re.compile(r"zeros_u?int\d+(_\d+)*")
#: Channels from which a computed scale takes fewer bytes than a stored one: the node has about 200.
_WORTH = 48

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Container:
    """One row.

    Attributes:
        summary: what it is, for help pages.
        write: changes a graph in ``int8`` form in place with types up to an opset's; returns what was left as it is and why,
            one line each.
        read: changes a graph of this form back to ``int8`` in place.
    """

    summary: str
    write: Callable[[ir.Model, int], list[str]]
    read: Callable[[ir.Model], None]


@dataclass(frozen=True)
class Contained:
    """A converted model.

    Attributes:
        model: the file's content.
        notes: what the container could not hold in low-bit types, one line each.
    """

    model: onnx.ModelProto
    notes: tuple[str, ...] = ()


def container_of(model: onnx.ModelProto, where: str = "the model") -> str:
    """The container of a file of :func:`mrecg_onnx.quantize`.

    Raises:
        ModelError: another tool made the file, or a newer version of this one.
    """
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if VERSION_KEY not in entries:
        raise ModelError(f"{where}: was not written by mrecg-onnx quantize (no {VERSION_KEY} in its metadata)")
    try:
        name = str(json.loads(entries.get(CONTAINER_KEY, '{"name": "int8"}'))["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{where}: its metadata entry {CONTAINER_KEY} cannot be read") from error
    if name not in CONTAINERS:
        raise ModelError(f"{where}: its container '{name}' is unknown to this version of mrecg-onnx")
    return name


def contained(model: onnx.ModelProto, name: str, where: str = "the model", highest: int = TWO_BITS) -> Contained:
    """``model`` in the container ``name`` with types up to those of opset ``highest``; ``model`` is not changed.

    Raises:
        SettingsError: ``name`` is unknown.
        ModelError: another tool made the file.
        ExportError: an operator of the graph does not exist in the opset that the container needs.
    """
    if name not in CONTAINERS:
        raise SettingsError(f"container is '{name}': choose one of {', '.join(CONTAINERS)}")
    before = container_of(model, where)
    if before == name:
        return Contained(model)
    graph = ir.from_proto(model)
    if before != "int8":
        CONTAINERS[before].read(graph)
        noted = json.loads(graph.metadata_props.pop(CONTAINER_KEY))
        if "opset" in noted:
            graph.opset_imports[""], graph.ir_version = noted["opset"], noted["ir_version"]
    notes: list[str] = []
    if name != "int8":
        notes = CONTAINERS[name].write(graph, _reachable(graph, highest))
        note: dict[str, object] = {"name": name}
        opset, version, nodes = graph.opset_imports[""], graph.ir_version, _node_bytes(graph)
        try:
            raise_opset(graph, TWO_BITS if _has_two_bits(graph) else FOUR_BITS)
        except ModelError as error:
            raise ExportError(f"{where}: container {name}: {error}") from error
        if _node_bytes(graph) == nodes:
            note |= {
                "opset": opset,
                "ir_version": version,
            }  # nothing but these numbers is to be changed on the way back
        graph.metadata_props[CONTAINER_KEY] = json.dumps(note, separators=(",", ":"))
    proto = ir.to_proto(graph)
    if name == "packed":
        kept = [entry for entry in proto.graph.value_info if entry.name not in graph.graph.initializers]
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(kept)
    return Contained(proto, tuple(notes))


def _reachable(model: ir.Model, highest: int) -> int:
    """``highest``, or a lower opset where the graph's operators have no form in the one of 2-bit types."""
    try:
        require_raisable(model, min(highest, TWO_BITS))
    except ModelError:
        return min(highest, FOUR_BITS)
    return highest


def _node_bytes(model: ir.Model) -> list[bytes]:
    return [ir.to_proto(node).SerializeToString(deterministic=True) for node in model.graph]


def _has_two_bits(model: ir.Model) -> bool:
    return any(value.dtype == ir.DataType.UINT2 for value in model.graph.initializers.values())


class _Constants:
    """The initializers of a graph in an order that can be edited: new ones stand where the file should have them."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.order = list(self.graph.initializers.values())
        self.taken = {v.name for node in self.graph for v in node.outputs} | set(self.graph.initializers)
        self.taken |= {v.name for v in self.graph.inputs}

    def next_to(self, value: ir.Value | None) -> ir.Value | None:
        """The initializer behind ``value``."""
        here = self._position(value)
        return self.order[here + 1] if here is not None and here + 1 < len(self.order) else None

    def new(self, name: str, array: Array, dtype: ir.DataType, behind: ir.Value | None = None) -> ir.Value:
        """A new initializer behind another one, or at the end."""
        tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(dtype))
        here = self._position(behind)
        self.order.insert(len(self.order) if here is None else here + 1, value)
        return value

    def name(self, wish: str) -> str:
        """A name that nobody has."""
        return claim(wish, self.taken)

    def drop(self, value: ir.Value) -> None:
        """Forget an initializer."""
        self.order = [other for other in self.order if other is not value]

    def write(self) -> None:
        """Give the graph the initializers of :attr:`order`."""
        self.graph.initializers.clear()
        for value in self.order:
            self.graph.register_initializer(value)

    def _position(self, value: ir.Value | None) -> int | None:
        return next((i for i, other in enumerate(self.order) if other is value), None)


def _dequantizers(model: ir.Model) -> list[tuple[ir.Node, ir.Value, ir.Value, ir.Value | None]]:
    """Every DequantizeLinear with its codes, scale and zero point."""
    found = []
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            codes, scale, zero = (*node.inputs, None)[:3]
            assert codes is not None
            assert scale is not None
            found.append((node, codes, scale, zero))
    return found


def _insert(
    graph: ir.Graph, before: ir.Node, op: str, inputs: list[ir.Value], output: str, **attributes: int
) -> ir.Value:
    """A node without a name (it says nothing that its output's does not) in front of another one."""
    node = ir.node(op, inputs, attributes, name="", outputs=[ir.Value(name=output)])
    graph.insert_before(before, node)
    return node.outputs[0]


def along(values: Array, axis: int, rank: int) -> Array:
    """A vector of one value a channel, shaped to broadcast over a tensor of ``rank`` dimensions; a scalar stays one."""
    return values.reshape([-1 if i == axis else 1 for i in range(rank)]) if values.ndim else values


# --- packed -----------------------------------------------------------------------------------------------------------


def _pack(model: ir.Model, highest: int) -> list[str]:
    constants, wide = _Constants(model), 0
    shared: dict[tuple[str, tuple[int, ...]], ir.Value] = {}
    kinds = [kind for kind in _PACKED if kind[0] != ir.DataType.UINT2 or highest >= TWO_BITS]
    for node, codes, _, zero in _dequantizers(model):
        if _stored(codes) is None or len(codes.uses()) > 1:
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
    graph: ir.Graph, constants: _Constants, node: ir.Node, codes: ir.Value, kinds: Sequence[tuple[ir.DataType, int]]
) -> bool:
    """Store a layer's codes in the smallest type of ``kinds``; False where none is smaller than INT8."""
    values, axis = array_of(codes).astype(np.int16), node.attributes.get_int("axis", 1)
    dtype, offsets = next(
        ((dtype, found) for dtype, levels in kinds if (found := _offsets(values, axis, levels)) is not None),
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


def _offsets(values: Array, axis: int, levels: int) -> Array | None:
    """What is added to the codes so that they lie in 0..levels-1: one number where that does, else one a channel."""
    if int(values.max()) - int(values.min()) < levels:
        return np.array(-int(values.min()))
    lines = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    low, high = lines.min(1), lines.max(1)
    return -low if int((high - low).max()) < levels else None


def _share_zeros(constants: _Constants, shared: dict[tuple[str, tuple[int, ...]], ir.Value], node: ir.Node) -> None:
    """Let a zero point of 0 be the one of ``shared`` with its type and shape, where :func:`_unpack` finds its name and place."""
    _, scale, zero = node.inputs
    stored = _stored(zero)
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


def _leave_out_bias_scale(graph: ir.Graph, constants: _Constants, node: ir.Node) -> None:
    """Let the scale of a bias be computed: it is the product of the scales of the layer's input and weight."""
    codes, scale = node.inputs[:2]
    stored, users = _stored(scale), readers(node.outputs[0])
    makers = [v.producer() if v is not None else None for v in (users[0].inputs[:2] if len(users) == 1 else ())]
    factors = [m.inputs[1] for m in makers if m is not None and m.op_type == "DequantizeLinear"]
    known = [v for v in factors if v is not None and _stored(v) is not None]
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


def _unpack(model: ir.Model) -> None:
    graph, constants = model.graph, _Constants(model)
    for node, codes, scale, zero in _dequantizers(model):
        if codes.producer() is not None and codes.producer().op_type in {"Cast", "Sub"}:  # type: ignore[union-attr]
            codes = _unpack_weight(graph, constants, node, codes)  # noqa: PLW2901 - what it stands for now
        if _stored(codes) is None:
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


def _unpack_weight(graph: ir.Graph, constants: _Constants, node: ir.Node, codes: ir.Value) -> ir.Value:
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


# --- typed ------------------------------------------------------------------------------------------------------------


def _type(model: ir.Model, _highest: int) -> list[str]:
    constants = _Constants(model)
    notes = _type_weights(constants, model) + _type_activations(constants, model)
    constants.write()
    return notes


def _type_weights(constants: _Constants, model: ir.Model) -> list[str]:
    """INT4 where the codes fit it, UINT4 with zero points where only that holds them."""
    wide: list[str] = []
    for node, codes, _, zero in _dequantizers(model):
        if _stored(codes) is None or codes.dtype != ir.DataType.INT8 or zero is None:
            continue
        values, axis = array_of(codes).astype(np.int16), node.attributes.get_int("axis", 1)
        zeros = np.zeros(array_of(zero).shape, np.int16)
        dtype = ir.DataType.INT4
        if values.min() < -8 or values.max() > 7:
            dtype = ir.DataType.UINT4
            lines = (
                np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1) if zeros.ndim else values.reshape(1, -1)
            )
            zeros = np.maximum(0, -lines.min(1)).reshape(zeros.shape)
            values = values + along(zeros, axis, values.ndim)
            if len(codes.uses()) > 1 or zeros.max() > 15 or values.max() > 15:
                wide.append(next(iter(r.name or "" for r in readers(node.outputs[0])), ""))
                continue
        _replace(constants, node, 0, values, dtype)
        _replace(constants, node, 2, zeros, dtype)
    return [f"weights of more than 4 bits stay in INT8: {_some(wide)}"] if wide else []


def _replace(constants: _Constants, node: ir.Node, index: int, values: Array, dtype: ir.DataType) -> None:
    """Another constant with the same name in the same place."""
    old = node.inputs[index]
    assert old is not None
    new = constants.new(old.name or "", values, dtype, behind=old)
    constants.drop(old)
    for user, position in list(old.uses()):
        user.replace_input_with(position, new)


@dataclass(frozen=True)
class _Group:
    """Tensors of one scale and zero point: their quantizers, the integer ops on their codes, and who reads them."""

    zero: ir.Value
    quantizers: list[ir.Node]
    clips: list[ir.Node]
    dequantizers: list[ir.Node]
    readers: list[ir.Node]
    strange: bool  # codes are read by something else

    @property
    def bits(self) -> int:
        """The width whose range the codes have, 8 where it is no power of two from 0."""
        ends = {tuple(int(array_of(v)) for v in clip.inputs[1:3]) for clip in self.clips}
        return 4 if ends == {(0, 15)} and not self.strange and int(array_of(self.zero)) <= 15 else 8


def _groups(model: ir.Model) -> Iterator[_Group]:
    zeros = dict.fromkeys(n.inputs[2] for n in model.graph if n.op_type == "QuantizeLinear" and len(n.inputs) > 2)
    for zero in zeros:
        assert zero is not None
        users = readers(zero)
        quantizers = [n for n in users if n.op_type == "QuantizeLinear"]
        dequantizers = [n for n in users if n.op_type == "DequantizeLinear"]
        codes = [n for q in quantizers for n in readers(q.outputs[0])]
        clips = [n for n in codes if n.op_type == "Clip"]
        behind = [n for clip in clips for n in readers(clip.outputs[0])]
        known = {id(n) for n in (*clips, *dequantizers, *quantizers)}
        strange = any(id(n) not in known for n in (*users, *codes, *behind))
        yield _Group(
            zero, quantizers, clips, dequantizers, [n for d in dequantizers for n in readers(d.outputs[0])], strange
        )


def _type_activations(constants: _Constants, model: ir.Model) -> list[str]:
    """UINT4 for tensors whose codes fill 0..15, where ONNX Runtime loads them; their Clip is then the type's own bound."""
    graph = model.graph
    groups = list(_groups(model))
    narrow = [group for group in groups if group.bits == 4]
    ours = {id(node) for group in narrow for node in group.dequantizers}
    refused: list[str] = []
    changed = True
    while changed:  # a tensor that stays wide keeps those wide that meet it in an Add
        changed = False
        for group in list(narrow):
            if all(_loads(reader, ours) for reader in group.readers):
                continue
            narrow.remove(group)
            ours -= {id(node) for node in group.dequantizers}
            refused.append((group.quantizers[0].inputs[0].name or "") if group.quantizers[0].inputs[0] else "")
            changed = True
    for group in narrow:
        values = array_of(group.zero)
        for clip in group.clips:
            source = clip.inputs[0]
            for user, position in list(clip.outputs[0].uses()):
                user.replace_input_with(position, source)
            for bound in clip.inputs[1:3]:
                assert bound is not None
                constants.drop(bound)
            graph.remove(clip, safe=True)
        _replace(constants, group.quantizers[0], 2, values, ir.DataType.UINT4)
    others = sum(len(group.clips) for group in groups) - sum(len(group.clips) for group in narrow) - len(refused)
    notes = []
    if refused:
        notes.append(f"activations that ONNX Runtime does not load in UINT4 stay in UINT8: {_some(refused)}")
    if others > 0:
        notes.append(f"{others} activations whose codes do not fill 0..15 stay in UINT8")
    return notes


def _loads(reader: ir.Node, typed: set[int]) -> bool:
    """Whether ONNX Runtime 1.31 loads ``reader`` with UINT4 operands (measured, docs/deployment.md)."""
    if reader.op_type not in _TYPED_READERS:
        return False
    makers = [v.producer() for v in reader.inputs[:2] if v is not None]
    for maker in makers:
        if maker is None or maker.op_type != "DequantizeLinear":
            return False
        codes = maker.inputs[0]
        if codes is not None and codes.const_value is not None:
            if codes.dtype not in {ir.DataType.INT4, ir.DataType.UINT4}:
                return False
        elif id(maker) not in typed:
            return False
    return True


def _untype(model: ir.Model) -> None:
    graph, constants = model.graph, _Constants(model)
    for node, codes, _, zero in _dequantizers(model):
        if codes.dtype in {ir.DataType.INT4, ir.DataType.UINT4} and _stored(codes) is not None and zero is not None:
            zeros, axis = array_of(zero).astype(np.int16), node.attributes.get_int("axis", 1)
            values = array_of(codes).astype(np.int16) - along(zeros, axis, len(codes.const_value.shape))  # type: ignore[union-attr]
            _replace(constants, node, 0, values, ir.DataType.INT8)
            _replace(constants, node, 2, np.zeros_like(zeros), ir.DataType.INT8)
    for group in list(_groups(model)):
        if group.zero.dtype != ir.DataType.UINT4:
            continue
        _replace(constants, group.quantizers[0], 2, array_of(group.zero), ir.DataType.UINT8)
        for quantize in group.quantizers:
            codes, name = quantize.outputs[0], (quantize.outputs[0].name or "").removesuffix("_quantized")
            bounds = [
                constants.new(constants.name(f"{name}_{end}"), np.array(bound), ir.DataType.UINT8)
                for end, bound in (("low", 0), ("high", 15))
            ]
            users = list(codes.uses())
            clipped = ir.Value(name=constants.name(f"{name}_clipped"))
            clip = ir.node("Clip", [codes, *bounds], name=f"{name}_Clip", outputs=[clipped])
            graph.insert_after(quantize, clip)
            for user, position in users:
                user.replace_input_with(position, clipped)
    constants.write()


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant behind a value; one that :class:`_Constants` has not written yet counts, too."""
    return value.const_value if value is not None else None


def array_of(value: ir.Value | None) -> Array:
    """The array behind a constant."""
    tensor = _stored(value)
    assert tensor is not None
    return tensor.numpy()


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _as_it_is(_model: ir.Model, _highest: int) -> list[str]:
    return []


def _nothing(_model: ir.Model) -> None:
    return


CONTAINERS: dict[str, Container] = {
    "int8": Container("every code in an 8-bit tensor", _as_it_is, _nothing),
    "packed": Container("weights in UINT4 or UINT2, unpacked when the file is loaded", _pack, _unpack),
    "typed": Container("4-bit codes in true INT4 and UINT4 Q/DQ", _type, _untype),
}
assert tuple(CONTAINERS) == CONTAINER_NAMES
