"""The main job on one page: load, plan, equalize, calibrate, reconstruct, export, verify."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import psutil
import torch
from torch import Tensor

from mrecg_onnx import __version__
from mrecg_onnx.calibrating import CALIBRATION_KEY, Sensitivity, measure_sensitivity
from mrecg_onnx.checking import Verification, verify
from mrecg_onnx.converters import check_writable, save_model
from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.save import digest
from mrecg_onnx.data import Dataset, check_lost, holds_images
from mrecg_onnx.learning import (
    Checkpoint,
    Inputs,
    Lapq,
    LearningRates,
    Prefix,
    correct_biases,
    default_rates,
    minimise_steps,
    reconstruct_unit,
    split_unit,
)
from mrecg_onnx.machine import Pool, Workers, default_memory, give_back, joined, local_size
from mrecg_onnx.measures import OutputSums, add_sums, combined_error, output_sums
from mrecg_onnx.methods import Method, Phase, method_of
from mrecg_onnx.network import Simulation, State, forward_batches
from mrecg_onnx.planning import BYSTANDER_BITS, BitRule, Plan, UnitPlan, place
from mrecg_onnx.preparation import (
    Prepared,
    calibrate,
    full_precision,
    make_plan,
    merge_by,
    pick_device,
    prepare,
    search_grids,
)
from mrecg_onnx.progress import Clock, Progress, Report, UnitResult
from mrecg_onnx.quantizers import compile_kernels
from mrecg_onnx.rewriting import Absorbed, Equalized
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets import load_target
from mrecg_onnx.validating import (
    INPUT_RANGES_KEY,
    PREPROCESS_KEY,
    SOURCE_KEY,
    VERSION_KEY,
    ranges_entry,
    source_sha256,
    validate,
)
from mrecg_onnx.widths import (
    AVERAGES,
    Allocation,
    Budget,
    Costs,
    PackedSize,
    Trial,
    allocate,
    average_budget,
    budgets_of,
    cost_images,
    measure_costs,
    measured_drop,
    search,
    tell_doubts,
    with_rules,
)
from mrecg_onnx.writing import Contained, Exported, contained, export, retarget

__all__ = ["Progress", "QuantizationResult", "Report", "quantize"]

logger = logging.getLogger(__name__)

#: Images on which the exported file is compared with the simulation.
VERIFY_IMAGES = 256
#: A probing run shorter than this does not tell units apart.
MIN_PROBE = 50
#: Kept free of the memory budget for the loop itself, a batch on its way through a unit and back: a share of the budget, and
#: of small budgets up to half, as long as that is less than a gigabyte.
WORKING_SHARE, SMALL_SHARE, SMALL = 0.3, 0.5, 10**9
#: Iterations, all units together, from which compiled kernels win back the 20 s of their making.
COMPILE_FROM = 10_000
#: Held-out images on which corrected biases are compared with those before.
CORRECTION_IMAGES = 128
#: Keeps the random numbers of different processes apart: more than there are units.
SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class QuantizationResult:
    """What :func:`quantize` made and measured.

    Attributes:
        model: the quantized model.
        output: where it was written, None if it was not.
        settings: the run's settings, with everything automatic resolved.
        plan: the plan that was carried out.
        units: outcome of every unit, in order; of the phase that learned the rounding where a method has several.
        probe: outcome of the probing run's units, empty without one.
        equalized: decision for every stream.
        absorbed: decision for every tensor whose channels could be shifted, with ``absorb``.
        sensitivities: quantizers by how much each hurts alone; measured only with ``protect``.
        protected: quantizers raised to 8 bits.
        parity: relative error between ONNX Runtime and torch on the float model.
        verification: checks on the result.
        skipped: calibration images that could not be read.
        images: calibration images used.
        seconds: wall time by stage.
        origin: how calibration data were made, None where they were given.
        lapq: what the joint search for steps found, None without one.
        phases: outcome of every unit by phase, in order.
        corrections: with ``bias_correction``, the largest shift of each layer's bias; empty where it brought nothing.
        allocation: widths chosen by integer programming, None where they were given.
        trials: files made on the search for ``max_drop``, in order.
    """

    model: onnx.ModelProto
    output: Path | None
    settings: Settings
    plan: Plan
    units: tuple[UnitResult, ...]
    probe: tuple[UnitResult, ...]
    equalized: tuple[Equalized, ...]
    sensitivities: tuple[Sensitivity, ...]
    protected: tuple[str, ...]
    parity: float
    verification: Verification
    skipped: tuple[str, ...]
    images: int
    seconds: dict[str, float] = field(default_factory=dict)
    origin: dict[str, Any] | None = None
    lapq: Lapq | None = None
    phases: dict[str, tuple[UnitResult, ...]] = field(default_factory=dict)
    corrections: dict[str, float] = field(default_factory=dict)
    absorbed: tuple[Absorbed, ...] = ()
    allocation: Allocation | None = None
    trials: tuple[Trial, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary without the model itself."""
        return {
            "output": str(self.output) if self.output else None,
            "settings": self.settings.to_json(),
            "plan": self.plan.to_json(),
            "units": [dataclasses.asdict(u) for u in self.units],
            "phases": {stage: [dataclasses.asdict(u) for u in units] for stage, units in self.phases.items()},
            "probe": [dataclasses.asdict(u) for u in self.probe],
            "equalized": [dataclasses.asdict(e) for e in self.equalized],
            "sensitivities": [dataclasses.asdict(s) for s in self.sensitivities],
            "protected": list(self.protected),
            "parity": self.parity,
            "verification": dataclasses.asdict(self.verification),
            "skipped": list(self.skipped),
            "images": self.images,
            "seconds": self.seconds,
            "origin": self.origin,
            "lapq": dataclasses.asdict(self.lapq) if self.lapq else None,
            "corrections": self.corrections,
            "absorbed": [dataclasses.asdict(a) for a in self.absorbed],
            "allocation": self.allocation.to_json() if self.allocation else None,
            "trials": [dataclasses.asdict(t) for t in self.trials],
        }


def solver_of(method: Method) -> Callable[..., UnitResult]:
    """How ``method`` learns a unit; each solver takes what it needs of the loop's settings."""
    return {"gradient": reconstruct_unit, "bit-split": split_unit}[method.solver]


@dataclass(frozen=True)
class _Run:
    """What every learning stage of one run shares."""

    settings: Settings
    method: Method
    training: Tensor
    held_out: Tensor
    pool: Pool
    workers: Workers
    checkpoint: Checkpoint | None
    report: Report | None


@full_precision()
def quantize(
    model: onnx.ModelProto | str | Path,
    calib: str | Path | Dataset,
    settings: Settings | None = None,
    *,
    output: str | Path | None = None,
    checkpoint: str | Path | None = None,
    data: str | Path | Dataset | None = None,
    labels: str | Path | None = None,
    report: Report | None = None,
) -> QuantizationResult:
    """Quantize a float ONNX model with learned rounding.

    Under torchrun every process calls this with the same arguments: each reads its share of the images, gradients are
    averaged, the first process writes, and all return the same result.

    Args:
        model: the float model; not changed.
        calib: folder of images, ``.npy``/``.npz`` file of ready inputs, or an open data set; the word ``"zeroq"`` makes images
            from the model's BatchNormalization statistics (a folder of that name is ``"./zeroq"``).
        settings: every choice; the defaults are those of the command line.
        output: where to write the result; it appears there whole or not at all.
        checkpoint: folder for finished units; the same call goes on with those it finds there.
        data: images on which ``max_drop`` is measured, as :func:`mrecg_onnx.validate` takes them; needed with it.
        labels: labels for them, as for :func:`mrecg_onnx.validate`.
        report: called as the work proceeds.

    Returns:
        The quantized model with everything measured on the way.

    Raises:
        MrecgError: a subclass says what is wrong: SettingsError, ModelError, ConversionError, DataError, ExportError,
            WorkerError.
    """
    settings = settings or Settings()
    if settings.max_drop is not None and data is None:
        raise SettingsError("--max-drop needs --data: images on which the drop is measured, labelled ones for top-1")
    memory = settings.memory or default_memory() // local_size()
    with joined(pick_device(settings.device).type) as workers:
        if settings.batch_size % workers.size:
            raise SettingsError(
                f"--batch-size {settings.batch_size} cannot be divided among {workers.size} processes: use a multiple"
            )
        clock = Clock(report if workers.first else None)
        if output is not None:
            workers.once(lambda: check_writable(output))
        measured_on = data if settings.max_drop is not None else None
        ready = prepare(model, calib, settings, clock, workers, checkpoint, measured_on)
        if len(ready.dataset) < 2 * workers.size:
            raise DataError(
                f"{len(ready.dataset)} calibration images are too few for {workers.size} processes: each needs two"
            )
        if ready.settings.max_drop is not None:
            assert data is not None
            return _within_drop(model, ready, memory, workers, clock, output, checkpoint, data, labels)
        ready, allocation = _allocated(model, ready, workers, clock)
        return _quantize(model, ready, allocation, memory, workers, clock, output, checkpoint)


def _quantize(
    model: onnx.ModelProto | str | Path,
    ready: Prepared,
    allocation: Allocation | None,
    memory: int,
    workers: Workers,
    clock: Clock,
    output: str | Path | None,
    folder: str | Path | None,
) -> QuantizationResult:
    settings, plan, network, data = ready.settings, ready.plan, ready.network, ready.data
    with clock.stage("calibrate"):
        simulation = Simulation(network, plan)
        simulation.adopt(workers.once(lambda: calibrate(network, plan, data, settings, ready.ranging).state()))
        simulation.activations.update(ready.channel_grids)

    sensitivities: list[Sensitivity] = []
    protected: tuple[str, ...] = ()
    if settings.protect:
        with clock.stage("sensitivity"):
            simulation, sensitivities, protected = _protected(ready, simulation, workers)
            plan = simulation.plan

    method = method_of(settings)
    lapq: Lapq | None = None
    if method.joint_steps:
        with clock.stage("lapq"):
            lapq, found = workers.once(lambda: _minimise_steps(simulation, ready, clock.report))
            simulation.adopt(found)
    phases: dict[str, tuple[UnitResult, ...]] = {}
    corrections: dict[str, float] = {}
    probe: list[UnitResult] = []
    images = len(next(iter(data.values())))
    share = ready.dataset.shard(workers.rank, workers.size)
    skipped = _skipped(workers, ready.dataset)
    learns = method.granularity != "none"
    if learns or settings.bias_correction:
        checkpoint = Checkpoint(folder, _same_run(ready, protected)) if folder is not None else None
        pool = Pool(_cache_budget(memory), network.device)
        worth_it = learns and network.device.type == "cuda" and settings.iters * len(plan.units) >= COMPILE_FROM
        wanted = settings.compile == "on" or (settings.compile == "auto" and worth_it)
        if not compile_kernels(network.device, on=wanted) and settings.compile == "on":
            raise SettingsError("--compile on: torch.compile does not work here (--debug says why); use --compile auto")
        with clock.stage("read"):
            inputs = Inputs.read(
                share,
                simulation,
                pool,
                quantize_activations=any(p.keep_quantized is not None for p in method.passes)
                or settings.bias_correction,
                flip=settings.augment == "flip",
            )
            images = int(workers.total([inputs.count // inputs.copies])[0])
            skipped = _skipped(workers, ready.dataset, share)
            check_lost(skipped, share.whole)
            run = _Run(
                settings,
                method,
                *inputs.split(settings.held_out, settings.seed),
                pool,
                workers,
                checkpoint,
                clock.report,
            )
        if method.merge and settings.scheme == "loss":
            with clock.stage("probe"):
                iters = min(settings.iters, max(MIN_PROBE, round(settings.iters * settings.probe_fraction)))
                trial = Simulation(network, plan, dict(simulation.activations), dict(simulation.weights))
                first = dataclasses.replace(method.passes[0], stage="probe")
                probe = reconstruct(_prefix(trial, plan.units, inputs, run, first), run, iters, first)
                plan = merge_by(plan, settings, [u.final_loss for u in probe], "loss")
                simulation = Simulation(network, plan, simulation.activations, simulation.weights)
        for phase in method.passes if learns else ():
            with clock.stage(phase.stage):
                prefix = _prefix(simulation, plan.merged_units(), inputs, run, phase)
                if phase is method.passes[-1] and not settings.bias_correction:
                    inputs.forget()  # the prefix lets the images go as soon as the first unit is done
                phases[phase.stage] = tuple(
                    reconstruct(prefix, run, max(1, round(settings.iters * phase.share)), phase)
                )
        if settings.bias_correction:
            with clock.stage("correct"):
                prefix = Prefix(simulation, plan.units, inputs, pool, quantize_activations=True)
                judges = (run.held_out if len(run.held_out) else run.training)[:CORRECTION_IMAGES]
                seen = {name: store.gather(judges) for name, store in inputs.floating.items()}
                inputs.forget()
                corrections = _corrected(prefix, seen, workers)

    def finish() -> QuantizationResult:
        with clock.stage("export"):
            simulation.settle()
            simulation.fit_biases()
            exported = export(ready.graph, simulation, _metadata(model, settings, ready, plan, protected))
        with clock.stage("verify"):
            checked = {n: torch.from_numpy(x) for n, x in ready.dataset.load(VERIFY_IMAGES).items()}
            held, verification = _contain(exported, settings, simulation, checked)
        for warning in verification.warnings:
            logger.warning("%s", warning)
        if output is not None:
            save_model(held.model, output)
        return QuantizationResult(
            model=held.model,
            output=Path(output) if output is not None else None,
            settings=settings,
            plan=plan,
            units=next((phases[p.stage] for p in method.passes if p.learn_rounding and p.stage in phases), ()),
            probe=tuple(probe),
            equalized=tuple(ready.equalized),
            sensitivities=tuple(sensitivities),
            protected=protected,
            parity=ready.parity,
            verification=verification,
            skipped=skipped,
            images=images,
            seconds=clock.seconds,
            origin=ready.dataset.origin,
            lapq=lapq,
            phases=phases,
            corrections=corrections,
            absorbed=tuple(ready.absorbed),
            allocation=allocation,
        )

    return workers.once(finish)


def _protected(
    ready: Prepared, simulation: Simulation, workers: Workers
) -> tuple[Simulation, list[Sensitivity], tuple[str, ...]]:
    """``simulation`` with the most sensitive tensors raised to 8 bits, all sensitivities, and the tensors' names."""
    settings, plan = ready.settings, simulation.plan
    sensitivities = workers.once(lambda: measure_sensitivity(simulation, ready.data))
    protected = tuple(s.name for s in sensitivities if s.bits < BYSTANDER_BITS)[: settings.protect]
    plan = dataclasses.replace(plan, activations=place(ready.graph, plan.layers, settings, frozenset(protected)))
    grids = workers.once(lambda: search_grids(ready.network, plan, ready.data, settings, protected, ready.ranging))
    raised = Simulation(ready.network, plan, simulation.activations | grids, simulation.weights, simulation.biases)
    return raised, sensitivities, protected


def _measured(ready: Prepared, budgets: Sequence[Budget], workers: Workers, report: Report | None) -> Costs:
    """Costs of every width that ``budgets`` offer."""

    def tell(done: int, total: int) -> None:
        if report is not None:
            report(Progress("allocate", done=done, total=total))

    offers: dict[str, dict[str, Collection[int]]] = {"weights": {}, "tensors": {}}
    for budget in budgets:
        budget.check()
        offers[budget.kind] |= {name: tuple(row) for name, row in budget.spent.items()}
    images = cost_images(ready.dataset)
    return workers.once(
        lambda: measure_costs(
            ready.network,
            ready.plan,
            images,
            ready.settings,
            layers=offers["weights"],
            tensors=offers["tensors"],
            report=tell,
            dataset=ready.ranging,
        )
    )


def _widened(ready: Prepared, allocation: Allocation) -> Prepared:
    """``ready`` with the widths that were allocated."""
    settings = with_rules(ready.settings, allocation)
    return dataclasses.replace(ready, settings=settings, plan=make_plan(ready.graph, settings))


def _allocated(
    model: onnx.ModelProto | str | Path, ready: Prepared, workers: Workers, clock: Clock
) -> tuple[Prepared, Allocation | None]:
    """``ready`` with a width for every layer where the settings ask for it."""

    def sizes() -> PackedSize:
        # The file's metadata will hold a rule for every layer.
        rules = tuple(BitRule(f"^{re.escape(x.name)}$", x.wbits, None) for x in ready.plan.quantized_layers)
        written = dataclasses.replace(ready.settings, bits=(*ready.settings.bits, *rules))
        metadata = _metadata(model, written, ready, ready.plan, ())
        return PackedSize.planned(ready.graph, ready.network, ready.plan, metadata)

    if not ready.settings.mixed:
        return ready, None
    with clock.stage("allocate"):
        budgets = budgets_of(ready.plan, ready.settings, sizes)
        allocation = allocate(budgets, _measured(ready, budgets, workers, clock.report))
    return _widened(ready, allocation), allocation


def _within_drop(
    model: onnx.ModelProto | str | Path,
    ready: Prepared,
    memory: int,
    workers: Workers,
    clock: Clock,
    output: str | Path | None,
    folder: str | Path | None,
    data: str | Path | Dataset,
    labels: str | Path | None,
) -> QuantizationResult:
    """The result of least average width that keeps ``max_drop``; every trial is a whole run but for what comes before it."""
    settings = ready.settings
    assert settings.max_drop is not None
    results: dict[float, QuantizationResult] = {}
    tensors = budgets_of(ready.plan, settings, lambda: PackedSize(0, {}))
    # A file calibrated on arrays does not say how images become inputs; prepare() has seen to it that the settings do.
    preprocess = settings.preprocess if ready.dataset.preprocess is None and holds_images(data) else None

    def budgets(average: float) -> tuple[Budget, ...]:
        return average_budget(ready.plan, settings, average, f"--max-drop {settings.max_drop:g}"), *tensors

    with clock.stage("allocate"):
        costs = _measured(ready, budgets(AVERAGES[-1]), workers, clock.report)
    possible = [a for a in AVERAGES if budgets(a)[0].smallest <= budgets(a)[0].limit]

    def trial(average: float) -> Trial:
        allocation = allocate(budgets(average), costs)
        part = Path(folder) / f"average_{average:g}" if folder is not None else None
        results[average] = _quantize(model, _widened(ready, allocation), allocation, memory, workers, clock, None, part)
        with clock.stage("validate"):
            found = validate(model, results[average].model, data, labels=labels, preprocess=preprocess, repeats=0)
        if len(results) == 1:
            tell_doubts(found)
        drop, labelled = measured_drop(found)
        logger.info("%.1f bits on average lose %.2f (%d images)", average, drop, found.images)
        return Trial(average, drop, labelled, found.images)

    trials = search(settings.max_drop, trial, possible)
    best = min(t.average for t in trials if t.drop <= settings.max_drop)
    if output is not None:
        workers.once(lambda: save_model(results[best].model, output))
    return dataclasses.replace(
        results[best],
        output=Path(output) if output is not None else None,
        trials=tuple(trials),
        seconds=clock.seconds,
    )


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


def _minimise_steps(simulation: Simulation, ready: Prepared, report: Report | None) -> tuple[Lapq, State]:
    """Outcome of the joint search for steps (:mod:`mrecg_onnx.learning.lapq`), and the grids it found."""

    def tell(done: int, total: int, loss: float) -> None:
        if report is not None:
            report(Progress("lapq", done=done, total=total, loss=loss))

    settings = ready.settings
    # Images that are read for the ranges need not be held.
    count = settings.lapq_images if ready.ranging is not None else max(settings.lapq_images, settings.range_images)
    outcome = minimise_steps(
        simulation,
        {name: torch.from_numpy(x) for name, x in ready.dataset.load(count).items()},
        images=settings.lapq_images,
        range_samples=settings.range_images,
        evaluations=settings.lapq_evaluations,
        report=tell,
        dataset=ready.ranging,
    )
    return outcome, simulation.state()


def _skipped(workers: Workers, *datasets: Dataset) -> tuple[str, ...]:
    """Images that any process could not read, with the reason, each once."""
    mine = [f"{path} ({reason})" for dataset in datasets for path, reason in dataset.skipped]
    return tuple(dict.fromkeys(entry for part in workers.gather(mine) for entry in part))


def _cache_budget(memory: int) -> int:
    """Bytes of ``memory`` that are left for cached activations beside what the process holds and the loop needs."""
    give_back()
    held = psutil.Process().memory_info().rss
    working = max(WORKING_SHARE * memory, min(SMALL_SHARE * memory, SMALL))
    return max(0, int(memory - working) - held)


def _same_run(ready: Prepared, protected: tuple[str, ...]) -> dict[str, Any]:
    """What has to be the same for finished units of an earlier run to be used.

    Decisions that a last digit may tip are in it, too: other threads or another device sum in another order.
    """
    images = hashlib.sha256(ready.dataset.fingerprint().encode())
    for name in sorted(ready.data):  # arrays prepared in another way may have the same names and sizes
        images.update(ready.data[name].contiguous().numpy().data)
    settings = {
        k: v for k, v in _kept_settings(ready.settings).items() if k not in {"device", "threads", "memory", "compile"}
    }
    return {
        "version": __version__,
        "model": digest(ready.original),
        "images": images.hexdigest(),
        "equalized": {e.stream.name: (e.alpha, e.bounded) for e in ready.equalized},
        "absorbed": [a.tensor for a in ready.absorbed if a.used],
        "protected": list(protected),
        **settings,
    }


def _prefix(simulation: Simulation, units: tuple[UnitPlan, ...], inputs: Inputs, run: _Run, phase: Phase) -> Prefix:
    return Prefix(
        simulation,
        units,
        inputs,
        run.pool,
        quantize_activations=phase.keep_quantized is not None,
        float_inputs=phase.float_inputs,
        input_scales=run.method.input_scales,
    )


def reconstruct(prefix: Prefix, run: _Run, iters: int, phase: Phase) -> list[UnitResult]:
    """Learn the units of ``prefix`` one after the other and write the outcome into its simulation."""
    settings, method, workers, report = run.settings, run.method, run.workers, run.report
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

        targets = prefix.targets(unit)
        kept = workers.once(lambda unit=unit, i=i: _kept(run, stage, i, unit, prefix))  # type: ignore[misc]
        if kept is not None:
            result, state = kept
            prefix.simulation.adopt(state)
        else:
            data = prefix.data(unit, targets, run.training, run.held_out)
            if weigh:
                data.gradients = prefix.gradients(unit, targets)
            result = solver_of(method)(
                unit,
                prefix.simulation,
                data,
                iters=steps,
                batch_size=settings.batch_size // workers.size,
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
                seed=settings.seed + i + SEED_STRIDE * workers.rank,
                clock=time.perf_counter,
                workers=workers,
                report=tell,
            )
            prefix.simulation.adopt(workers.once(lambda unit=unit: prefix.simulation.state(unit)))  # type: ignore[misc]
            if run.checkpoint is not None and workers.first:
                run.checkpoint.save(stage, i, prefix.simulation.state(unit), result)
            del data
        prefix.simulation.fit_biases()
        prefix.advance(unit, targets)
        del targets
        give_back()
        results.append(result)
        if report is not None:
            report(Progress(stage, unit.name, i + 1, len(prefix.units), steps, steps, result.loss, result))
    return results


def _kept(run: _Run, stage: str, number: int, unit: UnitPlan, prefix: Prefix) -> tuple[UnitResult, State] | None:
    """``unit`` as an earlier run left it; the first process asks, others may lie on machines without the folder."""
    if run.checkpoint is None:
        return None
    return run.checkpoint.load(stage, number, unit.layers, prefix.simulation.network.device)


def _contain(
    exported: Exported, settings: Settings, simulation: Simulation, data: dict[str, Tensor]
) -> tuple[Contained, Verification]:
    """The file's model for the target and in the container that the settings ask for, and its verification."""
    rules = load_target(settings.target)
    held = contained(retarget(exported.model, rules), settings.container, highest=rules.opset[1])
    return held, verify(exported, simulation, data, held=held, target=rules)


def _kept_settings(settings: Settings) -> dict[str, Any]:
    """Settings for the metadata; container and target, which ``convert`` changes, have entries of their own."""
    left_out = {"container"} | ({"target"} if settings.target == "ort" else set())
    return {name: value for name, value in settings.to_json().items() if name not in left_out}


def _metadata(
    model: onnx.ModelProto | str | Path, settings: Settings, ready: Prepared, plan: Plan, protected: tuple[str, ...]
) -> dict[str, str]:
    """Entries of metadata_props: who made the file, how, and what ``validate`` needs to check it."""
    entries = {
        VERSION_KEY: __version__,
        "mrecg_onnx.settings": json.dumps(_kept_settings(settings), separators=(",", ":")),
        "mrecg_onnx.units": json.dumps([list(u.layers) for u in plan.merged_units()], separators=(",", ":")),
        "mrecg_onnx.protected": json.dumps(list(protected)),
        INPUT_RANGES_KEY: ranges_entry(ready.data),
    }
    dataset = ready.dataset
    if dataset.preprocess is not None:
        entries[PREPROCESS_KEY] = json.dumps(dataset.preprocess.to_json(), separators=(",", ":"))
    if dataset.origin is not None:
        entries[CALIBRATION_KEY] = json.dumps(dataset.origin, separators=(",", ":"))
    source = source_sha256(model) if isinstance(model, str | Path) else None
    if source is not None:
        entries[SOURCE_KEY] = source
    return entries
