"""The main job on one page: load, plan, equalize, calibrate, merge, reconstruct, finish, export, verify."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import onnx

from mrecg_onnx.checking import Verification, checked_images, completed, verify
from mrecg_onnx.converters import claimed, save_model, takes
from mrecg_onnx.data import Data, Labels, Preprocess
from mrecg_onnx.finishing import FinishResult, finish
from mrecg_onnx.learning import Learner
from mrecg_onnx.machine import Run, full_precision, open_run
from mrecg_onnx.planning import merge_by
from mrecg_onnx.preparation import Calibrated, Prepared, calibrated, prepare
from mrecg_onnx.progress import Report, UnitResult
from mrecg_onnx.provenance import identity, metadata
from mrecg_onnx.results import QuantizationResult
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets import load_target
from mrecg_onnx.widths import Allocation, Judge, JudgedBy, choose_widths
from mrecg_onnx.writing import Contained, contained, export, retarget

__all__ = ["QuantizationResult", "quantize", "written"]

logger = logging.getLogger(__name__)


@takes(settings=Settings, preprocess=Preprocess)
@full_precision()
def quantize(
    model: onnx.ModelProto | str | Path,
    calib: Data,
    settings: Settings | None = None,
    *,
    output: str | Path | None = None,
    checkpoint: str | Path | None = None,
    data: Data | None = None,
    labels: Labels | None = None,
    metric: JudgedBy = None,
    progress: Report | None = None,
) -> QuantizationResult:
    """Quantize a float ONNX model with learned rounding.

    Under torchrun every process calls this with the same arguments: each reads its share of the images, gradients are
    averaged, the first process writes, and all return the same result.

    Args:
        model: the float model; not changed.
        calib: folder of images, ``.npy``/``.npz`` file of ready inputs, or arrays, tensors, PIL images or whatever hands them out
            (docs/data.md); the word ``"zeroq"`` makes images from the model's BatchNormalization statistics (a folder of that
            name is ``"./zeroq"``).
        settings: every choice; the defaults are those of the command line.
        output: where to write the result, over a file that is there: whole or not at all, and no other run makes it meanwhile.
        checkpoint: folder for finished work; the same call goes on with the units it finds there, another one starts from the
            equalization and the ranges that hold for it.
        data: images on which ``max_drop`` is measured, as :func:`mrecg_onnx.validate` takes them; needed with it.
        labels: labels for them, as for :func:`mrecg_onnx.validate`.
        metric: what ``max_drop`` counts, as for :func:`mrecg_onnx.validate`, in its own unit; points of top-1 by default.
        progress: called as the work proceeds (:class:`mrecg_onnx.Progress`).

    Returns:
        The quantized model with everything measured on the way.

    Raises:
        MrecgError: a subclass says what is wrong: SettingsError, ModelError, DataError, ExportError and others.
    """
    settings = settings or Settings()
    judge = Judge.of(model, settings, data, labels, metric)
    with open_run(settings.device, settings.memory, checkpoint, progress) as run, ExitStack() as held:
        if output is not None:
            run.once(lambda: held.enter_context(claimed(output)))
        ready = prepare(model, calib, settings, run, measured_on=judge.data if judge is not None else None)
        chosen = choose_widths(run, ready, judge, _made)
        if output is not None:
            run.once(lambda: save_model(chosen.made.model, output))
        where = Path(output) if output is not None else None
        took, made = run.once(lambda: run.clock.seconds), chosen.made
        return dataclasses.replace(made, output=where, source=model, calib=calib, trials=chosen.trials, seconds=took)


def _made(run: Run, ready: Prepared, allocation: Allocation | None) -> QuantizationResult:
    """One file of a prepared model whose widths are chosen."""
    start = calibrated(run, ready)
    learner = Learner(run, start.simulation, ready.dataset, ready.settings, partial(identity, ready, start.protected))
    probe = learner.probe()
    if probe:  # mixed reconstruction granularity: the neighbours whose losses oscillate most become one unit
        learner.merge(merge_by(learner.plan, ready.settings, [unit.final_loss for unit in probe], "loss"))
    learner.learn()
    learner.correct_biases()
    finished = finish(run, learner.simulation, ready.dataset, ready.settings, learner.same)
    return run.once(lambda: _result(run, ready, start, learner, probe, finished, allocation))


def _result(
    run: Run,
    ready: Prepared,
    start: Calibrated,
    learner: Learner,
    probe: tuple[UnitResult, ...],
    finished: FinishResult | None,
    allocation: Allocation | None,
) -> QuantizationResult:
    """The file, and what was found on the way to it; made in the first process, so that all return the same."""
    held, verification = written(run, ready, learner, metadata(ready, learner.plan, start.protected))
    for warning in verification.warnings:
        logger.warning("%s", warning)
    return QuantizationResult(
        model=held.model,
        output=None,
        settings=ready.settings,
        plan=learner.plan,
        units=learner.units,
        probe=probe,
        equalized=tuple(ready.equalized),
        sensitivities=start.sensitivities,
        protected=start.protected,
        parity=ready.parity,
        verification=verification,
        skipped=learner.skipped,
        images=learner.images or len(ready.dataset) - len(learner.skipped),
        seconds=run.clock.seconds,
        origin=ready.dataset.origin,
        lapq=start.lapq,
        phases=learner.phases,
        corrections=learner.corrections,
        finished=finished,
        absorbed=tuple(ready.absorbed),
        allocation=allocation,
        doubts=ready.dataset.doubts,
    )


def written(run: Run, ready: Prepared, learner: Learner, entries: dict[str, str]) -> tuple[Contained, Verification]:
    """The file for its target and in its container, and what checks on it said."""
    simulation, target = learner.simulation, load_target(ready.settings.target)
    with run.stage("export"):
        simulation.settle()
        simulation.fit_biases()
        exported = export(ready.graph, simulation, entries)
    with run.stage("verify"):
        checked = checked_images(ready.data, ready.dataset)
        aimed, zero_points = retarget(exported.model, target), target.typed_weights == "any"
        held = contained(aimed, ready.settings.container, highest=target.opset[1], zero_points=zero_points)
        return completed(held, ready.tail, checked), verify(exported, simulation, checked, held=held, target=target)
