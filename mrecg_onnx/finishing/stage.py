"""The finishing stage: all scales, biases and roundings of a network trained together towards the float network's answers.

Knowledge distillation without labels (Hinton et al. 2015) into a network whose units have been reconstructed, as in AE-QDrop (Li
et al., Electronics 2024, 13, 644) and QFT (Finkelstein et al. 2022); docs/method.md 22.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrecg_onnx.data import Dataset
from mrecg_onnx.finishing.judging import Judge, Variants
from mrecg_onnx.finishing.oscillation import Oscillations
from mrecg_onnx.finishing.settings import FinishSettings
from mrecg_onnx.finishing.whole_network import WholePass, images_together, largest_slice, slices, training_bytes
from mrecg_onnx.learning import Checkpoint, Descent, Group, Inputs, Masks, Trainable
from mrecg_onnx.machine import Batch, Iterations, Pool, Run, give_back
from mrecg_onnx.measures import OutputScales
from mrecg_onnx.methods import METHODS
from mrecg_onnx.network import Simulation, State
from mrecg_onnx.planning import UnitPlan
from mrecg_onnx.progress import Progress, UnitResult
from mrecg_onnx.quantizers import LatentRounding

__all__ = ["FinishResult", "finish", "finish_steps"]

logger = logging.getLogger(__name__)

STAGE = "finish"
#: Farthest that a weight starts from its code, in steps: an edge is half a step away.
REACH = 0.25
#: Rates: of momentum by layer for weights in steps of their grid, of Adam for logarithms of scales, for biases in units of their
#: spread.
RATE_WEIGHTS, RATE_SCALES, RATE_BIASES = 1e-2, 1e-3, 1e-3
#: Steps in which the rates grow to their full size: the first steps are as long as the rate, whatever the gradient.
WARM_UP = 10
#: Share of the steps at the end in which weights that swing are frozen.
SETTLING = 0.1
#: Shares of the way at which held-out images are asked.
ASKED = (0.5, 0.75, 1.0)
#: How much better the network must have been on the way than in the end to be taken from there: rates were high, and a few images
#: tell no smaller difference.
CLEARLY = 0.95
#: Shares of the way at which they are asked whether the rates suit the network; where their loss is that many times what it was,
#: all begins again at so much of the rates. What ResNets stand (one and a half times the loss on the way) takes MobileNetV2 from
#: a loss of 1.2 to one of 3.
TRIED, TOO_FAR, SLOWER = (0.125, 0.25, 0.375), 2.0, 0.5
#: Steps for each iteration of a unit where the user does not say, and the most of them.
STEPS_SHARE, MOST_STEPS = 0.4, 400
#: Weights up to which it was seen to gain (docs/method.md 22): at four bits units leave nothing that so few images could teach.
FEW_BITS = 3
#: Bytes of activations that training keeps on the CPU at most.
ROOM = 1 << 30
#: Share of a GPU's free memory that they may take there.
GPU_SHARE = 0.6


@dataclass(frozen=True)
class FinishResult(UnitResult):
    """Outcome of the finishing stage; the unit is the network, ``loss_nearest`` that of its units' solution.

    Losses are the task's on held-out images (:func:`mrecg_onnx.measures.task_loss`); ``kept`` is "learned" or "units".

    Attributes:
        changed: weights whose code is another than before.
        frozen: weights that swung between two codes in the end and were held.
        weights: all weights that were learned.
    """

    changed: int = 0
    frozen: int = 0
    weights: int = 0


def finish_steps(settings: FinishSettings, simulation: Simulation) -> int:
    """Steps of the finishing stage as ``settings`` say; their own choice is none where it was not seen to gain."""
    if settings.finish is not None:
        return settings.finish
    sizes = [(q.grid.bits, q.codes.numel()) for q in simulation.weights.values()]
    few = sum(n for bits, n in sizes if bits <= FEW_BITS)
    if METHODS[settings.method].granularity == "none" or 2 * few <= sum(n for _, n in sizes):
        return 0
    return min(MOST_STEPS, round(settings.iters * STEPS_SHARE))


def finish(
    run: Run,
    simulation: Simulation,
    dataset: Dataset,
    settings: FinishSettings,
    same: Callable[[], dict[str, Any]],
) -> FinishResult | None:
    """Train the whole network for :func:`finish_steps` steps and write what is better on held-out images into ``simulation``.

    Args:
        run: the job; with several processes each sees its share of the images.
        simulation: the network as its units left it; changed.
        dataset: calibration images.
        settings: of the run.
        same: tells what makes two runs the same, for the outcome of an earlier one.

    Returns:
        What came of it; None where there are no steps, or nothing that can be trained.

    Raises:
        MrecgError: images or folder do not do; the subclass says which.
    """
    steps = finish_steps(settings, simulation)
    if not steps or not simulation.weights:
        return None
    with run.stage(STAGE):
        layers = tuple(simulation.weights)
        checkpoint = Checkpoint(run.folder, same()) if run.folder is not None else None
        device = simulation.network.device
        wanted = f"{STAGE}{steps}", 0, layers, device, FinishResult, simulation
        kept = run.once(lambda: checkpoint.load(*wanted) if checkpoint is not None else None)
        if kept is not None:
            result, state = kept
            simulation.adopt(state)
            return result
        return _finished(run, simulation, dataset, settings, steps, checkpoint)


def _finished(
    run: Run,
    simulation: Simulation,
    dataset: Dataset,
    settings: FinishSettings,
    steps: int,
    checkpoint: Checkpoint | None,
) -> FinishResult | None:
    begin, workers = time.perf_counter(), run.workers
    share = dataset.shard(workers.rank, workers.size)
    inputs = Inputs.read(
        share, simulation, Pool(run.cache_budget(), simulation.network.device), quantize_activations=False
    )
    training, held_out = inputs.split(settings.held_out, settings.seed)
    variants = Variants.of(settings, share)
    judge = Judge(simulation, inputs, (held_out if len(held_out) else training), workers, variants)
    course = _Course(run, simulation, inputs, training, settings, variants, judge.scales, steps)
    if not workers.once(course.trains):
        logger.warning(
            "the finishing stage is left out: no gradient reaches a weight or a scale from the network's outputs"
        )
        return None
    before = simulation.state()
    nearest = best = judge.loss()
    kept = before
    asked, tried = ({max(1, round(part * steps)) for part in shares} for shares in (ASKED, TRIED))
    with course.running():
        for step in range(steps):
            loss = course.step(step)
            if step + 1 in asked | tried:
                course.write()
                learned = judge.loss()
                if learned < nearest and CLEARLY * learned < best:
                    best, kept = learned, simulation.state()
                again = step + 1 in tried and learned > TOO_FAR * nearest
                logger.info(
                    "finishing, step %d of %d: loss on held-out images %.4g, before %.4g%s",
                    step + 1,
                    steps,
                    learned,
                    nearest,
                    ": from the start at lower rates" if again else "",
                )
                if again:
                    course.restart(step + 1)
            if run.report is not None and (step % 10 == 9 or step == steps - 1):
                run.report(Progress(STAGE, "network", 0, 1, step + 1, steps, float(loss)))
    _put_back(simulation, workers.once(lambda: kept))
    changed = sum(int((q.codes != before.weights[n].codes).sum()) for n, q in simulation.weights.items())
    result = FinishResult(
        "network", tuple(before.weights), steps, nearest, best, "learned" if best < nearest else "units", 0.0,
        time.perf_counter() - begin, changed, course.frozen, sum(q.codes.numel() for q in simulation.weights.values()),
    )  # fmt: skip
    if checkpoint is not None and workers.first:
        checkpoint.save(f"{STAGE}{steps}", 0, simulation.state(), result)
    if run.report is not None:
        run.report(Progress(STAGE, "network", 1, 1, steps, steps, result.loss, result))
    give_back()
    return result


def _put_back(simulation: Simulation, state: State) -> None:
    for name in simulation.biases.keys() - state.biases.keys():
        del simulation.biases[name]
    simulation.adopt(state)


def _room(run: Run, device: torch.device) -> int:
    """Bytes of activations that training may keep on ``device``."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    return min(run.cache_budget(), ROOM)


class _Course:
    """The steps of the training, one after the other."""

    def __init__(
        self,
        run: Run,
        simulation: Simulation,
        inputs: Inputs,
        training: Tensor,
        settings: FinishSettings,
        variants: Variants,
        scales: OutputScales,
        steps: int,
    ) -> None:
        self.simulation, self.steps, self.training, self.inputs = simulation, steps, training, inputs
        network, workers = simulation.network, run.workers
        self._generator = torch.Generator().manual_seed(workers.seed(settings.seed))
        self._variants = variants
        own = network.batch or 1
        self._size = -(-max(1, settings.batch_size // workers.size) // own) * own
        # Some graphs do not run on one image, whose axis a Squeeze takes away.
        self._least = network.batch or 2
        few = {n: s.read(0, self._least) for n, s in inputs.floating.items()}
        bytes_each, sizes = training_bytes(simulation, few)
        self._part = images_together(self._size, network.batch, largest_slice(simulation, sizes), network.device.type)
        # Memory says whether the network is cut, which changes no digit.
        room = _room(run, network.device)
        whole = self._part * bytes_each <= room
        parts = [list(network.steps)] if whole else slices(simulation, sizes, room // self._part)
        network_unit = UnitPlan("network", (), tuple(simulation.weights), (), (), 0.0)
        plain = [n for n, g in simulation.activations.items() if g.axis is None and g.ceiling is None]
        trainable = Trainable(
            network_unit,
            simulation,
            plain,
            learn_scales=True,
            learn_weight_scales=True,
            learn_bias=True,
            rounding=lambda weight, quantized: LatentRounding(weight, quantized.codes, quantized.grid, REACH),
        )
        masks = Masks(1.0, network.device, self._generator)
        self.run = WholePass(simulation=simulation, trainable=trainable, masks=masks, scales=scales, parts=parts)
        self.roundings: dict[str, LatentRounding] = dict(trainable.rounding)  # type: ignore[arg-type]
        ratios = list({id(t): t for t in trainable.log_ratio.values()}.values())
        groups = [
            Group([r.latent for r in self.roundings.values()], RATE_WEIGHTS, decays=True, by_layer=True),
            Group([*ratios, *trainable.log_gain.values()], RATE_SCALES, decays=True),
            Group(list(trainable.shift.values()), RATE_BIASES, decays=True),
        ]
        self._descent = Descent([g for g in groups if g.params], network.device, workers)
        self._variables = [t for g in groups for t in g.params]
        self._start, self._slowness = [t.detach().clone() for t in self._variables], 1.0
        self._begun = 0
        self._oscillations: Oscillations | None = None
        self._iterations = Iterations(self._iterate, network.device, record=self._descent.recorded)

    def trains(self) -> bool:
        """Whether any gradient comes back from the outputs."""
        return self.run.loss(*self._both(self._batch(self._least))).requires_grad

    def step(self, number: int) -> Tensor:
        """Take step ``number``; returns the loss before it."""
        warmth = min(1.0, (number + 1 - self._begun) / WARM_UP)
        self._descent.schedule(number / self.steps, warmth * self._slowness)
        loss = self._iterations("step", self._batch(self._size))
        for rounding in self.roundings.values():
            rounding.confine()
        if number >= self.steps - max(1, round(SETTLING * self.steps)):
            self._oscillations = self._oscillations or Oscillations(self.roundings)
            self._oscillations.watch()
        return loss

    def restart(self, number: int) -> None:
        """Go back to where the units left the network, and on from there with step ``number`` at lower rates."""
        with torch.no_grad():
            for variable, start in zip(self._variables, self._start, strict=True):
                variable.copy_(start)
        self._descent.restart()
        self._slowness *= SLOWER
        self._begun = number

    @contextmanager
    def running(self) -> Iterator[None]:
        """Steps belong inside; what they needed goes with it, however it ends."""
        with self._iterations.stream():
            try:
                yield
            finally:
                self._descent.forget()

    @property
    def frozen(self) -> int:
        """Weights that were held."""
        return self._oscillations.count() if self._oscillations is not None else 0

    def write(self) -> None:
        """Put what is learned so far into the simulation, as the file will have it."""
        trainable = self.run.trainable
        self.simulation.weights.update(trainable.codes())
        self.simulation.biases.update(trainable.biases())
        self.simulation.activations.update(trainable.grids())
        self.simulation.settle()
        self.simulation.fit_biases()

    def _batch(self, size: int) -> Batch:
        """Random variants of ``size`` random images, some mixed with each other, by part and input."""
        index = self.training[torch.randint(0, len(self.training), (size,), generator=self._generator)]
        images = self._variants.draw({n: s.gather(index) for n, s in self.inputs.floating.items()}, self._generator)
        found: Batch = {}
        for name, x in images.items():
            parts = torch.split(x, self._part * self.inputs.floating[name].rows)
            found |= {(str(i), name): part for i, part in enumerate(parts)}
        return found

    def _both(self, inputs: Batch, number: str = "0") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The images of a part, and what the float network answers to them."""
        part = {name: x for (i, name), x in inputs.items() if i == number}
        with torch.no_grad():
            return part, self.simulation.network.run(part)

    def _iterate(self, batch: Batch) -> Tensor:
        numbers = list(dict.fromkeys(i for i, _ in batch))
        total = sum(len(x) for (_, name), x in batch.items() if name == next(iter(self.inputs.floating)))

        def loss(number: str) -> Tensor:
            part, answers = self._both(batch, number)
            return self.run.loss(part, answers) * (len(next(iter(part.values()))) / total)

        return self._descent.step([lambda number=number: loss(number) for number in numbers])  # type: ignore[misc]
