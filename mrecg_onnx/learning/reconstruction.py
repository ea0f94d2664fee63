"""Reconstruction of one unit: rounding and activation scales learned so that the unit's output stays what it was.

The loop of the MRECG code base (docs/method.md 2): loss = mean over batch and space of the channel-summed
squared error to the float output, plus the rounding regularizer; inputs from the quantized prefix, mixed element by element
with the float ones under drop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from mrecg_onnx.learning.descent import Group
from mrecg_onnx.learning.judging import Judge
from mrecg_onnx.learning.loop import Loop, learn
from mrecg_onnx.learning.losses import output_knees, output_weights
from mrecg_onnx.learning.masks import Masks
from mrecg_onnx.learning.prefix import UnitData
from mrecg_onnx.learning.rates import LearningRates
from mrecg_onnx.learning.rounds import rounds, settled
from mrecg_onnx.learning.trainable import Trainable
from mrecg_onnx.learning.windows import plan_windows
from mrecg_onnx.machine import ALONE, Workers
from mrecg_onnx.network import Simulation, forward_size, made_shapes
from mrecg_onnx.planning import UnitPlan
from mrecg_onnx.progress import UnitResult
from mrecg_onnx.quantizers import BetaSchedule

__all__ = ["UnitResult", "reconstruct_unit"]


def reconstruct_unit(
    unit: UnitPlan,
    simulation: Simulation,
    data: UnitData,
    *,
    iters: int,
    batch_size: int,
    parts: int = 1,
    rates: LearningRates,
    keep_quantized: float | None,
    learn_scales: bool,
    learn_weight_scales: bool,
    learn_bias: bool,
    rounding_weight: float,
    knee: float | None,
    window: int,
    seed: int,
    clock: Callable[[], float],
    rounding: str | None = "adaround",
    anneal: str = "linear",
    power: float = 2.0,
    stop: bool = False,
    workers: Workers = ALONE,
    report: Callable[[int, float], None] | None = None,
) -> UnitResult:
    """Learn one unit and write what is better, learned or nearest, into ``simulation``.

    Args:
        unit: what to learn.
        simulation: holds nearest-rounded weights and searched ranges of the unit; changed.
        data: inputs and targets.
        iters: iterations.
        batch_size: samples an iteration in this process, drawn with replacement.
        parts: in how many parts they go, one after the other, where memory does not hold them together.
        rates: Adam's learning rates; the scale's falls to 0 along a cosine.
        keep_quantized: probability of an element to be quantized; None trains with float activations.
        learn_scales: activation scales are learned too.
        learn_weight_scales: so are those of weights, one a channel. Noisy inputs want smaller gains than clean ones.
        learn_bias: biases are learned too (they are int32 in the file: free to move).
        rounding_weight: weight of the rounding regularizer.
        knee: see :func:`~mrecg_onnx.learning.losses.reconstruction_loss`, in standard deviations of the output; None for the
            squared error.
        window: side of the largest map in pixels, 0 for whole maps.
        seed: for batches, windows and masks.
        clock: seconds, monotonic.
        rounding: a row of :data:`mrecg_onnx.quantizers.rounding.ROUNDINGS`; None leaves weights and biases as they are.
        anneal: schedule of the regularizer, a row of :data:`mrecg_onnx.quantizers.rounding.ANNEALS`.
        power: see :func:`~mrecg_onnx.learning.losses.reconstruction_loss`.
        stop: iterations come in rounds, until the held-out loss settles (:mod:`mrecg_onnx.learning.rounds`): ``iters`` at most.
        workers: the processes that learn this unit together, each on its own samples.
        report: called with (iteration, loss) every now and then.

    Returns:
        Losses before and after, and what was kept.
    """
    begin = clock()
    network = simulation.network
    inputs = list(data.quantized)
    steps = network.helpers(network.part(unit.nodes), inputs)
    made = [*data.entries, *(name for step in steps for name in step.outputs if name not in data.deferred)]
    generator = torch.Generator().manual_seed(seed)
    quantize = keep_quantized is not None
    trainable = Trainable(
        unit,
        simulation,
        made,
        learn_scales=learn_scales and quantize,
        learn_weight_scales=learn_weight_scales,
        learn_bias=learn_bias,
        rounding=rounding,
    )
    knees, weights = output_knees(data.targets, knee, workers), output_weights(data.targets, power, workers)
    masks = Masks(keep_quantized if keep_quantized is not None else 1.0, network.device, generator)
    loop = Loop(
        simulation=simulation,
        trainable=trainable,
        masks=masks,
        quantize_activations=quantize,
        rounding_weight=rounding_weight,
        unit=unit,
        steps=steps,
        data=data,
        knees=knees,
        weights=weights,
        power=power,
    )
    sample = {n: store.read(0, 1) for n, store in data.quantized.items()}
    shapes = {n: tuple(x.shape) for n, x in sample.items()} | made_shapes(network, steps, sample)
    size = max(1, forward_size(shapes.values(), network.device) // parts)
    judge = Judge(
        unit, steps, simulation, data, size, knees, weights, quantize_activations=quantize, power=power, workers=workers
    )
    nearest = judge.nearest
    scales = [t for t in {id(t): t for t in trainable.log_ratio.values()}.values() if t.requires_grad]
    if not unit.layers or (not trainable.rounding and (rounding is not None or not scales)):
        return UnitResult(unit.name, unit.layers, 0, nearest, nearest, "nearest", 0.0, clock() - begin)
    constants = {n: tuple(x.shape) for n, x in network.constants.items()}
    windows = plan_windows(steps, constants | shapes, inputs, unit.outputs, window)

    kinds = list(trainable.rounding.values())
    smooth = scales + [t for t in (*trainable.shift.values(), *trainable.log_gain.values()) if t.requires_grad]
    done, losses = 0, list[float]()
    for length in rounds(iters) if stop else (iters,):
        if done:
            for kind in kinds:
                kind.reopen()
        pace = rates.over(iters, length)
        groups: list[Group] = []
        if kinds:
            variables = [t for r in kinds for t in r.variables]
            groups.append(Group(variables, pace.rounding * kinds[0].rate, decays=kinds[0].decays))
        if smooth:
            groups.append(Group(smooth, pace.scale, decays=True))
        told = None if report is None else partial(_tell, report, done)
        schedule = BetaSchedule(length, anneal=anneal)
        learn(loop, groups, windows, length, batch_size, generator, schedule, workers, told, parts)
        done += length
        simulation.weights.update(trainable.codes())
        simulation.biases.update(trainable.biases())
        if learn_scales and quantize:
            simulation.activations.update(trainable.grids())
        losses.append(judge.offer())
        if stop and settled(losses):
            break
    learned, kept = judge.choose()
    sizes = [r.variables[0].numel() for r in kinds]
    unsettled = sum(r.unsettled() * n for r, n in zip(kinds, sizes, strict=True)) / max(1, sum(sizes))
    return UnitResult(unit.name, unit.layers, done, nearest, learned, kept, unsettled, clock() - begin)


def _tell(report: Callable[[int, float], None], done: int, iteration: int, loss: float) -> None:
    """Report an iteration of a round behind ``done`` others."""
    report(done + iteration, loss)
