"""Ranges of activations: the values that the float network makes on calibration images, and the grid that fits them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import Dataset
from mrecg_onnx.measures import output_error, with_float_outputs
from mrecg_onnx.network import WHOLE, Network, advance, forward_batches, whole_batches
from mrecg_onnx.planning import BYSTANDER_BITS, ActivationPlan
from mrecg_onnx.quantizers import Estimator, Grid, fake_quantize, min_max, mse, search_range

__all__ = [
    "activation_grids",
    "proposed_grids",
    "require_finite",
    "sample_activations",
    "sampled_range",
]

#: Values kept of each tensor for the range search; the true minimum and maximum are kept beside them.
SAMPLED_VALUES = 1 << 17
#: Proposals with both ends of the range this near, in widths of the range, are one.
SAME_RANGE = 0.04
#: Images on which proposals are judged.
JUDGED_IMAGES = 16


def require_finite(name: str, value: Tensor) -> Tensor:
    """Activation hook that lets every value pass.

    Raises:
        DataError: ``value`` holds NaN or Inf; the tensor is named.
    """
    if value.is_floating_point() and value.numel() and not bool(torch.isfinite(value.amin() + value.amax())):
        raise DataError(f"tensor '{name}' holds NaN or Inf on the calibration images: the float model is broken there")
    return value


class _Sampler:
    """Keeps an evenly spread sample of a tensor's values over batches, and its true range."""

    def __init__(self, per_batch: int) -> None:
        self.per_batch = per_batch
        self.parts: list[Tensor] = []
        self.low, self.high = torch.tensor(float("inf")), torch.tensor(float("-inf"))

    def add(self, name: str, value: Tensor) -> None:
        flat = require_finite(name, value).detach().reshape(-1)
        if not flat.numel():
            return
        low, high = flat.amin(), flat.amax()
        self.low, self.high = torch.minimum(self.low.to(low), low), torch.maximum(self.high.to(high), high)
        # An odd stride walks through all channels and positions.
        stride = max(1, flat.numel() // self.per_batch) | 1
        self.parts.append(flat[::stride].float().clone())


def sample_activations(
    network: Network,
    quantizers: Sequence[ActivationPlan],
    data: Mapping[str, Tensor] | Dataset,
    *,
    images: int,
    batch_size: int = WHOLE,
) -> dict[str, _Sampler]:
    """Values of each quantizer's tensors (``reads``) on ``images`` samples of the float network.

    Those of ``data`` are the first; of a data set they are spread over it, and read batch by batch.

    Raises:
        DataError: a tensor holds NaN or Inf; it is named.
    """
    owner = {name: plan.name for plan in quantizers for name in plan.reads}
    count = min(images, len(data) if isinstance(data, Dataset) else len(next(iter(data.values()))))
    per_batch = max(64, SAMPLED_VALUES * batch_size // max(1, count))
    samplers = {plan.name: _Sampler(per_batch) for plan in quantizers}

    def look(name: str, value: Tensor) -> Tensor:
        if name in owner:
            samplers[owner[name]].add(name, value)
        return value

    with torch.no_grad():
        for batch in forward_batches(data, batch_size, network.device, count):
            for name, value in batch.items():
                look(name, value)
            network.run(batch, activation=look)
    return samplers


def sampled_range(values: Tensor, bits: int, p: float) -> Grid:
    """Grid of ``bits`` bits with the least mean |x - Q(x)|^p for ``values`` of any shape, searched on a sample of them."""
    stride = max(1, values.numel() // SAMPLED_VALUES) | 1
    return search_range(values.reshape(-1)[::stride], bits, p=p, low=values.amin(), high=values.amax())


def activation_grids(
    network: Network,
    quantizers: Sequence[ActivationPlan],
    data: Mapping[str, Tensor],
    *,
    images: int,
    only: Collection[str] | None = None,
    estimators: Sequence[Estimator] = (mse,),
    dataset: Dataset | None = None,
) -> dict[str, Grid]:
    """Per-tensor grid of every quantizer on the float network, by quantizer name.

    With one estimator its grid is taken. With several (docs/method.md 1: norms p of a search for the least |x - Q(x)|^p)
    each proposes a grid, and the one is taken that changes the network's output least when only this tensor is quantized.
    On heavy-tailed tensors that decides everything: on the last residual sum of MobileNetV2 at 4 bits p = 2.4 keeps a few
    outliers and rounds the rest away (relative output error .50), p = 1.5 does the opposite (.06).

    Args:
        network: the float network.
        quantizers: who gets a grid.
        data: calibration inputs by name, [N, ...].
        images: how many of them are used for the search.
        only: names of the quantizers wanted; all by default.
        estimators: who proposes grids (:data:`mrecg_onnx.quantizers.ranges.RANGES`).
        dataset: where the images for the search are read from, batch by batch; None: they are those of ``data``, which judges
            the proposals in both cases.
    """
    chosen = [plan for plan in quantizers if only is None or plan.name in only]
    samplers = sample_activations(network, chosen, data if dataset is None else dataset, images=images)
    proposals: dict[str, list[Grid]] = {}
    for plan in chosen:
        proposals[plan.name] = proposed_grids(samplers[plan.name], plan.bits, estimators)
    return _least_output_error(network, proposals, data, {name for plan in chosen for name in plan.outputs})


def proposed_grids(sampler: _Sampler, bits: int, estimators: Sequence[Estimator]) -> list[Grid]:
    """The grid of ``bits`` bits that each of ``estimators`` finds for the sampled values; equal ones once.

    With more than 8 bits it covers all values whatever the estimators: rounding costs nothing there, clipping would.
    """
    values = torch.cat(sampler.parts) if sampler.parts else torch.zeros(1)
    if not sampler.parts:  # the tensor had no element on any image
        return [min_max(values, bits, values[0], values[0])]
    if bits > BYSTANDER_BITS:
        return [min_max(values, bits, sampler.low, sampler.high)]
    if not bool(sampler.low) and not bool(sampler.high):
        # Nothing but zeros: any scale is right, and 0..1 leaves room for biases behind it and for other images.
        return [min_max(values, bits, sampler.low, sampler.high + 1)]
    found: list[Grid] = []
    for estimate in estimators:
        grid = estimate(values, bits, sampler.low, sampler.high)
        if not any(_alike(grid, other) for other in found):
            found.append(grid)
    return found


def _alike(one: Grid, other: Grid) -> bool:
    """Whether two grids of a tensor, of equal width, reach nearly equally far on both sides."""
    width = one.qmax * float(other.scale)
    ends = ((end - grid.zero_point) * grid.scale for end in (0, one.qmax) for grid in (one, other))
    low, low_other, high, high_other = map(float, ends)
    return max(abs(low - low_other), abs(high - high_other)) <= SAME_RANGE * width


def _least_output_error(
    network: Network, proposals: Mapping[str, list[Grid]], data: Mapping[str, Tensor], handed_out: Collection[str] = ()
) -> dict[str, Grid]:
    """The proposal for each tensor that moves the network's output least when only that tensor is quantized.

    The network is walked once; at each tensor with a choice the rest of it is run for every proposal. Outputs of the network in
    ``handed_out`` are quantized, others are what they are in front of a quantizer.
    """
    result = {name: grids[0] for name, grids in proposals.items()}
    if all(len(grids) == 1 for grids in proposals.values()):
        return result
    batch = next(whole_batches(data, JUDGED_IMAGES, network))
    with torch.no_grad():
        reference = network.run(batch)
        live: dict[str, Tensor] = dict(batch)
        for i, step in enumerate([None, *network.steps]):
            names = list(batch) if step is None else list(step.outputs)
            rest = network.steps[i:]
            if step is not None:
                live = advance(network, live, step, rest)
            for name in names:
                if len(proposals.get(name, ())) > 1 and name in live:
                    made = (network.run({**live, name: fake_quantize(live[name], g)}, rest) for g in proposals[name])
                    floats = {} if name in handed_out else {name: live[name]}
                    errors = [output_error(with_float_outputs(outputs, floats), reference) for outputs in made]
                    result[name] = proposals[name][errors.index(min(errors))]
    return result
