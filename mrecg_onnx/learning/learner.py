"""A network's units learned one after the other: the images read once, then a probing run, the method's phases, the biases."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import Dataset, check_lost
from mrecg_onnx.learning.bias_correction import correct_biases
from mrecg_onnx.learning.bitsplit import split_unit
from mrecg_onnx.learning.checkpoint import Checkpoint
from mrecg_onnx.learning.prefix import Inputs, Prefix
from mrecg_onnx.learning.rates import LearningRates, default_rates
from mrecg_onnx.learning.reconstruction import reconstruct_unit
from mrecg_onnx.learning.relief import relieved
from mrecg_onnx.learning.settings import LearnerSettings
from mrecg_onnx.machine import Pool, Run, Store, Workers, give_back
from mrecg_onnx.measures import OutputSums, add_sums, combined_error, output_sums
from mrecg_onnx.methods import Method, Phase, method_of
from mrecg_onnx.network import Simulation, State, forward_batches
from mrecg_onnx.planning import Plan, UnitPlan
from mrecg_onnx.progress import Progress, UnitResult
from mrecg_onnx.quantizers import compile_kernels

__all__ = ["Learner", "probe_iters", "reconstruct"]

logger = logging.getLogger(__name__)

#: A probing run shorter than this does not tell units apart.
MIN_PROBE = 50
#: Iterations, all units together, from which compiled kernels win back the 20 s of their making.
COMPILE_FROM = 10_000
#: Held-out images on which corrected biases are compared with those before.
CORRECTION_IMAGES = 128


@dataclasses.dataclass(frozen=True)
class _Lessons:
    """What all units share.

    Attributes:
        run: the job.
        settings: of the run.
        method: the row of the table.
        inputs: the images that this process learns from.
        training: indices of those that weights are fitted to.
        held_out: indices of those that decide.
        pool: memory for activations between units.
        checkpoint: finished units, None if they are not kept.
    """

    run: Run
    settings: LearnerSettings
    method: Method
    inputs: Inputs
    training: Tensor
    held_out: Tensor
    pool: Pool
    checkpoint: Checkpoint | None


class Learner:
    """Learns what the method says; a method that learns nothing leaves everything as it is.

    Args:
        run: the job.
        simulation: the network as it was calibrated; units are written into it.
        dataset: calibration images.
        settings: of the run.
        same: tells what makes two runs the same, for units of an earlier one (:class:`Checkpoint`).

    Attributes:
        simulation: the network with what has been learned.
        phases: outcome of every unit by phase, in order.
        corrections: largest shift of each layer's bias; empty where correction brought nothing, or was not asked for.
        same: as given.
        images: how many images were learned from, all processes together; None where none were.
        skipped: images that could not be read, with the reason.

    Raises:
        MrecgError: images, folder or kernels do not do; the subclass says which.
    """

    def __init__(
        self,
        run: Run,
        simulation: Simulation,
        dataset: Dataset,
        settings: LearnerSettings,
        same: Callable[[], dict[str, Any]],
    ) -> None:
        self.simulation = simulation
        self.phases: dict[str, tuple[UnitResult, ...]] = {}
        self.corrections: dict[str, float] = {}
        self.images: int | None = None
        self.same = same
        self._run, self._settings, self._method = run, settings, method_of(settings)
        compile_kernels(simulation.network.device, on=False)  # those of an earlier run are not this one's
        share = dataset.shard(run.workers.rank, run.workers.size)
        self.skipped = _skipped(run.workers, dataset)
        self._lessons = self._read(share, same) if self._learns or settings.bias_correction else None
        if self._lessons is not None:
            self.skipped = _skipped(run.workers, dataset, share)
            check_lost(self.skipped, share.whole)

    @property
    def plan(self) -> Plan:
        """Units and quantizers as they are learned."""
        return self.simulation.plan

    @property
    def units(self) -> tuple[UnitResult, ...]:
        """Outcome of every unit in the phase that learned the rounding."""
        learned = (p.stage for p in self._method.passes if p.learn_rounding)
        return next((self.phases[stage] for stage in learned if stage in self.phases), ())

    @property
    def _learns(self) -> bool:
        return self._method.granularity != "none"

    def _read(self, share: Dataset, same: Callable[[], dict[str, Any]]) -> _Lessons:
        run, settings, device = self._run, self._settings, self.simulation.network.device
        checkpoint = Checkpoint(run.folder, same()) if run.folder is not None else None
        pool = Pool(run.cache_budget(), device)
        worth_it = self._learns and device.type == "cuda" and settings.iters * len(self.plan.units) >= COMPILE_FROM
        wanted = settings.compile == "on" or (settings.compile == "auto" and worth_it)
        if not compile_kernels(device, on=wanted) and settings.compile == "on":
            raise SettingsError("--compile on: torch.compile does not work here (--debug says why); use --compile auto")
        quantized = any(p.keep_quantized is not None for p in self._method.passes) or settings.bias_correction
        with run.stage("read"):
            inputs = Inputs.read(
                share,
                self.simulation,
                pool,
                quantize_activations=quantized,
                augment=settings.augment,
                seed=run.workers.seed(settings.seed),
            )
            self.images = int(run.workers.total([inputs.count // inputs.copies])[0])
            training, held_out = inputs.split(settings.held_out, settings.seed)
            return _Lessons(run, settings, self._method, inputs, training, held_out, pool, checkpoint)

    def probe(self) -> tuple[UnitResult, ...]:
        """Learn every unit alone for a while and forget it: what losses say of the units' capacities (docs/method.md 4).

        Returns:
            Outcome of every unit; empty where the method merges nothing by its losses.
        """
        settings, method = self._settings, self._method
        if not (method.merge and settings.scheme == "loss") or self._lessons is None:
            return ()
        with self._run.stage("probe"):
            iters = probe_iters(settings)
            known = self.simulation
            trial = Simulation(known.network, known.plan, dict(known.activations), dict(known.weights))
            first = dataclasses.replace(method.passes[0], stage="probe")
            return self._walk(trial, self.plan.units, first, iters)

    def merge(self, plan: Plan) -> None:
        """Go on with the units of ``plan``, which differs in its merges."""
        known = self.simulation
        self.simulation = Simulation(known.network, plan, known.activations, known.weights)

    def learn(self) -> None:
        """Walk over all units, once for each phase of the method."""
        if not self._learns or self._lessons is None:
            return
        for phase in self._method.passes:
            with self._run.stage(phase.stage):
                last = phase is self._method.passes[-1] and not self._settings.bias_correction
                iters = max(1, round(self._settings.iters * phase.share))
                self.phases[phase.stage] = self._walk(
                    self.simulation, self.plan.merged_units(), phase, iters, forget=last
                )

    def correct_biases(self) -> None:
        """Shift biases by the mean error of their layers' outputs where that brings the network's outputs closer."""
        if not self._settings.bias_correction or self._lessons is None:
            return
        lessons = self._lessons
        with self._run.stage("correct"):
            prefix = Prefix(self.simulation, self.plan.units, lessons.inputs, lessons.pool, quantize_activations=True)
            judges = (lessons.held_out if len(lessons.held_out) else lessons.training)[:CORRECTION_IMAGES]
            seen = {name: store.gather(judges) for name, store in lessons.inputs.floating.items()}
            lessons.inputs.forget()
            self.corrections = _corrected(prefix, seen, self._run.workers)

    def _walk(
        self, simulation: Simulation, units: tuple[UnitPlan, ...], phase: Phase, iters: int, *, forget: bool = False
    ) -> tuple[UnitResult, ...]:
        """Learn ``units`` for ``iters`` iterations each; with ``forget`` images go as soon as the first unit has read them."""
        assert self._lessons is not None
        prefix = Prefix(
            simulation,
            units,
            self._lessons.inputs,
            self._lessons.pool,
            quantize_activations=phase.keep_quantized is not None,
            float_inputs=phase.float_inputs,
            input_scales=self._method.input_scales,
        )
        if forget:
            self._lessons.inputs.forget()
        return tuple(reconstruct(prefix, self._lessons, phase, iters))


def probe_iters(settings: LearnerSettings) -> int:
    """Iterations of a unit in the probing run."""
    return min(settings.iters, max(MIN_PROBE, round(settings.iters * settings.probe_fraction)))


def solver_of(method: Method) -> Callable[..., UnitResult]:
    """How ``method`` learns a unit; each solver takes what it needs of the loop's settings."""
    return {"gradient": reconstruct_unit, "bit-split": split_unit}[method.solver]


def reconstruct(prefix: Prefix, lessons: _Lessons, phase: Phase, iters: int) -> list[UnitResult]:
    """Learn the units of ``prefix`` one after the other and write the outcome into its simulation."""
    settings, method, workers, report = lessons.settings, lessons.method, lessons.run.workers, lessons.run.report
    stage, weigh = phase.stage, settings.loss == "fisher" and phase.power == 2.0
    base = default_rates(iters)
    rates = LearningRates(settings.lr_rounding or base.rounding, settings.lr_scale or base.scale)
    results = []
    if weigh:
        prefix.output_scales()  # units of an earlier run are passed over: it could not be asked for later
    for i, unit in enumerate(prefix.units):
        steps = iters * unit.members if settings.joint_iters == "sum" else iters

        def tell(iteration: int, loss: float, unit: UnitPlan = unit, i: int = i, steps: int = steps) -> None:
            if report is not None:
                report(Progress(stage, unit.name, i, len(prefix.units), iteration, steps, loss))

        def learned(unit: UnitPlan = unit, i: int = i, steps: int = steps) -> tuple[UnitResult, dict[str, Store], bool]:
            targets = prefix.targets(unit)
            kept = workers.once(lambda: _kept(lessons.checkpoint, stage, i, unit, prefix))
            if kept is not None:
                result, state = kept
                prefix.simulation.adopt(state)
            else:
                data = prefix.data(unit, targets, lessons.training, lessons.held_out)
                if weigh:
                    data.gradients = prefix.gradients(unit, targets)
                result = solver_of(method)(
                    unit,
                    prefix.simulation,
                    data,
                    iters=steps,
                    batch_size=settings.batch_size // workers.size,
                    parts=prefix.parts,
                    rates=rates,
                    keep_quantized=phase.keep_quantized,
                    learn_scales=phase.learn_scales,
                    learn_weight_scales=settings.learn_weight_scales and phase.learn_scales,
                    learn_bias=settings.learn_bias and (phase.learn_scales or method.learn_bias),
                    rounding_weight=settings.rounding_weight,
                    knee=settings.knee if settings.loss == "huber" and phase.power == 2.0 else None,
                    rounding=method.rounding if phase.learn_rounding else None,
                    anneal=method.anneal,
                    power=phase.power,
                    window=settings.window,
                    seed=workers.seed(settings.seed + i),
                    clock=time.perf_counter,
                    stop=settings.stop == "auto",
                    workers=workers,
                    report=tell,
                )
                prefix.simulation.adopt(workers.once(lambda: prefix.simulation.state(unit)))
                if lessons.checkpoint is not None and workers.first:
                    lessons.checkpoint.save(stage, i, prefix.simulation.state(unit), result)
            prefix.simulation.fit_biases()
            return result, targets, kept is not None

        least = settings.batch_size // workers.size
        result, targets, earlier = relieved(prefix, unit, least, workers, learned)
        relieved(prefix, unit, least, workers, partial(prefix.advance, unit, targets))
        del targets
        give_back()
        results.append(result)
        if report is not None:
            done = i + 1, len(prefix.units), steps, steps, result.loss
            report(Progress(stage, unit.name, *done, result, earlier=earlier))
    return results


def _kept(
    checkpoint: Checkpoint | None, stage: str, number: int, unit: UnitPlan, prefix: Prefix
) -> tuple[UnitResult, State] | None:
    """``unit`` as an earlier run left it; the first process asks, others may lie on machines without the folder."""
    if checkpoint is None:
        return None
    return checkpoint.load(stage, number, unit.layers, prefix.simulation.network.device, simulation=prefix.simulation)


def _corrected(prefix: Prefix, judges: dict[str, Tensor], workers: Workers) -> dict[str, float]:
    """Correct the biases behind ``prefix`` and keep that where it brings the outputs on ``judges`` closer; else none."""
    simulation = prefix.simulation
    before, biases = _outputs_error(simulation, judges, workers), dict(simulation.biases)
    found = correct_biases(prefix, workers)
    after = _outputs_error(simulation, judges, workers)
    if after < before:
        return found
    logger.info(
        "bias correction is left out: it would raise the error of the outputs on held-out images from %.4g to %.4g",
        before,
        after,
    )
    simulation.biases = biases
    return {}


def _outputs_error(simulation: Simulation, data: dict[str, Tensor], workers: Workers) -> float:
    """Relative L2 error of the network's outputs on the images of all processes."""
    sums: dict[str, OutputSums] = {}
    for batch in forward_batches(data, 32, simulation.network.device):
        with torch.no_grad():
            reference = simulation.network.run(batch)
        add_sums(sums, output_sums(simulation.run(batch), reference))
    together: dict[str, OutputSums] = {}
    for part in workers.gather(sums):
        add_sums(together, part)
    return combined_error(together.values())


def _skipped(workers: Workers, *datasets: Dataset) -> tuple[str, ...]:
    """Images that any process could not read, with the reason, each once."""
    mine = [f"{path} ({reason})" for dataset in datasets for path, reason in dataset.skipped]
    return tuple(dict.fromkeys(entry for part in workers.gather(mine) for entry in part))
