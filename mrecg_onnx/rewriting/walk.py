"""The float network on the few images that judge, walked from tensor to tensor: every trial goes on from where it differs.

What is in front of a tensor is the same for all trials on it, and is computed once for all tensors together: the walk keeps what
the steps behind still read, as the network itself does while it runs. Images are taken in slices, the first ones small, so that a
trial that is decided early costs as little; a slice that no trial asks for is not walked.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from mrecg_onnx.measures import image_errors, output_sums
from mrecg_onnx.network import ActivationHook, Network, WeightHook, interleaved, read_behind, whole_batches
from mrecg_onnx.rewriting.racing import Contender, Errors, Race

__all__ = ["Walk"]

T = TypeVar("T", bound=Hashable)

#: Images of the first slice, at least; all slices so far together are doubled by the next one.
FIRST_SLICE = 4


@dataclass
class _Slice:
    """Some images on their way: what the steps from ``at`` on read of those in front."""

    live: dict[str, Tensor]
    reference: dict[str, Tensor] = field(default_factory=dict)
    at: int = 0


class Walk:
    """The first ``images`` of ``data`` on their way through ``network``.

    Attributes:
        network: the float network.
        images: how many there are.
    """

    def __init__(self, network: Network, data: Mapping[str, Tensor], images: int) -> None:
        self.network = network
        # The first slice is spread over all.
        count = min(images, len(next(iter(data.values()))))
        order = interleaved(count, max(1, count // FIRST_SLICE))
        whole = next(whole_batches({name: x[order.to(x.device)] for name, x in data.items()}, images, network))
        self.images = len(next(iter(whole.values())))
        own, edges = network.batch or 1, [0]
        while edges[-1] < self.images:
            edges.append(min(self.images, max(2 * edges[-1], -(-FIRST_SLICE // own) * own)))
        self._slices = [
            _Slice({name: x[start:stop] for name, x in whole.items()})
            for start, stop in zip(edges, edges[1:], strict=False)
        ]
        self._signal: dict[str, float] = {}

    def look(self, activation: ActivationHook) -> None:
        """Run the network on all images once, with every value that it makes handed to ``activation``; to be done first."""
        with torch.no_grad():
            for one in self._slices:
                one.reference = self.network.run(one.live, activation=activation)
        whole = {name: torch.cat([one.reference[name] for one in self._slices]) for name in self._slices[0].reference}
        sums = output_sums(whole, whole)
        self._signal = {name: found.signal or 1.0 for name, found in sums.items() if found.floating}

    def start(self, tensors: Sequence[str]) -> int:
        """Number of the first step that makes one of ``tensors``."""
        return next((i for i, step in enumerate(self.network.steps) if set(tensors) & set(step.outputs)), 0)

    def race(self, indifference: float) -> Race:
        """Comparisons on these images."""
        return Race(self.images, len(self._slices), indifference)

    def contender(
        self, option: T, start: int, activation: ActivationHook, weight: WeightHook | None = None
    ) -> Contender[T]:
        """The network with ``activation`` and ``weight`` from step ``start`` on; no ``start`` may lie before an earlier one."""
        return Contender(option, lambda k: self._errors(k, start, activation, weight))

    def _errors(self, number: int, start: int, activation: ActivationHook, weight: WeightHook | None) -> Errors:
        """Squared error of each image of a slice (:func:`mrecg_onnx.measures.image_errors`)."""
        one, rest = self._slices[number], self.network.steps[start:]
        assert one.at <= start, "the walk does not go back"
        with torch.no_grad():
            if one.at < start:
                between = self.network.steps[one.at : start]
                known = set(one.live) | {name for step in between for name in step.outputs}
                # Outputs made in front belong to every trial, too.
                one.live = self.network.run(one.live, between, keep=read_behind(self.network, rest) & known)
                one.at = start
            outputs = self.network.run(one.live, rest, keep=self.network.outputs, activation=activation, weight=weight)
            return image_errors(outputs, one.reference, self._signal).cpu().numpy()
