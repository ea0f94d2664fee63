"""Bias absorption: what a channel never falls below moves into the bias of the layers that read it (Nagel et al. 2019, 4.1.3).

Relu(y - c) = Relu(y) - c wherever y >= c: with c the least value that a channel takes, the layer in front has its bias lowered by
c and the layers behind have theirs raised by what their weights make of c. The range of the tensor then starts at 0 for every
channel, which is where its grid starts. The paper takes c from BatchNormalization's statistics, three deviations below the mean;
here it is the least value on the calibration images, on which the network stays what it was.

Not behind padding (at the border a 0 would have to be -c), nor where a channel reaches the ceiling of a Clip. Decided for each
tensor by the error that rounding it to nearest brings to the network's output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from mrecg_onnx.network import Network, forward_batches
from mrecg_onnx.planning import ActivationPlan, channel_ceilings, clamp_bounds, constant, is_clamp, is_weighted, readers
from mrecg_onnx.progress import told
from mrecg_onnx.quantizers import Grid, fake_quantize
from mrecg_onnx.rewriting.channel_samples import ChannelSample
from mrecg_onnx.rewriting.racing import Contender
from mrecg_onnx.rewriting.rescaling import replace_constant
from mrecg_onnx.rewriting.streams import usable_weight
from mrecg_onnx.rewriting.walk import Walk

__all__ = ["Absorbed", "apply_absorption", "choose_absorptions"]

#: Images on which the error is measured, at most, and norms of the range search.
IMAGES, NORMS = 16, (1.5, 2.4)
#: The error must fall at least by this share.
MIN_GAIN = 0.02
#: The share of the squared error that is then left, at most.
GAINED = (1 - MIN_GAIN) ** 2
#: Left above 0 of what a channel never falls below.
MARGIN = 0.02


@dataclass(frozen=True)
class Absorbed:
    """What was decided for one tensor.

    Attributes:
        tensor: behind the activation function.
        producer: layer in front, whose bias is lowered.
        consumers: layers behind, whose biases are raised.
        shift: c of each channel, 0 where nothing is absorbed; the tensor's units.
        error_before: relative error of the output with this tensor alone quantized, on as many images as the decision took.
        error_after: the same with c taken off; what was absorbed is used where this is less.
        used: whether it is.
    """

    tensor: str
    producer: str
    consumers: tuple[str, ...]
    shift: tuple[float, ...]
    error_before: float
    error_after: float
    used: bool


def _candidates(model: ir.Model) -> list[tuple[ir.Value, ir.Node, list[ir.Node]]]:
    """(tensor, layer in front, layers behind) of every tensor that can be shifted."""
    found = []
    for node in model.graph:
        if not (is_clamp(node) and node.inputs[0] is not None):
            continue
        tensor, source = node.outputs[0], node.inputs[0]
        producer = source.producer()
        while (
            producer is not None and is_clamp(producer) and len(readers(source)) == 1 and producer.inputs[0] is not None
        ):
            source = producer.inputs[0]
            producer = source.producer()
        behind = readers(tensor)
        if producer is None or not behind or tensor.is_graph_output() or any(is_clamp(r) for r in behind):
            continue
        if len(readers(source)) != 1 or source.is_graph_output() or not all(map(_shiftable, behind)):
            continue
        bounds = clamp_bounds(node)
        if bounds is not None and bounds[0] != 0.0:
            continue
        if is_weighted(producer) and _shiftable(producer, padded=True):
            found.append((tensor, producer, behind))
    return found


def _shiftable(node: ir.Node, *, padded: bool = False) -> bool:
    """A Conv or Gemm with a constant bias of its own, without padding unless ``padded``."""
    if not is_weighted(node) or not usable_weight(node) or len(node.inputs) < 3 or constant(node.inputs[2]) is None:
        return False
    pads = any(node.attributes.get_ints("pads", [0])) or node.attributes.get_string("auto_pad", "NOTSET") not in {
        "NOTSET",
        "VALID",
    }
    return padded or not pads


def choose_absorptions(
    network: Network, model: ir.Model, quantizers: Sequence[ActivationPlan], data: Mapping[str, Tensor]
) -> list[Absorbed]:
    """Decide for every tensor that can be shifted, in topological order; ``model`` is not changed.

    Args:
        network: the float network of ``model``.
        model: normalized graph.
        quantizers: activation quantizers with their widths.
        data: calibration inputs by name, [N, ...].
    """
    bits = {plan.name: plan.bits for plan in quantizers}
    candidates = [c for c in _candidates(model) if c[0].name in bits]
    if not candidates:
        return []
    least: dict[str, Tensor] = {}
    most: dict[str, Tensor] = {}
    names = {tensor.name for tensor, _, _ in candidates}

    def look(name: str, value: Tensor) -> Tensor:
        if name in names and value.numel():
            flat = value.transpose(0, 1).flatten(1)
            low, high = flat.amin(1), flat.amax(1)
            least[name] = torch.minimum(least.get(name, low), low)
            most[name] = torch.maximum(most.get(name, high), high)
        return value

    with torch.no_grad():
        for batch in forward_batches(data, IMAGES, network.device):
            network.run(batch, activation=look)
    walk = Walk(network, data, IMAGES)
    samples = {name: ChannelSample(walk.images) for name in most}

    def sample(name: str, value: Tensor) -> Tensor:
        if name in samples:
            samples[name].add(value)
        return value

    walk.look(sample)
    race = walk.race(1 - GAINED)
    result = []
    order = sorted(candidates, key=lambda c: walk.start([c[0].name or ""]))
    for tensor, producer, behind in told(order, "tensors"):
        name = tensor.name or ""
        if name not in most:  # never had an element
            continue
        free = most[name] < _ceilings(tensor, most[name])
        shift = torch.where(free, least[name] * (1 - MARGIN), torch.zeros_like(least[name])).clamp(min=0.0)
        if not bool((shift > 0).any()):
            continue
        before, after = (
            [_shifted(walk, name, grid, s) for grid in samples[name].grids(bits[name], NORMS, shift=s)]
            for s in (torch.zeros_like(shift), shift)
        )
        found = race.winner(after)
        used = all(race.better(found, one, GAINED) for one in before)
        slices = max(1, min(one.slices for one in (*before, found)))
        errors = [min(float(one.errors(slices).mean()) for one in some) for some in (before, [found])]
        result.append(
            Absorbed(
                name,
                producer.name or "",
                tuple(n.name or "" for n in behind),
                tuple(float(x) for x in shift),
                math.sqrt(errors[0]),
                math.sqrt(errors[1]),
                used,
            )
        )
    return result


def _ceilings(tensor: ir.Value, like: Tensor) -> Tensor:
    """Upper bounds of the channels, infinite without."""
    clamp = tensor.producer()
    assert clamp is not None
    ceilings, bounds = channel_ceilings(clamp), clamp_bounds(clamp)
    if ceilings is not None:
        return torch.tensor(ceilings).to(like)
    return torch.full_like(like, bounds[1] if bounds is not None and bounds[1] is not None else torch.inf)


def _shifted(walk: Walk, tensor: str, grid: Grid, shift: Tensor) -> Contender[bool]:
    """The network with ``tensor`` quantized after ``shift`` was taken off."""

    def activation(name: str, value: Tensor) -> Tensor:
        if name != tensor:
            return value
        c = shift.view(1, -1, *[1] * (value.dim() - 2))
        moved = (value - c).clamp(min=0.0)
        return fake_quantize(moved, grid) + c

    return walk.contender(bool((shift > 0).any()), walk.start([tensor]), activation)


def apply_absorption(model: ir.Model, absorbed: Absorbed) -> None:
    """Move ``absorbed.shift`` from the producer's bias into those of the consumers, in place."""
    shift = np.asarray(absorbed.shift, np.float64)
    for node in model.graph:
        if node.name != absorbed.producer and node.name not in absorbed.consumers:
            continue
        bias = node.inputs[2]
        assert bias is not None
        values = bias.const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
        if node.name == absorbed.producer:
            replace_constant(bias, values - shift.reshape(values.shape))
            continue
        weight = node.inputs[1].const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
        replace_constant(bias, values + _answer(node, weight, shift).reshape(values.shape))


def _answer(node: ir.Node, weight: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """What a layer makes of ``shift`` at every position, for each output channel."""
    if node.op_type == "Gemm":
        matrix = weight if node.attributes.get_int("transB", 0) == 1 else weight.T
        return np.asarray(node.attributes.get_float("alpha", 1.0) * (matrix @ shift))
    groups = node.attributes.get_int("group", 1)
    taps = weight.reshape(weight.shape[0], weight.shape[1], -1).sum(2)
    inputs = shift.reshape(groups, -1).repeat(weight.shape[0] // groups, axis=0)
    return np.asarray((taps * inputs).sum(1))
