"""Bit-split and stitching: weights as ternary planes, fitted plane by plane to what the layer answers.

Source: Wang et al. 2020, "Towards Accurate Post-training Network Quantization via Bit-Split and Stitching"; docs/method.md 9.
With M bits an output channel's weights are W = alpha S, S = sum_m 2^m B_m over the M - 1 planes m = 0..M-2, B_m in
{-1, 0, 1}: codes -(2^(M-1)-1)..2^(M-1)-1. For fixed S alpha has a closed form, for fixed alpha and other planes so has each
element of a plane; the two alternate until nothing changes. That is done twice: for ||W - alpha S||^2, then for the layer's
responses ||Y - alpha X S^T||^2, column by column.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrecg_onnx.learning.judging import Judge
from mrecg_onnx.learning.losses import output_weights
from mrecg_onnx.learning.prefix import UnitData
from mrecg_onnx.learning.responses import Layout, NormalEquations, layout_of, normal_equations
from mrecg_onnx.machine import ALONE, Workers
from mrecg_onnx.network import QuantizedWeight, Simulation, Step, forward_size, made_shapes
from mrecg_onnx.planning import LayerPlan, UnitPlan
from mrecg_onnx.progress import UnitResult
from mrecg_onnx.quantizers import LEAST_SCALE, Grid, quantize_codes, search_range

__all__ = ["Objective", "Planes", "alternate", "split_responses", "split_unit", "split_weight"]

logger = logging.getLogger(__name__)

#: Rounds of planes and alpha at most; most layers settle within ten.
MAX_ROUNDS = 30
#: Columns updated one by one before the rest of the matrix hears of it (as in GPTQ: the same result, in matrix products).
BLOCK = 128
#: Share of the mean diagonal added to it, with the float weight as its answer: inputs that calibration hardly shows
#: would otherwise leave their weights to chance.
DAMPING = 0.01
#: Keeps divisions by moments of dead inputs finite.
TINY = 1e-30


@dataclass
class Planes:
    """Ternary planes of a matrix and the scale of its rows.

    Attributes:
        planes: (M - 1, g, O, K) of -1, 0, 1; plane m counts 2^m.
        alpha: (g, O), or (1, O) where the groups share it; above 0.
    """

    planes: Tensor
    alpha: Tensor

    @property
    def codes(self) -> Tensor:
        """The planes stitched together, S: (g, O, K)."""
        factors = 2.0 ** torch.arange(len(self.planes), device=self.planes.device)
        return torch.einsum("m,mgok->gok", factors.to(self.planes), self.planes)

    @property
    def matrix(self) -> Tensor:
        """The weights alpha S."""
        return self.codes * self.alpha[:, :, None]

    @classmethod
    def of(cls, codes: Tensor, alpha: Tensor, bits: int) -> Planes:
        """Planes of integer ``codes``: the binary digits of their magnitude with its sign."""
        digits = [torch.floor(codes.abs() / 2**m) % 2 * codes.sign() for m in range(bits - 1)]
        return cls(torch.stack(digits), alpha)


@dataclass(frozen=True)
class Objective:
    """||Y - alpha X S^T||^2 up to a constant: alpha^2 <S, S G> - 2 alpha <C, S>.

    Attributes:
        cross: C, (g, O, K); the float weight itself in the first stage.
        gram: G, (g, K, K); None for the identity, the first stage.
    """

    cross: Tensor
    gram: Tensor | None = None

    def through(self, codes: Tensor) -> Tensor:
        """S G."""
        return codes if self.gram is None else codes @ self.gram


def _refit_alpha(state: Planes, objective: Objective) -> None:
    """Put alpha = <C, S> / <S, S G> into ``state``: the paper's <W, S> / <S, S>, and least squares over all responses."""
    codes = state.codes
    above, below = (objective.cross * codes).sum(2), (objective.through(codes) * codes).sum(2)
    if len(state.alpha) < len(codes):
        above, below = above.sum(0, keepdim=True), below.sum(0, keepdim=True)
    # A scale is positive: its sign goes into the planes, which are symmetric. One of nothing stays what it was.
    state.planes = torch.where((above < 0)[None, :, :, None], -state.planes, state.planes)
    found = above.abs() / below.clamp(min=TINY)
    state.alpha = torch.where(found > LEAST_SCALE, found, state.alpha)


def _update_plane(plane: Tensor, step: float, residual: Tensor, gram: Tensor | None) -> bool:
    """Best value of every element of ``plane``, column by column, the others as they are by then; True if any changed.

    Args:
        plane: (g, O, K), changed.
        step: what it counts, 2^m.
        residual: D = C / alpha - S G, (g, O, K); kept up to date.
        gram: G, None for the identity: columns do not meet.
    """
    if gram is None:
        delta = (residual / step + plane).round_().clamp_(-1, 1).sub_(plane)
        plane += delta
        residual -= delta * step
        return bool(delta.any())
    changed = False
    diagonal = torch.diagonal(gram, dim1=1, dim2=2)[:, None].clamp(min=TINY)
    for start in range(0, plane.shape[2], BLOCK):
        stop = min(start + BLOCK, plane.shape[2])
        local, square = residual[:, :, start:stop], gram[:, start:stop, start:stop]
        moved = torch.zeros_like(local)
        for j in range(stop - start):
            now = plane[:, :, start + j]
            delta = (local[:, :, j] / (step * diagonal[:, :, start + j]) + now).round_().clamp_(-1, 1).sub_(now)
            local -= (step * delta)[:, :, None] * square[:, j, None, :]
            moved[:, :, j] = delta
        if bool(moved.any()):
            changed = True
            plane[:, :, start:stop] += moved
            moved *= step
            residual[:, :, :start] -= moved @ gram[:, start:stop, :start]
            residual[:, :, stop:] -= moved @ gram[:, start:stop, stop:]
    return changed


def alternate(state: Planes, objective: Objective, report: Callable[[Planes], None] | None = None) -> int:
    """Planes and alpha by turns until nothing changes; returns the number of rounds. ``state`` is changed.

    Every update is the best answer to all else, so that the objective never rises.
    """
    _refit_alpha(state, objective)
    for number in range(1, MAX_ROUNDS + 1):
        codes = state.codes
        residual = objective.cross / state.alpha[:, :, None] - objective.through(codes)
        changed = False
        for m in reversed(range(len(state.planes))):
            changed |= _update_plane(state.planes[m], 2.0**m, residual, objective.gram)
        _refit_alpha(state, objective)
        if report is not None:
            report(state)
        if not changed:
            return number
    return MAX_ROUNDS


def split_weight(weight: Tensor, bits: int, axis: int, layout: Layout) -> Planes:
    """First stage: planes and scales for ||W - alpha S||^2, from the best symmetric range on.

    Args:
        weight: float weight.
        bits: M, 3..8.
        axis: its output channels.
        layout: brings the weight into (g, O, K).
    """
    grid = search_range(weight, bits, axis=axis, symmetric=True, p=2.0)
    w = layout.matrix(weight).double()
    alpha = grid.scale.double().view(1 if layout.shared else len(w), -1)
    state = Planes.of(layout.matrix(quantize_codes(weight, grid)).double(), alpha, bits)
    alternate(state, Objective(w))
    return state


def split_responses(
    state: Planes, weight: Tensor, equations: NormalEquations, report: Callable[[Planes], None] | None = None
) -> int:
    """Second stage: planes and scales for the layer's responses; returns the number of rounds. ``state`` is changed.

    Args:
        state: from the first stage.
        weight: float weight as (g, O, K).
        equations: of the responses.
        report: called after every round.
    """
    damping = DAMPING * torch.diagonal(equations.gram, dim1=1, dim2=2).mean(1).clamp(min=TINY)
    identity = torch.eye(equations.gram.shape[1], dtype=torch.float64, device=weight.device)
    gram = equations.gram + damping[:, None, None] * identity
    cross = equations.cross + damping[:, None, None] * weight.double()
    return alternate(state, Objective(cross, gram), report)


def split_unit(
    unit: UnitPlan,
    simulation: Simulation,
    data: UnitData,
    *,
    learn_bias: bool,
    seed: int,
    clock: Callable[[], float],
    workers: Workers = ALONE,
    report: Callable[[int, float], None] | None = None,
    **_: Any,
) -> UnitResult:
    """Split the layers of one unit and write what is better, split or nearest, into ``simulation``.

    A solver like :func:`mrecg_onnx.learning.reconstruction.reconstruct_unit`, which learns by gradient and reads more
    settings; those without a meaning here are ignored.

    Args:
        unit: one layer with what follows it; of several layers each sees those before it split.
        simulation: holds nearest-rounded weights and searched ranges; changed.
        data: inputs from the quantized prefix and from the float network, and targets.
        learn_bias: biases take up the mean error of the responses.
        seed: for positions on large maps.
        clock: seconds, monotonic.
        workers: processes with other samples.
        report: called with (round, error of the responses) after every round.

    Returns:
        Squared errors of the unit's output before and after, and what was kept.
    """
    begin = clock()
    steps = simulation.network.helpers(simulation.network.part(unit.nodes), list(data.quantized))
    network, sample = simulation.network, {n: store.read(0, 1) for n, store in data.quantized.items()}
    size = forward_size(made_shapes(network, steps, sample).values(), network.device)
    knees, weights = dict.fromkeys(unit.outputs), output_weights(data.targets, 2.0, workers)
    judge = Judge(unit, steps, simulation, data, size, knees, weights, quantize_activations=True, workers=workers)
    nearest = judge.nearest
    generator = torch.Generator().manual_seed(seed)
    rounds = 0
    for name in unit.layers:
        layer = simulation.layer(name)
        if layer.excluded:
            continue
        pairs = _layer_inputs(simulation, steps, data, layer, size)
        rounds += _split_layer(simulation, layer, pairs, generator, workers, report, learn_bias=learn_bias)
    if not rounds:
        return UnitResult(unit.name, unit.layers, 0, nearest, nearest, "nearest", 0.0, clock() - begin)
    split, kept = judge.choose()
    return UnitResult(unit.name, unit.layers, rounds, nearest, split, kept, 0.0, clock() - begin)


def _split_layer(
    simulation: Simulation,
    layer: LayerPlan,
    pairs: Iterator[tuple[Tensor, Tensor]],
    generator: torch.Generator,
    workers: Workers,
    report: Callable[[int, float], None] | None,
    *,
    learn_bias: bool,
) -> int:
    """Both stages for one layer; returns the number of rounds."""
    step = simulation.network.step(layer.name)
    weight: Tensor = step.module.weight.detach()  # type: ignore[assignment, operator]
    layout = layout_of(step.module)
    if layout is None or layer.axis is None:
        logger.warning("layer '%s' multiplies by a stack of matrices: it stays rounded to nearest", layer.name)
        return 0
    state = split_weight(weight, layer.wbits, layer.axis, layout)
    whole = normal_equations(layout, weight, pairs, generator, workers)
    bias = simulation.bias(step)
    moves = learn_bias and bias is not None and bias.numel() == whole.y_mean.numel()
    equations = whole.centred() if moves else whole
    rounds = 0

    def tell(state: Planes) -> None:
        nonlocal rounds
        rounds += 1
        if report is not None:
            report(rounds, float(equations.error(state.matrix).sum()))

    split_responses(state, layout.matrix(weight), equations, tell)
    alpha = state.alpha.flatten().float()
    grid = Grid(alpha, torch.zeros_like(alpha), layer.wbits, layer.axis, symmetric=True)
    simulation.weights[layer.name] = QuantizedWeight(layout.weight(state.codes).float().contiguous(), grid)
    if moves:
        assert bias is not None
        shift = whole.y_mean - (state.matrix * whole.x_mean[:, None]).sum(2)
        simulation.biases[layer.name] = bias.detach() + shift.flatten().view_as(bias).to(bias)
    return rounds


def _layer_inputs(
    simulation: Simulation, steps: Sequence[Step], data: UnitData, layer: LayerPlan, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of what ``layer`` reads on the training samples, in the quantized and in the float network."""
    before = steps[: [step.node for step in steps].index(layer.name)]
    for index in torch.split(data.training, size):
        inputs = ({n: store.gather(index) for n, store in stores.items()} for stores in (data.quantized, data.floating))
        quantized, floating = inputs
        with torch.no_grad():
            yield (
                simulation.run(quantized, before, keep=[layer.input])[layer.input],
                simulation.network.run(floating, before, keep=[layer.input])[layer.input],
            )
