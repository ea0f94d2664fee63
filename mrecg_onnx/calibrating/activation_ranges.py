"""Ranges of activations: the values that the float network makes on calibration images, and the grid that fits them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.parity import all_finite
from mrecg_onnx.data import Dataset
from mrecg_onnx.measures import OutputSums, add_sums, combined_error, output_sums, with_float_outputs
from mrecg_onnx.network import (
    WHOLE,
    Network,
    Step,
    advance,
    forward_batches,
    images_at_once,
    interleaved,
    whole_batches,
)
from mrecg_onnx.planning import BYSTANDER_BITS, ActivationPlan
from mrecg_onnx.progress import tell, told
from mrecg_onnx.quantizers import Estimator, Grid, fake_quantize, min_max, mse

__all__ = [
    "activation_grids",
    "proposed_grids",
    "require_finite",
    "sample_activations",
]

#: Values kept of each tensor for the range search, and of each batch at least; the true minimum and maximum are kept beside
#: them.
SAMPLED_VALUES, LEAST_SAMPLED = 1 << 17, 64
#: Proposals with both ends of the range this near, in widths of the range, are one.
SAME_RANGE = 0.04
#: Images on which proposals are judged at most, and those of them that all proposals are judged on.
JUDGED_IMAGES, FIRST_JUDGED = 16, 4
#: A first proposal that moves the output less than this (relative L2) is kept: next to all that is rounded with it, the others
#: have nothing to gain.
ADEQUATE = 0.007
#: A proposal is out of the race where its error is more than this share above the least one, after the first images, after
#: the next ones, and later: the fewer images, the less they tell.
MARGINS = (0.3, 0.15, 0.1)


def require_finite(name: str, value: Tensor) -> Tensor:
    """Activation hook that lets every value pass.

    Raises:
        DataError: ``value`` holds NaN or Inf; the tensor is named.
    """
    if value.numel() and not all_finite(value):
        _require_finite(name, value, value.amin(), value.amax())
    return value


def _require_finite(name: str, value: Tensor, low: Tensor, high: Tensor) -> None:
    if value.is_floating_point() and not bool(torch.isfinite(low + high)):
        raise DataError(f"tensor '{name}' holds NaN or Inf on the calibration images: the float model is broken there")


class _Sampler:
    """Keeps an evenly spread sample of a tensor's values over batches, and its true range.

    Which values are kept does not depend on how many images come at a time.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self.parts: list[Tensor] = []
        self.low, self.high = torch.tensor(float("inf")), torch.tensor(float("-inf"))
        self._next: dict[str, int] = {}

    def add(self, name: str, value: Tensor, images: int) -> None:
        """Take values of the tensor ``name`` on the next ``images``.

        Raises:
            DataError: it holds NaN or Inf.
        """
        value, count = value.detach(), value.numel()
        if not count:
            return
        low, high = value.amin(), value.amax()
        _require_finite(name, value, low, high)
        self.low, self.high = torch.minimum(self.low.to(low), low), torch.maximum(self.high.to(high), high)
        # An odd stride walks through all channels and positions.
        stride = max(1, min(count * self.images // (images * SAMPLED_VALUES), count // LEAST_SAMPLED)) | 1
        start = self._next.get(name, 0) % stride
        self._next[name] = (start - count) % stride
        self.parts.append(_every(value, start, stride).float())


def _every(value: Tensor, start: int, stride: int) -> Tensor:
    """Every ``stride``-th value from ``start`` on, of images in any layout without a copy of them all."""
    if value.is_contiguous():
        return value.view(-1)[start::stride].clone()
    index = torch.arange(start, value.numel(), stride, device=value.device)
    return value[torch.unravel_index(index, value.shape)]


def sample_activations(
    network: Network,
    quantizers: Sequence[ActivationPlan],
    data: Mapping[str, Tensor] | Dataset,
    *,
    images: int,
) -> dict[str, _Sampler]:
    """Values of each quantizer's tensors (``reads``) on ``images`` samples of the float network.

    Those of ``data`` are the first; of a data set they are spread over it, and read batch by batch.

    Raises:
        DataError: a tensor holds NaN or Inf; it is named.
    """
    owner = {name: plan.name for plan in quantizers for name in plan.reads}
    count = min(images, len(data) if isinstance(data, Dataset) else len(next(iter(data.values()))))
    samplers = {plan.name: _Sampler(count) for plan in quantizers}
    size = held = done = 0

    def look(name: str, value: Tensor) -> Tensor:
        if name in owner:
            samplers[owner[name]].add(name, value, held)
        return value

    with torch.no_grad():
        for read in forward_batches(data, WHOLE, network.device, count):
            size = size or images_at_once(network, read)
            for batch in forward_batches(read, size, network.device):
                held = len(next(iter(batch.values())))
                for name, value in batch.items():
                    look(name, value)
                network.run(batch, activation=look)
                done += held
                tell(done, count, "images")
    return samplers


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

    The network is walked once; at each tensor with a choice the rest of it is run for the proposals. They race: all are judged
    on a few images first, and those far behind on no more (:data:`MARGINS`); where the first proposal does well enough
    (:data:`ADEQUATE`) there is no race. Outputs of the network in ``handed_out`` are quantized, others are what they are in
    front of a quantizer.
    """
    result = {name: grids[0] for name, grids in proposals.items()}
    if all(len(grids) == 1 for grids in proposals.values()):
        return result
    heats = list(_heats(network, data))
    with torch.no_grad():
        judge = _Judge(network, [network.run(batch) for batch in heats])
        lives: list[dict[str, Tensor]] = [dict(batch) for batch in heats]
        for i, step in enumerate(told([None, *network.steps], "steps of the network")):
            names = list(heats[0]) if step is None else list(step.outputs)
            rest = network.steps[i:]
            if step is not None:
                lives = [advance(network, live, step, rest) for live in lives]
            for name in names:
                if len(proposals.get(name, ())) > 1 and name in lives[0]:
                    result[name] = judge.best(name, proposals[name], lives, rest, given=name not in handed_out)
    return result


def _heats(network: Network, data: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The first images in batches: :data:`FIRST_JUDGED` spread over them, then the others, as many as are run at a time."""
    count = min(JUDGED_IMAGES, len(next(iter(data.values()))))
    apart = -(-count // FIRST_JUDGED)
    order = interleaved(count, apart)
    first = len(range(0, count, apart))
    spread = {name: x[order.to(x.device)] for name, x in data.items()}
    yield from whole_batches({name: x[:first] for name, x in spread.items()}, first, network)
    if count > first:
        later = {name: x[first:] for name, x in spread.items()}
        yield from whole_batches(later, max(FIRST_JUDGED, images_at_once(network, data)), network)


class _Judge:
    """Runs the rest of a network on a tensor's proposals.

    Args:
        network: the float network.
        references: its outputs on each batch.
    """

    def __init__(self, network: Network, references: Sequence[Mapping[str, Tensor]]) -> None:
        self.network, self.references = network, references

    def best(
        self,
        name: str,
        grids: Sequence[Grid],
        lives: Sequence[Mapping[str, Tensor]],
        rest: Sequence[Step],
        *,
        given: bool,
    ) -> Grid:
        """The grid of the least output error.

        Args:
            name: the tensor.
            grids: what is proposed for it.
            lives: values at this point of the network by name, for each batch.
            rest: the steps behind.
            given: an output of this name is handed out in float.
        """
        # Rounding shows on every image, what is cut off only on those that have it: the widest range stays to the end.
        widest = max(range(len(grids)), key=lambda k: float(grids[k].scale))
        sums: list[dict[str, OutputSums]] = [{} for _ in grids]
        running = list(range(len(grids)))
        errors: dict[int, float] = {}
        for heat, (live, reference) in enumerate(zip(lives, self.references, strict=True)):
            floats = {name: live[name]} if given else {}
            for k in running:
                made = self.network.run({**live, name: fake_quantize(live[name], grids[k])}, rest)
                add_sums(sums[k], output_sums(with_float_outputs(made, floats), reference))
                errors[k] = combined_error(sums[k].values())
                if k == heat == 0 and errors[k] < ADEQUATE:
                    return grids[0]
            enough = min(errors[k] for k in running) * (1.0 + MARGINS[min(heat, len(MARGINS) - 1)])
            running = [k for k in running if errors[k] <= enough or k == widest]
            if len(running) == 1:
                break
        return grids[min(running, key=errors.__getitem__)]
