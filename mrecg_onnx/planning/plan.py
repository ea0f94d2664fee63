"""The plan: what is quantized to how many bits and optimized together, decided before any training.

Plain data that can be printed, saved and tested without torch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

__all__ = ["ActivationPlan", "LayerPlan", "Plan", "UnitPlan"]

#: Width that tensors get which no weighted layer reads: the graph stays in integers at no loss that counts.
BYSTANDER_BITS = 8
#: Width of activations in uint16.
WIDE_BITS = 16
FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerPlan:
    """A weighted layer.

    Attributes:
        name: ONNX node name.
        op: Conv, ConvTranspose, Gemm or MatMul.
        weight: initializer name.
        bias: initializer name or None.
        shape: the weight's shape as stored.
        axis: output-channel axis of the weight; None for a stack of matrices: ONNX Runtime's kernel takes one scale for it.
        stride: strides, empty for Gemm and MatMul.
        groups: convolution groups.
        params: number of weights, without bias.
        macs: multiply-accumulates an image, None where the output's shape is not known.
        wbits: weight width, 32 for float.
        input: tensor the layer reads.
        output: tensor the layer writes.
        abits: width wanted for the input, 32 for float.
        first: no weighted layer in front.
        last: no weighted layer behind.
        excluded: stays in float.
        symmetric: its codes lie around zero point 0 at every width, and not from 8 bits on alone.
    """

    name: str
    op: str
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    axis: int | None
    stride: tuple[int, ...]
    groups: int
    params: int
    macs: int | None
    wbits: int
    input: str
    output: str
    abits: int
    first: bool = False
    last: bool = False
    excluded: bool = False
    symmetric: bool = False

    @property
    def bridge(self) -> bool:
        """Only scales and shifts each channel: a BatchNormalization that no layer took."""
        return self.op == "Conv" and math.prod(self.shape) == self.shape[0] == self.groups and set(self.stride) <= {1}

    @property
    def bias_copies(self) -> int:
        """Outputs that share a weight scale: one of each group of a ConvTranspose, whose weight is [I, O / groups, ...]."""
        return self.groups if self.op == "ConvTranspose" else 1


@dataclass(frozen=True)
class ActivationPlan:
    """One activation quantizer.

    Attributes:
        name: the tensor it stands behind (a graph input or the output of a computing op).
        members: tensors that share its scale through value-preserving ops, ``name`` first.
        reads: members that computing ops read: the values on which the range is searched.
        bits: 2..8, or 16.
        absorbs: Relu, Clip or Min node in front whose bounds become bounds of the codes.
        low: that node's lower bound, None without.
        high: its upper bound, None without.
        protected: raised to 8 bits by ``--protect``.
        ceilings: that node's upper bound of each channel, where it has one a channel.
        joins: names of the quantizers of what a Concat joined to this tensor, () behind other ops.
        copies: those of them that nobody else reads: on one grid with this tensor the Concat copies their codes.
        spare: nobody reads this tensor in integers, so that its Concat may be left in float.
        outputs: members that are outputs of the graph and taken from behind the quantizer; others leave in front of it.
    """

    name: str
    members: tuple[str, ...]
    reads: tuple[str, ...]
    bits: int
    absorbs: str | None = None
    low: float | None = None
    high: float | None = None
    protected: bool = False
    ceilings: tuple[float, ...] | None = None
    joins: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    spare: bool = False
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnitPlan:
    """A reconstruction unit: nodes optimized together.

    Attributes:
        name: for people, made of the first and last weighted layer.
        nodes: ONNX node names in topological order.
        layers: names of its weighted layers.
        inputs: activation tensors it reads from outside.
        outputs: tensors it hands on; the loss is taken there.
        capacity: module capacity, Eq. 3.
        pools: an averaging or global pooling follows its last layer: its loss is that of averages, far below a map's.
        members: base units that it is made of.
    """

    name: str
    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    capacity: float
    pools: bool = False
    members: int = 1


@dataclass(frozen=True)
class Plan:
    """The whole plan.

    Attributes:
        layers: all weighted layers in topological order.
        activations: all activation quantizers in topological order.
        units: base units, before merging.
        merges: index groups over ``units``, in order, covering each unit once; single units stand alone.
        scheme: where the merges come from.
        losses: reconstruction loss of each base unit in the probing run, where one was made.
    """

    layers: tuple[LayerPlan, ...]
    activations: tuple[ActivationPlan, ...]
    units: tuple[UnitPlan, ...]
    merges: tuple[tuple[int, ...], ...]
    scheme: str = "none"
    losses: tuple[float, ...] | None = None

    def readers(self, quantizer: ActivationPlan) -> tuple[LayerPlan, ...]:
        """The layers with quantized weights that read a low-bit input from ``quantizer``."""
        read = (layer for layer in self.quantized_layers if layer.input in quantizer.members)
        return tuple(layer for layer in read if layer.abits != FLOAT_BITS)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary, inverse of :meth:`from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """Read :meth:`to_json`'s dictionary, also after a trip through JSON text."""

        def tuples(value: Any) -> Any:
            return tuple(tuples(v) for v in value) if isinstance(value, list | tuple) else value

        def rows(kind: type, items: Any) -> Any:
            return tuple(kind(**{key: tuples(value) for key, value in item.items()}) for item in items)

        return cls(
            rows(LayerPlan, data["layers"]),
            rows(ActivationPlan, data["activations"]),
            rows(UnitPlan, data["units"]),
            tuples(data["merges"]),
            data["scheme"],
            tuples(data["losses"]),
        )

    def layer(self, name: str) -> LayerPlan:
        """The layer called ``name``; KeyError without."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def quantized_layers(self) -> tuple[LayerPlan, ...]:
        """Layers whose weights are quantized."""
        return tuple(layer for layer in self.layers if not layer.excluded)

    def merged_units(self) -> tuple[UnitPlan, ...]:
        """Units after merging, in order."""
        return tuple(self._join(group) for group in self.merges)

    def _join(self, group: tuple[int, ...]) -> UnitPlan:
        """One unit of several neighbours; its inputs and outputs are those that cross the new border."""
        units = [self.units[i] for i in group]
        if len(units) == 1:
            return units[0]
        made = [t for unit in units for t in unit.outputs]
        read_outside = {t for i, unit in enumerate(self.units) if i not in group for t in unit.inputs}
        read_anywhere = {t for unit in self.units for t in unit.inputs}
        return UnitPlan(
            f"{units[0].name} + {units[-1].name}" if len(units) == 2 else f"{units[0].name} ... {units[-1].name}",
            tuple(n for unit in units for n in unit.nodes),
            tuple(n for unit in units for n in unit.layers),
            tuple(dict.fromkeys(t for unit in units for t in unit.inputs if t not in made)),
            tuple(t for t in made if t in read_outside or t not in read_anywhere),
            sum(unit.capacity for unit in units),
            units[-1].pools,
            sum(unit.members for unit in units),
        )
