"""The state of a conversion: which tensor of the flatbuffer holds a value of the file, in integers or in float.

Every value of the file has its codes where a quantizer made it, and its floats where something reads them; these are made from
the codes when they are first asked for. Images are held with their channels last as long as nothing wants ONNX's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from mrecg_onnx.litert.flatbuffer import INT4_VERSIONS, Array, Flatbuffer, Held, Scales, plain_order
from mrecg_onnx.litert.places import HIGHEST, LOWEST, place_of
from mrecg_onnx.litert.reading import Codes, Sizes, codes_of, constant_of, refused
from mrecg_onnx.planning import readers

__all__ = ["Constant", "Out", "Writer", "activation", "long_axes", "raw_out"]

Emit = Callable[[Held, bool], object]


@dataclass(frozen=True)
class Constant:
    """Stored codes behind a DequantizeLinear.

    Attributes:
        codes: int8 or int32.
        scale: float32, shape () or (C,).
        axis: of a vector of scales.
    """

    codes: Array
    scale: Array
    axis: int

    def values(self) -> Array:
        """What they stand for, as DequantizeLinear computes it."""
        scale = (
            self.scale.reshape([-1 if i == self.axis else 1 for i in range(self.codes.ndim)])
            if self.scale.ndim
            else self.scale
        )
        return self.codes.astype(np.float32) * scale


@dataclass(frozen=True)
class Out:
    """Where an operator writes.

    Attributes:
        value: the value of the file that it makes in the end, behind clamps and a bias that it takes along.
        sizes: of that.
        codes: its quantizer, None where it stays in float.
        bias: what an Add behind a MatMul adds.
        taken: nodes that are then done.
    """

    value: ir.Value
    sizes: Sizes
    codes: Codes | None = None
    bias: ir.Value | None = None
    taken: tuple[ir.Node, ...] = ()


def activation(relu: bool) -> int:
    """The schema's number of NONE or RELU."""
    return int(relu)


@dataclass
class Writer:
    """Values by name, and steps that several operators share."""

    sizes: Mapping[str, Sizes]
    outputs: frozenset[str]
    four_bits: bool = False
    flat: Flatbuffer = field(default_factory=Flatbuffer)
    codes: dict[str, Held] = field(default_factory=dict)
    floats: dict[str, Held] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    dequantizers: dict[int, Held] = field(default_factory=dict)
    done: set[ir.Node] = field(default_factory=set)
    values: set[str] = field(default_factory=set)
    wide: list[str] = field(default_factory=list)

    # --- values -----------------------------------------------------------------------------------------------------

    def ints(self, value: ir.Value | None) -> Held | None:
        """The codes of a value, None where it has none."""
        return self.codes.get(value.name or "") if value is not None else None

    def float(self, value: ir.Value, node: ir.Node) -> Held:
        """The floats of a value; constants in ONNX's order.

        Raises:
            ExportError: nothing has made them.
        """
        name = value.name or ""
        if name not in self.floats:
            stored = constant_of(value)
            if name in self.constants:
                stored = self.constants[name].values()
            if stored is not None:
                if stored.dtype != np.float32:
                    raise refused(node, f"it reads the constant '{name}' of {stored.dtype}")
                self.floats[name] = self.flat.constant(name, stored)
            elif name in self.codes:
                held = self.codes[name]
                if held.index not in self.dequantizers:
                    like = replace(held, kind="FLOAT32", scales=None)
                    self.dequantizers[held.index] = self.flat.operator(
                        "DEQUANTIZE", [held], self.flat.tensor(name, like)
                    )
                made = self.dequantizers[held.index]
                self.floats[name] = replace(made, shape=held.shape, free=held.free, order=held.order)
            else:
                raise refused(node, f"'{name}' is computed by what this conversion does not know")
        return self.floats[name]

    def size(self, value: ir.Value, node: ir.Node) -> Sizes:
        """Sizes of a value.

        Raises:
            ExportError: they are not known.
        """
        found = self.sizes.get(value.name or "")
        if found is None:
            raise refused(node, f"the sizes of '{value.name}' are not known without running the model")
        return found

    def out(self, value: ir.Value, node: ir.Node) -> Out:
        """Where the operator that makes ``value`` writes, a quantizer behind it and what may stand between them included."""
        taken: list[ir.Node] = []
        bias: ir.Value | None = None
        ends: list[tuple[Any, Any]] = []
        last = value
        while self._alone(last):
            behind = readers(last)[0]
            other = [v for v in behind.inputs if v is not last and v is not None]
            if behind.op_type == "QuantizeLinear":
                codes = _clamped(codes_of(behind), ends)
                taken += [behind, *_between(behind, codes)]
                return Out(last, self.size(last, node), codes, bias, tuple(taken))
            if behind.op_type == "Add" and node.op_type == "MatMul" and bias is None and not ends:
                if len(other) != 1 or not self._known(other[0]):
                    break
                bias = other[0]
            elif behind.op_type in {"Relu", "Clip"} and _is_clamp(behind):
                ends.append(_ends(behind))
            else:
                break
            taken.append(behind)
            last = behind.outputs[0]
        if bias is not None:  # behind a MatMul that stays in float
            add = next(n for n in taken if n.op_type == "Add")
            return Out(add.outputs[0], self.size(add.outputs[0], node), None, bias, (add,))
        return Out(value, self.size(value, node))

    def _alone(self, value: ir.Value) -> bool:
        return len(list(value.uses())) == 1 and (value.name or "") not in self.outputs

    def _known(self, value: ir.Value) -> bool:
        return constant_of(value) is not None or (value.name or "") in self.constants

    # --- results ----------------------------------------------------------------------------------------------------

    def write_codes(self, out: Out, order: Sequence[int], emit: Emit, *, fuses: bool, floor: bool = False) -> None:
        """Let an integer kernel write to ``out``.

        Args:
            out: where.
            order: of the axes that it writes.
            emit: given the tensor and whether to apply a Relu, appends the operator.
            fuses: whether it can apply one.
            floor: whether nothing below the zero point comes.
        """
        assert out.codes is not None
        place = place_of(out.codes, fuses=fuses, floor=floor)
        first = self._placed(out, out.codes, place.offset, tuple(order), moves=place.moved is not None)
        emit(first, place.relu)
        if place.moved is not None:
            first = self.move(first, self._placed(out, out.codes, place.moved, tuple(order)))
        self.bind(out, self._limited(first, out.codes))

    def pass_codes(self, out: Out, source: Held, order: Sequence[int], emit: Emit) -> None:
        """Let an operator that only moves codes of ``source`` write to ``out``; where grids differ these are requantized."""
        assert source.scales is not None
        like = Held(-1, "INT8", out.sizes.shape, out.sizes.free, tuple(order), source.scales, source.low, source.high)
        made = self.flat.tensor(out.value.name or "", like)
        emit(made, False)
        if out.codes is None:
            self.codes[out.value.name or ""] = made
            return
        self.requantize(out, made)

    def requantize(self, out: Out, held: Held) -> None:
        """Let ``out`` be ``held`` on its own grid."""
        codes = out.codes
        assert codes is not None
        assert held.scales is not None
        offset = held.zero - codes.zero
        same = held.scales.scale.tobytes() == codes.scale.tobytes()
        if same and codes.low <= held.low - offset and held.high - offset <= codes.high and codes.ceiling is None:
            self.bind(out, held)
            return
        self.write_codes(out, held.order, lambda to, relu: self._add_zero(held, to, relu=relu), fuses=True)

    def move(self, held: Held, to: Held) -> Held:
        """``held`` with codes elsewhere in the type, saturated at its lower end."""
        return self._add_zero(held, to, relu=False)

    def _add_zero(self, held: Held, to: Held, *, relu: bool) -> Held:
        # QUANTIZE would be the operator for it; LiteRT's fast kernels hold its multiplier in 8 bits (docs/deployment.md).
        assert held.scales is not None
        zero = self.flat.constant(
            f"{self._name(held)}_zero", np.full([1] * len(held.shape), held.zero, np.int8), held.scales
        )
        return self.flat.operator(
            "ADD", [held, zero], to, ("AddOptions", {"fusedActivationFunction": activation(relu=relu)})
        )

    def _placed(self, out: Out, codes: Codes, offset: int, order: tuple[int, ...], *, moves: bool = False) -> Held:
        low, high = (LOWEST if moves else codes.low + offset), codes.high + offset
        scales = Scales(codes.scale, codes.zero + offset)
        like = Held(-1, "INT8", out.sizes.shape, out.sizes.free, order, scales, low, high)
        return self.flat.tensor(f"{codes.value}_saturated" if moves else codes.value, like)

    def _limited(self, held: Held, codes: Codes) -> Held:
        """The bounds that channels have of their own."""
        if codes.ceiling is None:
            return held
        assert held.scales is not None
        most = np.clip(codes.ceiling.astype(np.int64) + held.zero - codes.zero, LOWEST, HIGHEST).astype(np.int8)
        shape = [-1 if axis == 1 else 1 for axis in held.order]
        bound = self.flat.constant(f"{codes.value}_ceiling", most.reshape(shape), held.scales)
        return self.flat.operator(
            "MINIMUM", [held, bound], self.flat.tensor(f"{codes.value}_limited", held), ("MaximumMinimumOptions", {})
        )

    def bind(self, out: Out, held: Held) -> None:
        """Let the codes of ``out`` be ``held``, and what it takes along be done."""
        assert out.codes is not None
        self.codes |= dict.fromkeys(out.codes.names, held)
        self.done |= set(out.taken)

    def write_float(self, out: Out, order: Sequence[int], emit: Emit) -> None:
        """Let a float kernel write to ``out``, which has no quantizer or gets it afterwards."""
        name = out.value.name or ""
        emit(held := self.flat.tensor(name, Held(-1, "FLOAT32", out.sizes.shape, out.sizes.free, tuple(order))), False)
        self.floats[name] = held
        self.done |= {node for node in out.taken if node.op_type == "Add"}

    # --- order of axes ----------------------------------------------------------------------------------------------

    def ordered(self, held: Held, order: Sequence[int], node: ir.Node) -> Held:
        """``held`` with its axes stored in ``order``."""
        order = tuple(order)
        if held.order == order:
            return held
        like = replace(held, order=order)
        if long_axes(held) == long_axes(like):
            return self.reshaped(held, like, node)
        moves = np.array([held.order.index(axis) for axis in order], np.int32)
        made = self.flat.tensor(f"{self._name(held)}_transposed", like)
        return self.flat.operator(
            "TRANSPOSE", [held, self.flat.constant("order", moves)], made, ("TransposeOptions", {})
        )

    def reshaped(self, held: Held, like: Held, node: ir.Node, name: str | None = None) -> Held:
        """The elements of ``held``, as they are stored, with the sizes of ``like``."""
        sizes = [-1 if like.free[axis] else like.shape[axis] for axis in like.order]
        if sizes.count(-1) > 1:
            raise refused(node, "two sizes of what it makes grow with the batch")
        shape = self.flat.constant("shape", np.array(sizes, np.int32))
        made = self.flat.tensor(name or f"{self._name(held)}_reshaped", like)
        return self.flat.operator("RESHAPE", [held, shape], made, ("ReshapeOptions", {"newShape": sizes}))

    def plain(self, held: Held, node: ir.Node) -> Held:
        """``held`` in ONNX's order."""
        return self.ordered(held, plain_order(len(held.shape)), node)

    def dequantized(self, name: str, codes: Held) -> Held:
        """A constant of codes that LiteRT turns into floats when it is opened."""
        like = replace(codes, kind="FLOAT32", scales=None)
        version = INT4_VERSIONS["DEQUANTIZE"] if codes.kind == "INT4" else 5
        return self.flat.operator("DEQUANTIZE", [codes], self.flat.tensor(f"{name}_float", like), version=version)

    def _name(self, held: Held) -> str:
        return str(self.flat.tensors[held.index].name)


def raw_out(w: Writer, node: ir.Node) -> Out:
    """What the node itself makes, in front of clamps and quantizers."""
    return Out(node.outputs[0], w.size(node.outputs[0], node))


def long_axes(held: Held) -> list[int]:
    """The axes in their order as stored, without those of one element that does not grow."""
    return [axis for axis in held.order if held.shape[axis] != 1 or held.free[axis]]


def _between(quantize: ir.Node, codes: Codes) -> Iterable[ir.Node]:
    """Bounds of the codes that ``quantize`` makes."""
    value = quantize.outputs[0]
    for _ in codes.names[1:]:
        node = readers(value)[0]
        value = node.outputs[0]
        yield node


def _is_clamp(node: ir.Node) -> bool:
    return all(v is None or constant_of(v) is not None for v in node.inputs[1:])


def _ends(node: ir.Node) -> tuple[Any, Any]:
    """Bounds of a Relu or Clip of values, None where there is none."""
    if node.op_type == "Relu":
        return np.float32(0), None
    ends = [constant_of(v) for v in node.inputs[1:3]]
    low, high = (*ends, None, None)[:2]
    return (low.reshape(()) if low is not None else None), (high.reshape(()) if high is not None else None)


def _clamped(codes: Codes, ends: Sequence[tuple[Any, Any]]) -> Codes:
    """``codes`` with the codes of clamps in front of them as bounds: quantization is monotone."""
    low, high = codes.low, codes.high
    for least, most in ends:
        if least is not None:
            low = min(max(low, int(np.rint(np.float32(least) / np.float32(codes.scale))) + codes.zero), codes.high)
        if most is not None:
            high = max(min(high, int(np.rint(np.float32(most) / np.float32(codes.scale))) + codes.zero), low)
    return replace(codes, low=low, high=high)
