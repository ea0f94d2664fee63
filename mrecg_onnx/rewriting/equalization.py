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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mrecg_onnx.calibrating import nearest_weights, sampled_range
from mrecg_onnx.measures import output_error
from mrecg_onnx.network import Network, Step, WeightHook, forward_batches, read_behind, whole_batches
from mrecg_onnx.planning import ActivationPlan, LayerPlan
from mrecg_onnx.quantizers import fake_quantize
from mrecg_onnx.rewriting.rescaling import along_input
from mrecg_onnx.rewriting.streams import Stream

__all__ = ["Equalized", "choose_scales"]

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
        needed = read_behind(self.network, self._rest)
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
            along = along_input(shape, s, layer.groups, transposed=layer.axis == 0)
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
            grids[name] = sampled_range(stretched, self.quantizers[name].bits, p)

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
        streams: from :func:`~mrecg_onnx.rewriting.find_streams`.
        quantizers: activation quantizers with their widths.
        data: calibration inputs by name.
        layers: quantized layers, where Relu6 may become a bound a channel (:func:`~mrecg_onnx.rewriting.bound_channels`).
            Channels may then shrink as
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
