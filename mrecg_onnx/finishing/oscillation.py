"""Weights that swing between two codes, counted, and held at the code where they were longer.

Under straight-through gradients a weight whose best value lies between two codes crosses the edge again and again, and ends on
either side by chance (Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", section 4: frequency of
oscillation, iterative freezing at the moving average of the codes).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mrecg_onnx.quantizers import LatentRounding

__all__ = ["Oscillations"]


class Oscillations:
    """Watches roundings step by step; a weight that came back to a code it had left is frozen where it was longer.

    Attributes:
        frozen: by layer, 1 where a weight is held; the weight's shape.
    """

    def __init__(self, roundings: Mapping[str, LatentRounding]) -> None:
        self._roundings = dict(roundings)
        self._last = {name: r.steps() for name, r in self._roundings.items()}
        self._first = {name: x.clone() for name, x in self._last.items()}
        self._sum = {name: torch.zeros_like(x) for name, x in self._last.items()}
        self._direction = {name: torch.zeros_like(x) for name, x in self._last.items()}
        self._held = {name: x.clone() for name, x in self._last.items()}
        self.frozen = {name: torch.zeros_like(x, dtype=torch.bool) for name, x in self._last.items()}
        self._seen = 0

    def watch(self) -> None:
        """Look at the codes after a step."""
        self._seen += 1
        for name, rounding in self._roundings.items():
            self._restore(name, rounding)
            now, last = rounding.steps(), self._last[name]
            self._sum[name] += now
            move = torch.sign(now - last)
            came_back = (move * self._direction[name] < 0) & ~self.frozen[name]
            self._direction[name] = torch.where(move != 0, move, self._direction[name])
            # Half-way goes to the code it started from: nothing speaks for the other one.
            mean, first = self._sum[name] / self._seen, self._first[name]
            usual = torch.where((mean - first).abs() > 0.5, torch.round(mean), first)
            self._held[name] = torch.where(came_back, usual, self._held[name])
            self.frozen[name] |= came_back
            self._restore(name, rounding)
            self._last[name] = rounding.steps()

    def _restore(self, name: str, rounding: LatentRounding) -> None:
        rounding.hold(self.frozen[name], self._held[name])

    def count(self) -> int:
        """How many weights are held."""
        return int(sum(int(x.sum()) for x in self.frozen.values()))
