"""LAPQ: the steps of all quantizers minimised together for the network's own loss (Nahshan 2021, docs/method.md 13).

1. For ten p in [2, 4] every grid is the one of least |x - Q(x)|^p; a parabola through the loss over p has its vertex at p*.
2. From the best of these grids, those of p* and those of the settings' range, Powell's method moves the logarithms of all
   steps: one for each weight tensor, which multiplies the scales of its channels, and one for each activation. Zero points
   stay.

The loss is the task's without labels (:mod:`mrecg_onnx.measures.task`). Powell's line search asks for one step at a time, in
the order of the network: what lies before the first tensor that moved is kept from one evaluation to the next, and so are the
weights that did not move.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mrecg_onnx.calibrating import activation_grids, nearest_weights
from mrecg_onnx.data import Dataset
from mrecg_onnx.measures import OutputScales, output_sums, task_loss
from mrecg_onnx.network import ActivationHook, Network, QuantizedWeight, Simulation, State, read_behind, whole_batches
from mrecg_onnx.planning import BYSTANDER_BITS
from mrecg_onnx.quantizers import LEAST_SCALE, Grid, mse, quantize_codes

__all__ = ["Lapq", "minimise_steps", "vertex"]

logger = logging.getLogger(__name__)

#: The norms tried first.
P_VALUES = tuple(float(p) for p in np.linspace(2.0, 4.0, 10))
#: Powell's unit of length, in logarithms: its first try is a step of a tenth more or less.
UNIT = 0.1
#: Positions are rounded to this many units (half a percent of a step): what is finer has been evaluated before.
LATTICE = 0.05
#: A step may become this many times as large or small, in logarithms.
FARTHEST = math.log(4.0)
#: Outer iterations of Powell's method at most (the authors take one or two), and the relative gain below which it stops.
OUTER, GAIN = 10, 1e-3
#: Bytes of activations kept from one evaluation to the next at most; beyond them the network is run from its beginning.
KEPT_BYTES = 1 << 29
#: Evaluations of a variable: Powell's first pass takes seven each (ResNet-20), and brings most of what there is to gain.
PASS = 8
#: Samples run at a time.
BATCH = 32

#: Powell's tolerance: scipy takes a hundred times this for the share of a line search's result that it may miss.
XTOL = 1e-3

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lapq:
    """What was found.

    Attributes:
        p: vertex of the parabola, None where the losses have none.
        losses: task loss of each of :data:`P_VALUES`.
        loss_start: task loss before the joint minimisation.
        loss: task loss at the end, not above ``loss_start``.
        evaluations: times the network was run in the joint minimisation.
    """

    p: float | None
    losses: tuple[float, ...]
    loss_start: float
    loss: float
    evaluations: int


class _SpentError(Exception):
    """The evaluations are used up."""


def vertex(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Where the least-squares parabola through the points has its minimum, kept within their x; None if it has none."""
    a, b, _ = np.polyfit(np.asarray(x), np.asarray(y), 2)
    if not a > 0:
        return None
    return float(np.clip(-b / (2 * a), min(x), max(x)))


def minimise_steps(
    simulation: Simulation,
    data: Mapping[str, Tensor],
    *,
    images: int,
    range_samples: int,
    evaluations: int | None = None,
    report: Callable[[int, int, float], None] | None = None,
    dataset: Dataset | None = None,
    keep: int = KEPT_BYTES,
) -> Lapq:
    """Move the grids of ``simulation`` to where the task loss is least; it is changed, and never for the worse.

    Args:
        simulation: with the grids of the settings' range, a candidate for the start.
        data: calibration inputs by name, [N, ...].
        images: how many of them the loss is taken on.
        range_samples: how many images the ranges are searched on: of them, or of ``dataset``.
        evaluations: how often the joint minimisation may run the network, None for :data:`PASS` times a variable.
        report: called with (evaluations made, evaluations at most, best loss).
        dataset: where the images for ranges are read from; None: they are the first of ``data``.
        keep: bytes of activations that may be kept from one evaluation to the next; they change no result.
    """
    search = _Search(simulation, data, images, min(keep, KEPT_BYTES))
    network, plan = simulation.network, simulation.plan
    quantizers = [a for a in plan.activations if a.name in simulation.activations]

    def grids(p: float) -> State:
        activations = activation_grids(
            network, quantizers, data, images=range_samples, estimators=(partial(mse, p=p),), dataset=dataset
        )
        return State(activations, nearest_weights(network, plan.layers, p=p))

    candidates: list[tuple[float, State]] = []

    def judge(state: State) -> float:
        loss = search.begin(state)
        candidates.append((loss, state))
        return loss

    judge(simulation.state())
    losses = tuple(judge(grids(p)) for p in P_VALUES)
    best = vertex(P_VALUES, losses)
    if best is not None:
        judge(grids(best))
    start, state = min(candidates, key=lambda c: c[0])
    search.begin(state)
    found, used = _powell(search, start, evaluations or PASS * search.size, report)
    simulation.adopt(search.state())
    logger.info("lapq: loss %.4g at the start, %.4g after %d evaluations", start, found, used)
    return Lapq(best, losses, start, found, used)


def _powell(
    search: _Search, start: float, evaluations: int, report: Callable[[int, int, float], None] | None
) -> tuple[float, int]:
    """Minimise over the logarithms of the steps; leaves ``search`` at the best place seen. Returns its loss and the cost."""
    from scipy.optimize import minimize  # noqa: PLC0415 - a quarter of a second to load, for one method

    seen: dict[bytes, float] = {np.zeros(search.size).tobytes(): start}
    best, place = start, np.zeros(search.size)

    def loss(x: Vector) -> float:
        nonlocal best, place
        lattice = np.round(x / LATTICE).clip(-FARTHEST / UNIT / LATTICE, FARTHEST / UNIT / LATTICE) + 0.0
        key = lattice.tobytes()
        if key not in seen:
            if len(seen) > evaluations:
                raise _SpentError
            seen[key] = search.loss(lattice * (LATTICE * UNIT))
            if seen[key] < best:
                best, place = seen[key], lattice
            if report is not None:
                report(len(seen) - 1, evaluations, best)
        return seen[key]

    if search.size:
        options: dict[str, Any] = {"maxiter": OUTER, "maxfev": 10**9, "xtol": XTOL, "ftol": GAIN}
        with contextlib.suppress(_SpentError):
            minimize(loss, np.zeros(search.size), method="Powell", options=options)
    search.move(place * (LATTICE * UNIT))
    return best, len(seen) - 1


class _Search:
    """The task loss as a function of the logarithms of all steps, with what stays the same kept.

    Variables are in the order of the network, those of low bits before the others.
    """

    def __init__(self, simulation: Simulation, data: Mapping[str, Tensor], images: int, keep: int) -> None:
        self.keep = keep
        self.network: Network = simulation.network
        self.trial = Simulation(simulation.network, simulation.plan)
        self.biases = simulation.biases
        count = min(images, len(next(iter(data.values()))))
        self.batches = list(whole_batches(data, BATCH, self.network, count))
        with torch.no_grad():
            self.reference = _joined([self.network.run(batch) for batch in self.batches])
        self.scales = OutputScales.of(output_sums(self.reference, self.reference), self.reference, self.batches[0])
        made = {name: i for i, step in enumerate(self.network.steps) for name in step.outputs}
        at = {step.node: i for i, step in enumerate(self.network.steps)}
        # A tensor is rounded as soon as its step has made it; graph inputs, before the first step.
        places = [
            (a.bits, made.get(a.name, 0), a.name, False)
            for a in simulation.plan.activations
            if a.name in simulation.activations
        ]
        places += [(w.wbits, at[w.name], w.name, True) for w in simulation.plan.quantized_layers]
        # Wide tensors, which have little to gain, come last: the evaluations may be used up before.
        places.sort(key=lambda row: (row[0] >= BYSTANDER_BITS, *row[1:]))
        self.variables = [row[1:] for row in places]

    @property
    def size(self) -> int:
        """Number of variables."""
        return len(self.variables)

    def begin(self, state: State) -> float:
        """Let the grids of ``state`` be the origin; its loss."""
        self.origin = state
        self.trial.adopt(dataclasses.replace(state, biases=dict(self.biases)))
        self.at = np.zeros(self.size)
        self.kept: _Kept | None = None
        return self._run(0)

    def state(self) -> State:
        """Grids and codes where the search stands."""
        return State(dict(self.trial.activations), dict(self.trial.weights))

    def move(self, x: Vector) -> int:
        """Put the steps where ``x`` (size,) says; the first step of the network that this touches."""
        first = len(self.network.steps)
        for i in np.flatnonzero(x != self.at):
            place, name, weight = self.variables[i]
            first = min(first, place)
            if weight:
                grid = _stretched(self.origin.weights[name].grid, float(x[i]))
                own: Tensor = self.network.step(name).module.weight.detach()  # type: ignore[assignment, operator]
                self.trial.weights[name] = QuantizedWeight(quantize_codes(own, grid), grid)
            else:
                self.trial.activations[name] = _stretched(self.origin.activations[name], float(x[i]))
        self.at = x.copy()
        return first

    def loss(self, x: Vector) -> float:
        """Task loss at ``x``, logarithms of the steps over the origin's, shape (size,)."""
        return self._run(self.move(x))

    def _run(self, first: int) -> float:
        """Run the network from ``first`` on, or from in front of it, and keep what step ``first`` begins with."""
        if self.kept is not None and self.kept.index > first:
            self.kept = None
        kept = self.kept or _Kept(0, [])
        begin, steps, network = kept.index, self.network.steps, self.network
        needed = read_behind(network, steps[first:])
        available = {n for step in steps[:first] for n in step.outputs} | set(network.inputs)
        hook, weight = self.trial.activation_hook(), self.trial.weight_hook()
        outputs, fresh = [], _Kept(first, [])
        keeps = False
        with torch.no_grad():
            for i, batch in enumerate(self.batches):
                # Outputs are those of the file: some are float where others read them quantized.
                floats = dict(kept.floats(i))
                noting = partial(_noting, hook, self.trial.float_outputs, floats)
                values = kept.values(i) or {name: noting(name, value) for name, value in batch.items()}
                values = network.run(
                    values, steps[begin:first], keep=needed & available, activation=noting, weight=weight
                )
                if i == 0:  # the largest batch; grids of the inputs move, too
                    keeps = first > 0 and _bytes(values) * len(self.batches) <= self.keep
                if keeps:
                    fresh.batches.append((values, dict(floats)))
                    if kept.batches:
                        kept.batches[i] = {}, {}  # both would be twice what may be kept
                made = network.run(values, steps[first:], keep=network.outputs, activation=noting, weight=weight)
                outputs.append(made | floats)
        if keeps:
            self.kept = fresh
        elif begin == 0:
            self.kept = None
        return float(task_loss(_joined(outputs), self.reference, self.scales))


@dataclass(frozen=True)
class _Kept:
    """What the network has made in front of step ``index``: for each batch the tensors still needed, and float outputs."""

    index: int
    batches: list[tuple[dict[str, Tensor], dict[str, Tensor]]]

    def values(self, batch: int) -> dict[str, Tensor]:
        return self.batches[batch][0] if self.batches else {}

    def floats(self, batch: int) -> dict[str, Tensor]:
        return self.batches[batch][1] if self.batches else {}


def _noting(
    hook: ActivationHook, names: Collection[str], floats: dict[str, Tensor], name: str, value: Tensor
) -> Tensor:
    """What ``hook`` makes of ``value``; noted in ``floats`` as it was, where it is one of ``names``."""
    if name in names:
        floats[name] = value
    return hook(name, value)


def _bytes(values: Mapping[str, Tensor]) -> int:
    return sum(value.nbytes for value in values.values())


def _stretched(grid: Grid, log: float) -> Grid:
    """``grid`` with its scales times exp(log)."""
    return dataclasses.replace(grid, scale=(grid.scale * math.exp(log)).clamp(min=LEAST_SCALE))


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
