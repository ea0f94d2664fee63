"""ACIQ-Mix: widths of single channels at a fixed average, and weights corrected in mean and variance (Banner 2019).

In symbols of the paper: bins_i proportional to sigma_i^(2/3), M_i = round(log2 bins_i) in [0, 8]; with
xi = |w - E w| / |w_q - E w_q| and mu = E w - xi E w_q the corrected weight is xi w_q + mu, channel by channel.

All of it has to fit integer kernels that have one width, the container's:

1. a channel of M bits uses the codes 0..2^M - 1 only (:attr:`Grid.ceiling`); of 0 bits, the constant 0; of 8 bits,
   127 on either side, as every weight of 8 bits;
2. xi goes into the channel's scale;
3. mu, which no integer zero point can hold, goes into the bias with its expectation: sum over the window of E[x] mu, for
   layers that have a bias.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrecg_onnx.data import Dataset
from mrecg_onnx.network import WHOLE, Network, QuantizedWeight, State, Step, forward_batches
from mrecg_onnx.planning import ActivationPlan, LayerPlan
from mrecg_onnx.quantizers import (
    LEAST_SCALE,
    Grid,
    gauss_clip,
    is_laplace,
    laplace_clip,
    quantize_codes,
    search_weight_range,
)
from mrecg_onnx.rewriting.streams import Stream

__all__ = [
    "MOST_BITS",
    "Folded",
    "allocate_activations",
    "allocate_bits",
    "allocate_weights",
    "correct_scale",
    "grid_of_widths",
]

logger = logging.getLogger(__name__)

#: Widest channel: the container's width.
MOST_BITS = 8


def allocate_bits(sigma: Tensor, average: int) -> Tensor:
    """Bits of each channel, M_i = round(log2 bins_i) with bins_i proportional to sigma_i^(2/3).

    The factor of proportionality is the one that makes the average exact: M_i passes k where the factor passes
    2^(k - 1/2) / sigma_i^(2/3), and as many of these thresholds are passed, the lowest first, as there are bits to give.

    Args:
        sigma: deviation of each channel, shape (C,), >= 0.
        average: bits a channel, 0..8.

    Returns:
        Integers in [0, 8], int64 of shape (C,), whose sum is C * average.
    """
    channels = len(sigma)
    # The largest first: where rounding makes thresholds equal, the larger deviation has the bit.
    order = torch.argsort(sigma, descending=True, stable=True)
    logs = torch.log2(sigma[order].double().clamp(min=torch.finfo(torch.float64).tiny)) * (2.0 / 3.0)
    levels = torch.arange(1, MOST_BITS + 1, device=sigma.device)
    thresholds = (levels[None] - 0.5 - logs[:, None]).reshape(-1)
    passed = torch.argsort(thresholds, stable=True)[: channels * average]
    return torch.bincount(order[passed // MOST_BITS], minlength=channels)


def grid_of_widths(weight: Tensor, widths: Tensor, axis: int, *, symmetric: bool = False) -> Grid:
    """Per-channel grid with a width a channel, each searched as alone; channels of 0 bits have the code 0 only.

    Args:
        weight: any shape.
        widths: bits of each channel along ``axis``, integers in [0, 8], shape (C,).
        axis: channel axis.
        symmetric: codes lie around zero at every width.
    """
    channels = weight.detach().movedim(axis, 0)
    scale, zero = torch.ones_like(channels.flatten(1)[:, 0]), torch.zeros_like(channels.flatten(1)[:, 0])
    ceiling = torch.zeros_like(zero)
    for bits in sorted({int(w) for w in widths if w}):
        chosen = widths == bits
        grid = search_weight_range(channels[chosen], bits, axis=0, symmetric=symmetric)
        scale[chosen] = grid.scale
        # Symmetric codes, moved to begin at 0.
        zero[chosen] = grid.zero_point - grid.qmin
        ceiling[chosen] = float(grid.qmax - grid.qmin)
    return Grid(scale, zero, max(1, int(widths.max())), axis, ceiling=ceiling)


def correct_scale(weight: Tensor, quantized: QuantizedWeight) -> tuple[QuantizedWeight, Tensor]:
    """``quantized`` with the deviation of each channel of ``weight``, and what its mean still lacks, shape (C,)."""
    axis = quantized.grid.axis or 0
    own, other = (w.movedim(axis, 0).flatten(1) for w in (weight, quantized.dequantize()))
    spread, made = (w.std(1, unbiased=False) for w in (own, other))
    usable = (made > 0) & (spread > 0)
    xi = torch.where(usable, spread / torch.where(usable, made, torch.ones_like(made)), torch.ones_like(made))
    grid = dataclasses.replace(quantized.grid, scale=quantized.grid.scale * xi)
    return QuantizedWeight(quantized.codes, grid), own.mean(1) - xi * other.mean(1)


def allocate_weights(
    network: Network,
    layers: Sequence[LayerPlan],
    data: Mapping[str, Tensor] | Dataset,
    *,
    images: int,
    allocate: bool = True,
) -> State:
    """Weights on grids of their channels' widths, corrected in mean and variance; biases with the missing mean.

    Args:
        network: the float network.
        layers: whose weights; those in float, and those that have 8 bits anyway, or one scale, are passed over.
        data: calibration inputs by name, [N, ...], or the set that they are read from.
        images: how many of them tell the mean input of a layer.
        allocate: give channels widths of their own; else all have the layer's.
    """
    found = State()
    missing: dict[str, Tensor] = {}
    for layer in layers:
        if layer.excluded or layer.wbits >= MOST_BITS or layer.axis is None:
            continue
        weight: Tensor = network.step(layer.name).module.weight.detach()  # type: ignore[assignment, operator]
        channels = weight.movedim(layer.axis, 0).flatten(1)
        widths = torch.full((len(channels),), layer.wbits, device=weight.device)
        if allocate:
            widths = allocate_bits(channels.std(1, unbiased=False), layer.wbits)
        grid = grid_of_widths(weight, widths, layer.axis, symmetric=layer.symmetric)
        found.weights[layer.name], missing[layer.name] = correct_scale(
            weight, QuantizedWeight(quantize_codes(weight, grid), grid)
        )
    found.biases.update(_expected(network, {lay.name: lay for lay in layers}, missing, data, images))
    return found


def _expected(
    network: Network,
    layers: Mapping[str, LayerPlan],
    means: Mapping[str, Tensor],
    data: Mapping[str, Tensor] | Dataset,
    images: int,
) -> dict[str, Tensor]:
    """Biases with what weights of constant ``means`` a channel add to the outputs on average, by layer name."""
    with_bias = {n: layers[n] for n in means if layers[n].bias and network.step(n).module.bias is not None}
    for name in sorted(set(means) - set(with_bias)):
        logger.info("layer '%s' has no bias: the mean of its weights is not corrected", name)
    inputs: dict[str, Tensor] = {}
    readers = {layer.input for layer in with_bias.values()}

    def look(name: str, value: Tensor) -> Tensor:
        if name in readers:
            total = value.sum(0, keepdim=True)
            inputs[name] = inputs[name] + total if name in inputs else total
        return value

    count, biases = 0, {}
    with torch.no_grad():
        for batch in forward_batches(data, WHOLE, network.device, images):
            count += len(next(iter(batch.values())))
            for name, value in batch.items():
                look(name, value)
            network.run(batch, activation=look)
        for name, layer in with_bias.items():
            step: Step = network.step(name)
            weight: Tensor = step.module.weight  # type: ignore[assignment]
            shape = [1] * weight.dim()
            shape[layer.axis or 0] = -1
            constant = means[name].view(shape).expand_as(weight)
            # The layer is linear: it may as well see the mean image.
            made = step.module.compute(inputs[layer.input] / count, constant, None)  # type: ignore[operator]
            bias: Tensor = step.module.bias  # type: ignore[assignment]
            axis = 1 if layer.op.startswith("Conv") else made.dim() - 1
            biases[name] = bias + made.movedim(axis, 0).flatten(1).mean(1).view_as(bias)
    return biases


@dataclass(frozen=True)
class Folded:
    """A stream whose channels have widths of their own.

    Attributes:
        stream: it is divided by ``scale``: one step of the tensor is then one step of each channel's own width.
        scale: of each channel, > 0.
        bits: of each channel, 0 to 8.
        grids: of its quantizers by name, for the rescaled network.
    """

    stream: Stream
    scale: tuple[float, ...]
    bits: tuple[int, ...]
    grids: dict[str, Grid]


class _Channels:
    """Moments of every channel of one-sided tensors over batches."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.signed: set[str] = set()
        self.count: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        x = value.transpose(0, 1).flatten(1).double()
        if bool((x < 0).any()):
            self.signed.add(name)
        moments = torch.stack([(x > 0).sum(1).double(), x.abs().sum(1), x.square().sum(1)])
        self.sums[name] = self.sums[name] + moments if name in self.sums else moments
        self.count[name] = self.count.get(name, 0) + x.shape[1]

    def spread(self, name: str) -> Tensor:
        """Root mean square with the zeros: what rounding a channel costs grows with how often it is on."""
        return (self.sums[name][2] / self.count[name]).sqrt()

    def clip(self, name: str, widths: Tensor) -> Tensor:
        """Analytic clipping value of each channel at its width, of the folded density that fits better; see ``aciq``."""
        on, total, squares = self.sums[name]
        b, sigma = total / on.clamp(min=1), (squares / on.clamp(min=1)).sqrt()
        factors = [torch.tensor([f(int(m) + 1) for m in widths]).to(b) for f in (laplace_clip, gauss_clip)]
        return torch.where(is_laplace(b, sigma), b * factors[0], sigma * factors[1])


def allocate_activations(
    network: Network,
    streams: Sequence[Stream],
    quantizers: Sequence[ActivationPlan],
    data: Mapping[str, Tensor] | Dataset,
    *,
    images: int,
) -> list[Folded]:
    """Widths of activation channels at the average of the tensor's, for streams where that is exact.

    With alpha_c the clipping value and M_c the bits of channel c its step is alpha_c / (2^M_c - 1). Dividing the channel by
    its step over the tensor's (:mod:`mrecg_onnx.rewriting.rescaling`) leaves the integer kernels their one scale a tensor, and
    the width is a largest code of the channel's own.

    Streams qualify whose low-bit tensors have no negative value, as behind Relu: the others would need a smallest code, too.
    Relu6 allows no rescaling downwards, and there none is done. All low-bit tensors of a stream share the widths.

    Args:
        network: the float network.
        streams: candidates (:func:`mrecg_onnx.rewriting.streams.find_streams`).
        quantizers: the activation quantizers.
        data: calibration inputs by name, [N, ...], or the set that they are read from.
        images: how many of them are looked at.
    """
    low_bit = {plan.name: plan for plan in quantizers if plan.bits < MOST_BITS}
    wanted = {n for s in streams if not s.ceilings for n in s.tensors if n in low_bit}
    moments = _Channels()

    def look(name: str, value: Tensor) -> Tensor:
        if name in wanted:
            moments.add(name, value)
        return value

    with torch.no_grad():
        for batch in forward_batches(data, WHOLE, network.device, images):
            network.run(batch, activation=look)
    folded = []
    for stream in streams:
        names = [n for n in stream.tensors if n in wanted]
        if names and not moments.signed & set(names) and len({low_bit[n].bits for n in names}) == 1:
            folded.append(_fold(stream, names, low_bit[names[0]].bits, moments))
    return folded


def _fold(stream: Stream, names: Sequence[str], average: int, moments: _Channels) -> Folded:
    spread = torch.stack([moments.spread(n) for n in names]).square().mean(0).sqrt()
    widths = allocate_bits(spread, average)
    levels = (2.0**widths - 1).clamp(min=1)
    # Channels that are off, or have no bits, keep their size.
    steps = {n: torch.where((widths > 0) & (spread > 0), moments.clip(n, widths) / levels, 0.0) for n in names}
    mean = torch.stack(list(steps.values())).mean(0)
    used = mean > 0
    unit = torch.exp(mean[used].log().mean()) if bool(used.any()) else torch.ones(()).double()
    scale = torch.where(used, mean / unit, 1.0)
    ceiling = (2.0**widths - 1).float()
    grids = {}
    for name in names:
        ratio = (steps[name][used] / mean[used]).mean() if bool(used.any()) else 1.0
        step = (unit * ratio).float().clamp(min=LEAST_SCALE)
        grids[name] = Grid(step, torch.zeros_like(step), max(1, int(widths.max())), ceiling=ceiling)
    return Folded(stream, tuple(float(s) for s in scale), tuple(int(w) for w in widths), grids)
