"""How large a file of packed codes becomes, known before it is written: what a size budget counts.

A weight's codes take the smallest type of ONNX that holds them: UINT2, UINT4 or INT8, so 3 bits cost as much as 4, and 5 to 7 as
much as 8. Packed ones are followed by Cast and Sub (docs/method.md 15); scales, biases, activations and the graph are the same
at every width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper

from mrecg_onnx.network import Network, QuantizedWeight, Simulation
from mrecg_onnx.planning import LayerPlan, Plan
from mrecg_onnx.quantizers import Grid
from mrecg_onnx.targets import longest_entry
from mrecg_onnx.writing import contained, export

__all__ = ["STORED", "PackedSize", "stored_bits"]

#: Bits of the types that codes are stored in.
STORED = (2, 4, 8)
#: Bytes of the lengths and tags in front of the messages that unpack a layer, and of a longer name.
_FRAMES = 20


def stored_bits(width: int) -> int:
    """Bits that a code of ``width`` bits (2..8) takes in the file."""
    return next(bits for bits in STORED if bits >= width)


@dataclass(frozen=True)
class PackedSize:
    """Bytes of a packed file.

    Attributes:
        rest: of everything but the weights of ``layers``.
        layers: of each layer's weights, by name and width stored (:data:`STORED`).
    """

    rest: int
    layers: Mapping[str, Mapping[int, int]]

    @classmethod
    def planned(
        cls, graph: ir.Model, network: Network, plan: Plan, metadata: Mapping[str, str], behind: int = 0
    ) -> PackedSize:
        """Sizes for a model that is not quantized yet.

        The file is made, and packed, with codes and scales of no meaning: codes that only INT8 holds, as everything else in a
        packed file is the same at every width, but for what its metadata say of the types: their longest entry is counted.

        Args:
            graph: the normalized model.
            network: the same in torch.
            plan: its quantizers.
            metadata: what the file's will be.
            behind: bytes of what is put behind the graph.
        """
        one, nought = torch.ones(()), torch.zeros(())
        activations = {a.name: Grid(one, nought, a.bits) for a in plan.activations}
        weights = {}
        for layer in plan.quantized_layers:
            channels = () if layer.axis is None else (layer.shape[layer.axis],)
            grid = Grid(torch.ones(channels), torch.zeros(channels), 8, layer.axis)
            codes = torch.zeros(layer.shape)
            codes.view(-1)[0], codes.view(-1)[-1] = -127, 127
            weights[layer.name] = QuantizedWeight(codes, grid)
        exported = export(graph, Simulation(network, plan, activations, weights), metadata)
        packed = contained(exported.model, "packed").model
        found = {layer.name: {bits: _bytes(layer, bits) for bits in STORED} for layer in plan.quantized_layers}
        return cls(behind + packed.ByteSize() + longest_entry() - sum(sizes[8] for sizes in found.values()), found)

    def total(self, widths: Mapping[str, int]) -> int:
        """Bytes of the file with ``widths`` by layer."""
        return self.rest + sum(self.layers[name][stored_bits(width)] for name, width in widths.items())


def _bytes(layer: LayerPlan, bits: int) -> int:
    """Bytes of a layer's codes stored with ``bits`` bits, and of what unpacks them: an offset a channel, but around 0."""
    codes = math.ceil(layer.params * bits / 8)
    if bits == 8:
        return codes
    name = f"{layer.weight}_quantized"
    if layer.symmetric:
        cast = helper.make_node("Cast", [f"{name}_packed"], [name], to=TensorProto.INT8)
        return codes + int(cast.ByteSize()) + _FRAMES
    shape = [layer.shape[axis] if axis == layer.axis else 1 for axis in range(len(layer.shape))]
    offset = numpy_helper.from_array(np.zeros(shape, np.int8), f"{name}_offset")
    unpacking = (
        helper.make_node("Cast", [f"{name}_packed"], [f"{name}_cast"], to=TensorProto.INT8),
        helper.make_node("Sub", [f"{name}_cast", offset.name], [name]),
    )
    unpacking_bytes: int = offset.ByteSize() + sum(node.ByteSize() for node in unpacking)
    return codes + unpacking_bytes + _FRAMES
