"""Cross-layer equalization: the scale vector that each stream gets before anything is quantized (docs/method.md 5).

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
import torch
from torch import Tensor

from mrecg_onnx.calibrating import nearest_weights
from mrecg_onnx.network import ActivationHook, Network, Step, WeightHook, forward_batches, images_at_once
from mrecg_onnx.planning import ActivationPlan, LayerPlan
from mrecg_onnx.progress import told
from mrecg_onnx.quantizers import Grid, fake_quantize
from mrecg_onnx.rewriting.channel_samples import ChannelSample
from mrecg_onnx.rewriting.racing import Contender
from mrecg_onnx.rewriting.rescaling import along_input
from mrecg_onnx.rewriting.streams import Stream
from mrecg_onnx.rewriting.walk import Walk

__all__ = ["Equalized", "choose_scales"]

#: Exponents tried: the middle first, the others only where it helps.
FIRST_ALPHA, OTHER_ALPHAS = 0.5, (0.25, 0.75, 1.0)
#: A stream whose largest channel is less than this multiple of the median has nothing to equalize.
MIN_SPREAD = 1.15
#: An output error below this share is left alone: at 8 bits there is nothing to gain, and weights would pay for it.
MIN_ERROR = 0.01
#: An exponent must lower the error at least this much, or the stream stays as it is.
MIN_GAIN = 0.02
#: The share of the squared error that is then left, at most.
GAINED = (1 - MIN_GAIN) ** 2
#: Bounds of s: beyond them a channel is dead or an outlier of its own kind.
SMALLEST, LARGEST = 0.02, 50.0
#: Images on which the largest value of a channel below a ceiling is measured, and the room left above it.
CEILING_IMAGES, HEADROOM = 64, 1.05
#: Images on which an exponent is judged, at most, and norms of the range search it is judged with.
IMAGES, NORMS = 16, (2.4, 1.5)


@dataclass(frozen=True)
class Equalized:
    """What was decided for one stream: alpha 0 leaves it as it was.

    ``spread`` is the largest channel over the median one before; the errors are relative to the float output, with only
    this stream quantized, on as many images as the decision took. ``bounded``: its Clips become a Relu and an upper bound
    for each channel, so that channels shrink, too.
    """

    stream: Stream
    alpha: float
    spread: float
    error_before: float
    error_after: float
    scale: tuple[float, ...]
    bounded: bool = False


class _Judge:
    """Measures the output error of quantizing one stream under a scale, without touching the graph.

    Quantizing x / s per tensor and multiplying back by s is what the rescaled network does, seen from outside.
    """

    def __init__(
        self,
        network: Network,
        streams: Sequence[Stream],
        quantizers: Mapping[str, ActivationPlan],
        data: Mapping[str, Tensor],
        layers: Sequence[LayerPlan] = (),
    ) -> None:
        self.network, self.streams, self.quantizers, self.data = network, streams, quantizers, data
        self.layers = {layer.name: layer for layer in layers}
        self.walk = Walk(network, data, IMAGES)
        self.race = self.walk.race(1 - GAINED)
        wanted = {n for s in streams for n in s.tensors if n in quantizers}
        self.channels = {name: ChannelSample(self.walk.images) for name in wanted}
        self._bounds = {tensor: (stream.name, bound) for stream in streams for tensor, bound in stream.ceilings}
        self._floors: dict[str, Tensor] | None = None
        self._peaks: dict[str, Tensor] = {}

        def look(name: str, value: Tensor) -> Tensor:
            if name in self.channels and value.numel():
                self.channels[name].add(value)
            return self._peak(name, value)

        self.walk.look(look)

    def _peak(self, name: str, value: Tensor) -> Tensor:
        """Activation hook: the largest value of each channel below a ceiling."""
        if name in self._bounds and value.numel():
            most = value.transpose(0, 1).flatten(1).amax(1)
            self._peaks[name] = torch.maximum(self._peaks.get(name, most), most)
        return value

    def floor(self, stream: Stream) -> Tensor:
        """How small s may become under the ceilings of ``stream``: shape (C,), at most 1; without any :data:`SMALLEST`."""
        if not stream.ceilings:
            return torch.tensor(SMALLEST)
        if self._floors is None:
            self._floors = self._measured()
        return self._floors[stream.name]

    def _measured(self) -> dict[str, Tensor]:
        """Floors by name of each stream with ceilings, on more images than those that judge."""
        more = {name: x[self.walk.images : CEILING_IMAGES] for name, x in self.data.items()}
        last = max(i for i, step in enumerate(self.network.steps) if set(self._bounds) & set(step.outputs))
        with torch.no_grad():
            for batch in forward_batches(more, images_at_once(self.network, self.data), self.network.device):
                self.network.run(batch, self.network.steps[: last + 1], keep=(), activation=self._peak)
        found = {s.name: torch.zeros(s.channels, device=self.network.device) for s in self.streams if s.ceilings}
        for tensor, most in self._peaks.items():
            stream, bound = self._bounds[tensor]
            found[stream] = torch.maximum(found[stream], most * (HEADROOM / bound))
        return {name: floor.clamp(max=1.0) for name, floor in found.items()}

    def quantized(self, stream: Stream) -> dict[str, ChannelSample]:
        """What is known of the stream's quantized tensors that had a value, by name."""
        return {n: self.channels[n] for n in stream.tensors if n in self.channels and self.channels[n].seen}

    def magnitude(self, stream: Stream) -> Tensor:
        """m_c over the stream's quantized tensors, shape (C,)."""
        found = [x.fourth / x.seen for x in self.quantized(stream).values()]
        if not found:
            return torch.zeros(stream.channels, device=self.network.device)
        return torch.stack(found).mean(0).pow(0.25)

    def contenders(
        self,
        stream: Stream,
        option: float,
        scale: Tensor,
        readers: Sequence[str] = (),
        norms: Sequence[float] = NORMS,
    ) -> list[Contender[float]]:
        """The stream quantized alone under ``scale``, with the range of each of ``norms`` that has one of its own.

        The weights of ``readers`` are quantized, too, as the scale makes them.
        """
        start = self.walk.start([n for n in stream.tensors if n in self.quantizers])
        weight = self._rescaled(scale, readers) if readers else None
        seen: list[dict[str, Grid]] = []
        found = {n: x.grids(self.quantizers[n].bits, norms, scale) for n, x in self.quantized(stream).items()}
        for k in range(len(norms)):
            grids = {name: each[k] for name, each in found.items()}
            if not any(all(_equal(grid, other[name]) for name, grid in grids.items()) for other in seen):
                seen.append(grids)
        return [self.walk.contender(option, start, _rounding(grids, scale), weight) for grids in seen]

    def _rescaled(self, scale: Tensor, readers: Sequence[str]) -> WeightHook:
        """Weight hook that rounds the weights of ``readers`` to nearest, multiplied by ``scale``, and divides them again."""
        found = {}
        for name in readers:
            layer, own = self.layers[name], self.network.step(name).module.weight.detach()  # type: ignore[operator, union-attr]
            shape, s = tuple(own.shape), scale.detach().cpu().numpy()
            along = along_input(shape, s, layer.groups, transposed=layer.axis == 0)
            factor = torch.from_numpy(np.ascontiguousarray(along)).to(own)
            rounded = nearest_weights(self.network, [layer], factor=factor)[name]
            found[name] = rounded.dequantize() / factor

        def hook(step: Step) -> tuple[Tensor, Tensor | None]:
            return found.get(step.node, step.module.weight), step.module.bias  # type: ignore[return-value, arg-type]

        return hook


def _equal(one: Grid, other: Grid) -> bool:
    return bool(one.scale == other.scale) and bool(one.zero_point == other.zero_point)


def _rounding(grids: Mapping[str, Grid], scale: Tensor) -> ActivationHook:
    """Activation hook that divides the tensors of ``grids`` by ``scale``, rounds them and multiplies them again."""
    # One pass: a step of the tensor is s_c steps of the channel.
    each = {name: Grid(grid.scale * scale, grid.zero_point, grid.bits, axis=1) for name, grid in grids.items()}

    def activation(name: str, value: Tensor) -> Tensor:
        return fake_quantize(value, each[name]) if name in each else value

    return activation


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
        streams: from :func:`~mrecg_onnx.rewriting.find_streams`.
        quantizers: activation quantizers with their widths.
        data: calibration inputs by name.
        layers: quantized layers, where Relu6 may become a bound a channel (:func:`~mrecg_onnx.rewriting.bound_channels`).
            Channels may then shrink as
            well as grow, and the weights of who reads the stream pay for it: their error is part of that decision.
    """
    plans = {plan.name: plan for plan in quantizers}
    streams = [s for s in streams if any(name in plans for name in s.tensors)]
    if not streams:
        return []
    judge = _Judge(network, streams, plans, data, layers)
    # The walk does not go back.
    order = sorted(streams, key=lambda s: judge.walk.start([n for n in s.tensors if n in plans]))
    found = {stream.name: _choose(judge, stream) for stream in told(order, "streams")}
    return [found[stream.name] for stream in streams]


def _choose(judge: _Judge, stream: Stream) -> Equalized:
    """The decision for one stream."""
    race, magnitude = judge.race, judge.magnitude(stream)
    middle = magnitude.median().clamp(min=1e-12)
    spread = float(magnitude.amax() / middle)

    def scaled(alpha: float, unit: Tensor, floor: Tensor) -> Tensor:
        ratio = torch.where(magnitude > 0, magnitude / unit, torch.ones_like(magnitude))
        return torch.maximum(ratio.pow(alpha).clamp(SMALLEST, LARGEST), floor.to(ratio))

    def tried(alpha: float, unit: Tensor, floor: Tensor, readers: Sequence[str] = ()) -> list[Contender[float]]:
        return judge.contenders(stream, alpha, scaled(alpha, unit, floor), readers)

    scale, bounded = torch.ones_like(magnitude), False
    plain = judge.contenders(stream, 0.0, scale)
    if spread < MIN_SPREAD:
        return _decided(stream, spread, plain, plain[0], scale)
    for one in plain:
        if race.below(one, MIN_ERROR**2):
            return _decided(stream, spread, [one], one, scale)
    after = race.winner(plain)
    if stream.grouped or not stream.ceilings:
        unit, floor = magnitude.amax() if stream.ceilings else middle, judge.floor(stream)
        first = tried(FIRST_ALPHA, unit, floor)
        lead = race.winner([*plain, *first])
        if lead.option:
            # The norm that suits one exponent suits the others.
            norm = NORMS[first.index(lead)]
            others = [judge.contenders(stream, a, scaled(a, unit, floor), norms=[norm]) for a in OTHER_ALPHAS]
            found = race.winner([lead, *(one for some in others for one in some)])
            if all(race.better(found, one, GAINED) for one in plain):
                after, scale = found, scaled(found.option, unit, floor)
    readers = [n for n in stream.consumers if n in judge.layers]
    if stream.ceilings and readers:
        free = torch.tensor(SMALLEST)
        now = judge.contenders(stream, 0.0, scale, readers)
        found = race.winner([one for a in (FIRST_ALPHA, *OTHER_ALPHAS) for one in tried(a, middle, free, readers)])
        if all(race.better(found, one, GAINED) for one in now):
            scale, bounded = scaled(found.option, middle, free), True
            after = race.winner(judge.contenders(stream, found.option, scale))
    return _decided(stream, spread, plain, after, scale, bounded=bounded)


def _decided(
    stream: Stream,
    spread: float,
    plain: Sequence[Contender[float]],
    after: Contender[float],
    scale: Tensor,
    *,
    bounded: bool = False,
) -> Equalized:
    """What was found, with the errors on the images that all were measured on."""
    slices = max(1, min(one.slices for one in (*plain, after)))
    before = min(float(one.errors(slices).mean()) for one in plain)
    error = float(after.errors(slices).mean()) if after.option else before
    scales = tuple(float(x) for x in scale)
    return Equalized(stream, after.option, spread, math.sqrt(before), math.sqrt(error), scales, bounded)
