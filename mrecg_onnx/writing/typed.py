"""The container ``typed``: 4-bit codes in true INT4 and UINT4 tensors with Q/DQ of these types.

ONNX Runtime 1.31 does not load such tensors in some places; those stay as they are in ``int8``, and the notes name them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mrecg_onnx.planning import readers
from mrecg_onnx.writing.constants import Array, Constants, along, array_of, stored_tensor
from mrecg_onnx.writing.opsets import Limits
from mrecg_onnx.writing.pairs import dequantizers

__all__ = ["read_typed", "write_typed"]

#: Ops whose operands ONNX Runtime 1.31 loads in UINT4 where all of them have that type (deployment tests of every op).
_TYPED_READERS = frozenset({"Add", "AveragePool", "Conv", "Gemm", "GlobalAveragePool", "MatMul"})


def write_typed(model: ir.Model, limits: Limits) -> list[str]:
    """From ``int8`` to ``typed`` in place; returns what stays in 8-bit types and why."""
    constants = Constants(model)
    notes = _type_weights(constants, model, limits) + _type_activations(constants, model)
    constants.write()
    return notes


def _type_weights(constants: Constants, model: ir.Model, limits: Limits) -> list[str]:
    """INT4 where the codes fit it, UINT4 with zero points where only that holds them and ``limits`` allow it."""
    wide: list[str] = []
    for node, codes, _, zero in dequantizers(model):
        if stored_tensor(codes) is None or codes.dtype != ir.DataType.INT8 or zero is None:
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
            if not limits.zero_points or len(codes.uses()) > 1 or zeros.max() > 15 or values.max() > 15:
                wide.append(next(iter(r.name or "" for r in readers(node.outputs[0])), ""))
                continue
        _replace(constants, node, 0, values, dtype)
        _replace(constants, node, 2, zeros, dtype)
    what = "" if limits.zero_points else ", and those with zero points (--symmetric-weights has none),"
    return [f"weights of more than 4 bits{what} stay in INT8: {_some(wide)}"] if wide else []


def _replace(constants: Constants, node: ir.Node, index: int, values: Array, dtype: ir.DataType) -> None:
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


def _type_activations(constants: Constants, model: ir.Model) -> list[str]:
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


def read_typed(model: ir.Model) -> None:
    """From ``typed`` back to ``int8`` in place."""
    graph, constants = model.graph, Constants(model)
    for node, codes, _, zero in dequantizers(model):
        if (
            codes.dtype in {ir.DataType.INT4, ir.DataType.UINT4}
            and stored_tensor(codes) is not None
            and zero is not None
        ):
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


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
