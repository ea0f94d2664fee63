"""Cross-layer equalization: exact per-channel rescaling of the float graph before anything is quantized.

One scale vector s per stream: every producer's output channels (weights and bias) are divided by s, every consumer's input
channels multiplied by it. Ops between must be positively homogeneous, channel by channel (Nagel et al. 2019, eq. 8-11;
for residual streams all tensors that meet in the same Adds share one vector, docs/method.md 5).

Relu6 is homogeneous below its ceiling: a channel that stays below 6 / t may be enlarged t times, and the tensor's one scale then
serves it as well as the largest channel. Channels that reach the ceiling keep their size (Nagel et al. replace Relu6 by Relu
instead). This is done where a depthwise layer reads the tensor and it costs nothing: its weights have a scale for each
channel. Behind a depthwise layer the next weights would pay: at W4A4 MobileNetV2 loses more there than its activations gain.

s_c = (m_c / median m)^alpha with m_c = (mean |x_c|^4)^(1/4) on calibration images: between the largest magnitude, which one
outlier decides, and the standard deviation, which does not see what a clipped range costs. On MobileNetV2's worst stream
(160 channels) the best alpha leaves an output error of .46 with it, .49 with the maximum and .45 with the deviation, of .98
without. alpha is chosen per stream by the error that rounding this stream's activations to nearest brings to the network's
output, none where it does not help. Weights take no part in the choice: learned rounding recovers their error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from mrecg_onnx.calibrating import SAMPLED_VALUES, nearest_weights
from mrecg_onnx.converters.passes.values import claim, unique_name
from mrecg_onnx.measures import output_error
from mrecg_onnx.network import Network, Step, WeightHook, forward_batches, whole_batches
from mrecg_onnx.planning import (
    ActivationPlan,
    LayerPlan,
    activation_inputs,
    activation_outputs,
    clamp_bounds,
    constant,
    is_activation,
    is_preserving,
    is_weighted,
    weight_index,
)
from mrecg_onnx.quantizers import fake_quantize, search_range

__all__ = [
    "Equalized",
    "Stream",
    "apply_scale",
    "bound_channels",
    "choose_scales",
    "find_streams",
    "replace_constant",
    "usable_weight",
]

#: Exponents tried: the middle first, the others only where it helps.
FIRST_ALPHA, OTHER_ALPHAS = 0.5, (0.25, 0.75, 1.0)
#: A stream whose largest channel is less than this multiple of the median has nothing to equalize.
MIN_SPREAD = 1.15
#: An output error below this share is left alone: at 8 bits there is nothing to gain, and weights would pay for it.
MIN_ERROR = 0.01
#: An exponent must lower the error at least this much, or the stream stays as it is.
MIN_GAIN = 0.02
#: Bounds of s: beyond them a channel is dead or an outlier of its own kind.
SMALLEST, LARGEST = 0.02, 50.0
#: Images on which the largest value of a channel below a ceiling is measured, and the room left above it.
CEILING_IMAGES, HEADROOM = 64, 1.05
#: Images on which an exponent is judged, and norms of the range search it is judged with.
IMAGES, NORMS = 16, (1.5, 2.4)

_HOMOGENEOUS = frozenset({"AveragePool", "GlobalAveragePool", "LeakyRelu", "MaxPool", "PRelu", "Relu"})
_VIEWS = frozenset({"Flatten", "Reshape", "Squeeze"})


@dataclass(frozen=True)
class Stream:
    """Tensors that must share one scale vector.

    Attributes:
        name: the first tensor.
        tensors: all of them, in topological order.
        channels: length of the vector.
        producers: nodes whose output channels are divided.
        consumers: nodes whose input channels are multiplied.
        ceilings: (tensor, bound) of every Clip in the stream: channels may be enlarged up to it, and none made smaller.
        grouped: only depthwise layers read it, whose weights have a scale for each channel.
    """

    name: str
    tensors: tuple[str, ...]
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    ceilings: tuple[tuple[str, float], ...] = ()
    grouped: bool = False


@dataclass(frozen=True)
class Equalized:
    """What was decided for one stream: alpha 0 leaves it as it was.

    ``spread`` is the largest channel over the median one before; the errors are relative to the float output, with only
    this stream quantized. ``bounded``: its Clips become a Relu and an upper bound for each channel, so that channels shrink, too.
    """

    stream: Stream
    alpha: float
    spread: float
    error_before: float
    error_after: float
    scale: tuple[float, ...]
    bounded: bool = False


def _channels(value: ir.Value | None) -> int | None:
    if value is None or value.shape is None or len(value.shape) < 2:
        return None
    size = value.shape[1]
    return size if isinstance(size, int) else None


def _spatially_flat(node: ir.Node) -> bool:
    """True for [N, C, 1, 1] -> [N, C]."""
    source, made = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or made.shape is None:
        return False
    return all(d == 1 for d in list(source.shape)[2:]) and len(made.shape) == 2 and _channels(source) == _channels(made)


def _joined(node: ir.Node) -> list[ir.Value] | None:
    """Activations that must share a scale through ``node``; None if it allows none at all."""
    inputs, outputs = activation_inputs(node), activation_outputs(node)
    if node.op_type == "Add":
        same = len({tuple(str(d) for d in v.shape) if v.shape is not None else None for v in (*inputs, *outputs)}) == 1
        return [*inputs, *outputs] if len(inputs) == 2 and same and _channels(outputs[0]) else None
    if node.op_type in _HOMOGENEOUS and len(inputs) == 1:
        return [*inputs, node.outputs[0]]
    if node.op_type == "Pad" and _pads_space(node):
        return [*inputs, *outputs]
    if node.op_type in _VIEWS and _spatially_flat(node):
        return [*inputs, *outputs]
    if _ceiling(node) is not None:
        return [*inputs, *outputs]
    return None


def _pads_space(node: ir.Node) -> bool:
    """True for a Pad with zeros, or with the tensor's own values, that leaves batch and channels as they are."""
    amounts = constant(node.inputs[1]) if len(node.inputs) in {2, 3} else None
    if amounts is None or not is_preserving(node):
        return False
    begins, ends = np.split(amounts.numpy(), 2)
    return not begins[:2].any() and not ends[:2].any()


def _depthwise(node: ir.Node) -> bool:
    """True for a convolution whose output channels read one input channel each."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
    return weight is not None and list(weight.shape)[1] == 1


def _ceiling(node: ir.Node | None) -> float | None:
    """Upper bound of a Relu6 (or another Clip from 0 to a constant), None for anything else."""
    bounds = clamp_bounds(node) if node is not None and node.op_type == "Clip" else None
    if bounds is None or bounds[0] != 0.0 or bounds[1] is None or not 0.0 < bounds[1] < math.inf:
        return None
    return bounds[1]


def usable_weight(node: ir.Node) -> bool:
    """True if weight and bias are this node's alone, and the channel axis is where it is expected."""
    index = weight_index(node)
    if index != 1 or node.op_type not in {"Conv", "Gemm"} or node.attributes.get_int("transA", 0) != 0:
        return False
    if any(v is not None and v.is_graph_output() for v in node.inputs[1:3]):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and constant(bias) is None:
        return False
    return all(v is None or len(list(v.uses())) == 1 for v in node.inputs[1:3])


def find_streams(model: ir.Model, *, bounded: bool = False) -> list[Stream]:
    """All sets of tensors that can be rescaled exactly, in topological order.

    ``bounded``: Relu6 may become a bound a channel, so that streams through one are found whoever reads them.
    """
    parent: dict[ir.Value, ir.Value] = {}

    def root(value: ir.Value) -> ir.Value:
        while parent.setdefault(value, value) is not value:
            value = parent[value]
        return value

    blocked: set[ir.Value] = set()
    producers: dict[ir.Value, list[ir.Node]] = {}
    consumers: dict[ir.Value, list[ir.Node]] = {}
    for value in (*model.graph.inputs, *model.graph.outputs):
        blocked.add(value)
    for node in model.graph:
        inputs, outputs = activation_inputs(node), activation_outputs(node)
        if is_weighted(node) and usable_weight(node) and len(inputs) == 1:
            consumers.setdefault(inputs[0], []).append(node)
            producers.setdefault(outputs[0], []).append(node)
            continue
        shared = _joined(node)
        if shared is None:
            blocked.update((*inputs, *outputs))
            continue
        for value in shared[1:]:
            parent[root(value)] = root(shared[0])
    order = [v for v in (*model.graph.inputs, *(v for n in model.graph for v in n.outputs)) if is_activation(v)]
    sets: dict[ir.Value, list[ir.Value]] = {}
    for value in order:
        sets.setdefault(root(value), []).append(value)
    streams = []
    for values in sets.values():
        made = [n.name or "" for v in values for n in producers.get(v, [])]
        read = [n.name or "" for v in values for n in consumers.get(v, [])]
        sizes = {_channels(v) for v in values}
        if blocked & set(values) or not made or not read or len(sizes) != 1 or None in sizes:
            continue
        grouped = all(_depthwise(n) for v in values for n in consumers.get(v, []))
        if any(_ceiling(v.producer()) for v in values) and not (grouped or bounded):
            continue
        streams.append(
            Stream(
                values[0].name or "",
                tuple(v.name or "" for v in values),
                sizes.pop() or 0,
                tuple(made),
                tuple(read),
                tuple((v.name or "", bound) for v in values if (bound := _ceiling(v.producer())) is not None),
                grouped,
            )
        )
    return streams


def _along_input(shape: Sequence[int], scale: np.ndarray, groups: int, *, transposed: bool) -> np.ndarray:
    """``scale`` over input channels, shaped to multiply a Conv (OIHW, grouped) or Gemm weight."""
    if len(shape) == 2:
        return scale[None, :] if transposed else scale[:, None]
    out, per_group = shape[0], shape[1]
    rows = scale.reshape(groups, per_group).repeat(out // groups, axis=0)
    return rows.reshape(out, per_group, *[1] * (len(shape) - 2))


def replace_constant(value: ir.Value, array: np.ndarray) -> None:
    """Give an initializer other values, in the type it has."""
    old = value.const_value
    assert old is not None
    value.const_value = ir.tensor(array.astype(old.numpy().dtype), name=value.name)


def apply_scale(model: ir.Model, stream: Stream, scale: Sequence[float]) -> None:
    """Divide the producers of ``stream`` by ``scale`` (length ``channels``) and multiply its consumers, in place."""
    s = np.asarray(scale, np.float64)
    for node in model.graph:
        transposed = node.attributes.get_int("transB", 0) == 1
        if node.name in stream.producers:
            weight = node.inputs[1].const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
            axis = 0 if node.op_type == "Conv" or transposed else 1
            shape = [1] * weight.ndim
            shape[axis] = -1
            replace_constant(node.inputs[1], weight / s.reshape(shape))  # type: ignore[arg-type]
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                replace_constant(node.inputs[2], node.inputs[2].const_value.numpy().astype(np.float64) / s)  # type: ignore[union-attr]
        if node.name in stream.consumers:
            weight = node.inputs[1].const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
            groups = node.attributes.get_int("group", 1)
            replace_constant(node.inputs[1], weight * _along_input(weight.shape, s, groups, transposed=transposed))  # type: ignore[arg-type]


def bound_channels(model: ir.Model, stream: Stream, scale: Sequence[float]) -> None:
    """Let every Clip(0, b) of ``stream``, rescaled by ``scale``, be a Relu and a Min with b / s_c for each channel, in place."""
    graph = model.graph
    bounds = dict(stream.ceilings)
    for clip in [n for n in graph if n.outputs[0].name in bounds]:
        made, source = clip.outputs[0], clip.inputs[0]
        assert made.shape is not None
        most = np.asarray(bounds[made.name or ""] / np.asarray(scale, np.float64), np.float32)
        name = unique_name(graph, f"{made.name}_bound")
        most = most.reshape(1, -1, *[1] * (len(made.shape) - 2))
        bound = ir.Value(name=name, const_value=ir.tensor(most, name=name))
        bound.shape, bound.dtype = ir.Shape(most.shape), ir.DataType.FLOAT
        graph.register_initializer(bound)
        relu = ir.node("Relu", [source], name=claim(f"{clip.name}_relu", {n.name for n in graph}))
        relu.outputs[0].name = unique_name(graph, f"{made.name}_relu")
        relu.outputs[0].shape, relu.outputs[0].type = made.shape, made.type
        least = ir.node("Min", [relu.outputs[0], bound], name=clip.name)
        least.outputs[0].shape, least.outputs[0].type = made.shape, made.type
        graph.insert_after(clip, [relu, least])
        for node, index in list(made.uses()):
            node.replace_input_with(index, least.outputs[0])
        graph.remove(clip, safe=True)
        least.outputs[0].name = made.name


class _Judge:
    """Measures the output error of quantizing one stream under a scale, without touching the graph.

    Quantizing x / s per tensor and multiplying back by s is what the rescaled network does, seen from outside.
    """

    def __init__(
        self,
        network: Network,
        quantizers: Sequence[ActivationPlan],
        data: Mapping[str, Tensor],
        layers: Sequence[LayerPlan] = (),
    ) -> None:
        self.network = network
        self.layers = {layer.name: layer for layer in layers}
        self.quantizers = {plan.name: plan for plan in quantizers}
        self.data = data
        self.batch = next(whole_batches(data, IMAGES, network))
        with torch.no_grad():
            self.reference = network.run(self.batch)

    def begin(self, stream: Stream) -> None:
        """Run the network up to ``stream`` once: every judgement on it goes on from there."""
        steps = self.network.steps
        names = set(stream.tensors) & set(self.quantizers)
        start = next((i for i, step in enumerate(steps) if names & set(step.outputs)), 0)
        self._rest = steps[start:]
        # Outputs made in front of the stream belong to every judgement, too.
        needed = {n for step in self._rest for n in step.arguments if n is not None} | set(self.network.outputs)
        made = {n for step in steps[:start] for n in step.outputs}
        with torch.no_grad():
            self._live = self.network.run(self.batch, steps[:start], keep=needed & (made | set(self.batch)))

    def floors(self, streams: Sequence[Stream]) -> dict[str, Tensor]:
        """How small s may become under the ceilings, by name of each stream that has some: shape (C,), at most 1."""
        bounds = {tensor: (stream, bound) for stream in streams for tensor, bound in stream.ceilings}
        found = {s.name: torch.zeros(s.channels, device=self.network.device) for s in streams if s.ceilings}

        def look(name: str, value: Tensor) -> Tensor:
            if name in bounds and value.numel():
                stream, bound = bounds[name]
                share = value.transpose(0, 1).flatten(1).amax(1) * (HEADROOM / bound)
                found[stream.name] = torch.maximum(found[stream.name], share)
            return value

        with torch.no_grad():
            for batch in forward_batches(self.data, IMAGES, self.network.device, CEILING_IMAGES):
                self.network.run(batch, activation=look)
        return {name: floor.clamp(max=1.0) for name, floor in found.items()}

    def magnitudes(self, stream: Stream) -> tuple[Tensor, dict[str, Tensor]]:
        """m_c over the stream's quantized tensors, shape (C,), and those tensors by name."""
        names = [n for n in stream.tensors if n in self.quantizers]
        with torch.no_grad():
            values = self.network.run(self.batch, keep=names)
        fourth = torch.stack([v.transpose(0, 1).flatten(1).pow(4).mean(1) for v in values.values()]).mean(0)
        return fourth.pow(0.25), values

    def error(self, scale: Tensor, values: Mapping[str, Tensor], readers: Sequence[str] = ()) -> float:
        """Relative error of the output with only the tensors ``values`` quantized, under the best of the norms.

        The weights of ``readers`` are quantized, too, as the scale makes them.
        """
        weight = self._rescaled(scale, readers)
        return min(self._error(scale, values, p, weight) for p in NORMS)

    def _rescaled(self, scale: Tensor, readers: Sequence[str]) -> WeightHook:
        """Weight hook that rounds the weights of ``readers`` to nearest, multiplied by ``scale``, and divides them again."""
        found = {}
        for name in readers:
            layer, own = self.layers[name], self.network.step(name).module.weight.detach()  # type: ignore[operator, union-attr]
            shape, s = tuple(own.shape), scale.detach().cpu().numpy()
            along = _along_input(shape, s, layer.groups, transposed=layer.axis == 0)
            factor = torch.from_numpy(np.ascontiguousarray(along)).to(own)
            rounded = nearest_weights(self.network, [layer], factor=factor)[name]
            found[name] = rounded.dequantize() / factor

        def hook(step: Step) -> tuple[Tensor, Tensor | None]:
            return found.get(step.node, step.module.weight), step.module.bias  # type: ignore[return-value, arg-type]

        return hook

    def _error(self, scale: Tensor, values: Mapping[str, Tensor], p: float, weight: WeightHook) -> float:
        grids = {}
        for name, value in values.items():
            stretched = value / scale.view(1, -1, *[1] * (value.dim() - 2))
            stride = max(1, stretched.numel() // SAMPLED_VALUES) | 1
            sample = stretched.reshape(-1)[::stride]
            bits = self.quantizers[name].bits
            grids[name] = search_range(sample, bits, p=p, low=stretched.amin(), high=stretched.amax())

        def activation(name: str, value: Tensor) -> Tensor:
            if name not in grids:
                return value
            s = scale.view(1, -1, *[1] * (value.dim() - 2))
            return fake_quantize(value / s, grids[name]) * s

        with torch.no_grad():
            outputs = self.network.run(
                self._live, self._rest, keep=self.network.outputs, activation=activation, weight=weight
            )
        return output_error(outputs, self.reference)


def choose_scales(
    network: Network,
    streams: Sequence[Stream],
    quantizers: Sequence[ActivationPlan],
    data: Mapping[str, Tensor],
    layers: Sequence[LayerPlan] = (),
) -> list[Equalized]:
    """Choose alpha for every stream on calibration images; one decision a stream, in order.

    Args:
        network: the float network.
        streams: from :func:`find_streams`.
        quantizers: activation quantizers with their widths.
        data: calibration inputs by name.
        layers: quantized layers, where Relu6 may become a bound a channel (:func:`bound_channels`). Channels may then shrink as
            well as grow, and the weights of who reads the stream pay for it: their error is part of that decision.
    """
    judge = _Judge(network, quantizers, data, layers)
    streams = [s for s in streams if any(name in judge.quantizers for name in s.tensors)]
    floors = judge.floors(streams)
    result = []
    for stream in streams:
        judge.begin(stream)
        magnitude, values = judge.magnitudes(stream)
        middle = magnitude.median().clamp(min=1e-12)
        spread = float(magnitude.amax() / middle)
        floor = floors.get(stream.name, torch.tensor(SMALLEST))

        def scaled(alpha: float, unit: Tensor, floor: Tensor, magnitude: Tensor = magnitude) -> Tensor:
            ratio = torch.where(magnitude > 0, magnitude / unit, torch.ones_like(magnitude))
            return torch.maximum(ratio.pow(alpha).clamp(SMALLEST, LARGEST), floor.to(ratio))

        below = magnitude.amax() if stream.ceilings else middle
        plain = scaled(0.0, below, floor)
        before = judge.error(plain, values)
        best = (before, 0.0)
        worth_it = spread >= MIN_SPREAD and before >= MIN_ERROR
        if worth_it and (stream.grouped or not stream.ceilings):
            best = min(best, (judge.error(scaled(FIRST_ALPHA, below, floor), values), FIRST_ALPHA))
            if best[1]:
                best = min([best, *((judge.error(scaled(a, below, floor), values), a) for a in OTHER_ALPHAS)])
        if best[0] > before * (1 - MIN_GAIN):
            best = (before, 0.0)
        scale, bounded = scaled(best[1], below, floor), False
        readers = [n for n in stream.consumers if n in judge.layers]
        if worth_it and stream.ceilings and readers:
            free = torch.tensor(SMALLEST)
            tried = [(judge.error(scaled(a, middle, free), values, readers), a) for a in (FIRST_ALPHA, *OTHER_ALPHAS)]
            if min(tried)[0] < judge.error(scale, values, readers) * (1 - MIN_GAIN):
                scale, bounded = scaled(min(tried)[1], middle, free), True
                best = (judge.error(scale, values), min(tried)[1])
        result.append(Equalized(stream, best[1], spread, before, best[0], tuple(float(x) for x in scale), bounded))
    return result
