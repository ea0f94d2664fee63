"""Descent on groups of variables, each with its rule, rate and schedule, averaged over processes, recordable on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrecg_onnx.learning.momentum import LayerMomentum
from mrecg_onnx.machine import Workers, without_cache_folder

__all__ = ["Descent", "Group", "Number"]

#: Devices on which torch's Adam takes one pass over a variable.
FUSED = frozenset({"cpu", "cuda"})


@dataclass(frozen=True)
class Group:
    """Variables with one rate of Adam; ``decays``: it falls to 0 along a cosine; ``by_layer``: of :class:`LayerMomentum`."""

    params: list[Tensor]
    rate: float
    decays: bool
    by_layer: bool = False


class Number:
    """A number that changes from one iteration to the next: what is recorded on a GPU reads it from there."""

    def __init__(self, device: torch.device, *, recorded: bool) -> None:
        self.tensor = torch.zeros((), device=device) if recorded else None

    def set(self, value: float) -> float | Tensor:
        """``value``, as iterations read it."""
        return value if self.tensor is None else self.tensor.fill_(value)


def _records(device: torch.device, workers: Workers) -> bool:
    return device.type == "cuda" and workers.size == 1


class Descent:
    """Adam (or what a group asks for) on ``groups``; gradients are averaged over ``workers``.

    Attributes:
        recorded: iterations are recorded where ``record`` lets them: on a GPU, where no other process takes part in them.
    """

    def __init__(self, groups: Sequence[Group], device: torch.device, workers: Workers, *, record: bool = True) -> None:
        without_cache_folder()
        self.groups, self.workers = groups, workers
        self.recorded = record and _records(device, workers)
        self._rates = [Number(device, recorded=self.recorded) for _ in groups]
        self._entries: list[dict[str, Any]] = [
            {"params": g.params, "lr": number.set(g.rate)} for g, number in zip(groups, self._rates, strict=True)
        ]
        adam = [entry for g, entry in zip(groups, self._entries, strict=True) if not g.by_layer]
        layers = [entry for g, entry in zip(groups, self._entries, strict=True) if g.by_layer]
        # torch's optimizers keep the dictionaries that they are given: rates are set in these.
        self._rules: list[torch.optim.Optimizer] = []
        if adam:
            self._rules.append(torch.optim.Adam(adam, fused=device.type in FUSED, capturable=self.recorded))
        if layers:
            self._rules.append(LayerMomentum(layers))

    def schedule(self, share: float, warmth: float = 1.0) -> None:
        """Set the rates for an iteration at ``share`` of the way, 0 to 1, times ``warmth`` where they decay."""
        for group, entry, number in zip(self.groups, self._entries, self._rates, strict=True):
            if group.decays:
                entry["lr"] = number.set(group.rate * warmth * 0.5 * (1 + math.cos(math.pi * share)))

    def step(self, losses: Sequence[Callable[[], Tensor]]) -> Tensor:
        """One step along the gradient of the sum of ``losses``, made one after the other; returns the sum."""
        self.forget()
        total = None
        for make in losses:
            loss = make()
            loss.backward()  # type: ignore[no-untyped-call]
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        self.workers.mean_([t.grad for group in self.groups for t in group.params if t.grad is not None])
        for rule in self._rules:
            rule.step()
        return total

    def forget(self) -> None:
        """Let the gradients go."""
        for rule in self._rules:
            rule.zero_grad(set_to_none=True)

    def restart(self) -> None:
        """Forget all that was learned about gradients; in place, for what is recorded."""
        for rule in self._rules:
            for state in rule.state.values():
                for value in state.values():
                    value.zero_()
