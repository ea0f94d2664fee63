"""The main job on one page: load, plan, equalize, calibrate, reconstruct, export, verify."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from mrecg_onnx import __version__
from mrecg_onnx.converters import check_writable, save_model
from mrecg_onnx.equalization import Equalized
from mrecg_onnx.export import export
from mrecg_onnx.images import Dataset
from mrecg_onnx.methods import METHODS, Method
from mrecg_onnx.placement import place
from mrecg_onnx.plan import BYSTANDER_BITS, Plan, UnitPlan
from mrecg_onnx.preparation import calibrate, merge_by, prepare, search_grids
from mrecg_onnx.progress import Clock, Progress, Report
from mrecg_onnx.reconstruction import LearningRates, Prefix, UnitResult, default_rates, reconstruct_unit
from mrecg_onnx.sensitivity import Sensitivity, measure_sensitivity
from mrecg_onnx.settings import Settings
from mrecg_onnx.simulation import Simulation
from mrecg_onnx.validation import PREPROCESS_KEY, SOURCE_KEY, source_sha256
from mrecg_onnx.verification import Verification, verify

__all__ = ["Progress", "QuantizationResult", "Report", "quantize"]

logger = logging.getLogger(__name__)

#: Images on which the exported file is compared with the simulation.
VERIFY_IMAGES = 256
#: A probing run shorter than this does not tell units apart.
MIN_PROBE = 50


@dataclass(frozen=True)
class QuantizationResult:
    """What :func:`quantize` made and measured.

    Attributes:
        model: the quantized model.
        output: where it was written, None if it was not.
        settings: the run's settings, with everything automatic resolved.
        plan: the plan that was carried out.
        units: outcome of every unit, in order.
        probe: outcome of the probing run's units, empty without one.
        equalized: decision for every stream.
        sensitivities: quantizers by how much each hurts alone; measured only with ``protect``.
        protected: quantizers raised to 8 bits.
        parity: relative error between ONNX Runtime and torch on the float model.
        verification: checks on the result.
        skipped: calibration images that could not be read.
        images: calibration images used.
        seconds: wall time by stage.
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

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary without the model itself."""
        return {
            "output": str(self.output) if self.output else None,
            "settings": self.settings.to_json(),
            "plan": self.plan.to_json(),
            "units": [dataclasses.asdict(u) for u in self.units],
            "probe": [dataclasses.asdict(u) for u in self.probe],
            "equalized": [dataclasses.asdict(e) for e in self.equalized],
            "sensitivities": [dataclasses.asdict(s) for s in self.sensitivities],
            "protected": list(self.protected),
            "parity": self.parity,
            "verification": dataclasses.asdict(self.verification),
            "skipped": list(self.skipped),
            "images": self.images,
            "seconds": self.seconds,
        }


def method_of(settings: Settings) -> Method:
    """The row of the table, with the base of ``mrecg`` and the drop of the settings put in."""
    row = METHODS[settings.method]
    if row.merge:
        row = dataclasses.replace(METHODS[settings.base], merge=True)
    if settings.drop is not None and row.keep_quantized is not None:
        row = dataclasses.replace(row, keep_quantized=settings.drop)
    return row


def quantize(
    model: onnx.ModelProto | str | Path,
    calib: str | Path | Dataset,
    settings: Settings | None = None,
    *,
    output: str | Path | None = None,
    report: Report | None = None,
) -> QuantizationResult:
    """Quantize a float ONNX model with learned rounding.

    Args:
        model: the float model; not changed.
        calib: folder of images, ``.npy``/``.npz`` file of ready inputs, or an open data set.
        settings: every choice; the defaults are those of the command line.
        output: where to write the result; it appears there whole or not at all.
        report: called as the work proceeds.

    Returns:
        The quantized model with everything measured on the way.

    Raises:
        MrecgError: a subclass says what is wrong: SettingsError, ModelError, ConversionError, DataError, ExportError.
    """
    settings = settings or Settings()
    clock = Clock(report)
    if output is not None:
        check_writable(output)
    ready = prepare(model, calib, settings, clock)
    settings, plan, network, data = ready.settings, ready.plan, ready.network, ready.data
    with clock.stage("calibrate"):
        simulation = calibrate(network, plan, data, settings)

    sensitivities: list[Sensitivity] = []
    protected: tuple[str, ...] = ()
    if settings.protect:
        with clock.stage("sensitivity"):
            sensitivities = measure_sensitivity(simulation, data)
            protected = tuple(s.name for s in sensitivities if s.bits < BYSTANDER_BITS)[: settings.protect]
            raised = place(ready.graph, plan.layers, settings, frozenset(protected))
            plan = dataclasses.replace(plan, activations=raised)
            grids = search_grids(network, plan, data, settings, protected)
            simulation = Simulation(network, plan, simulation.activations | grids, simulation.weights)

    method = method_of(settings)
    probe: list[UnitResult] = []
    if method.merge and settings.scheme == "loss":
        with clock.stage("probe"):
            iters = min(settings.iters, max(MIN_PROBE, round(settings.iters * settings.probe_fraction)))
            trial = Simulation(network, plan, dict(simulation.activations), dict(simulation.weights))
            probe = reconstruct(trial, plan.units, data, settings, method, iters, "probe", report)
            plan = merge_by(plan, settings, [u.final_loss for u in probe], "loss")
            simulation = Simulation(network, plan, simulation.activations, simulation.weights)
    results: list[UnitResult] = []
    if method.granularity != "none":
        with clock.stage("reconstruct"):
            results = reconstruct(
                simulation, plan.merged_units(), data, settings, method, settings.iters, "reconstruct", report
            )

    with clock.stage("export"):
        exported = export(ready.graph, simulation, _metadata(model, settings, ready.dataset, plan, protected))
    with clock.stage("verify"):
        verification = verify(exported, simulation, {n: x[:VERIFY_IMAGES] for n, x in data.items()})
    for warning in verification.warnings:
        logger.warning("%s", warning)
    if output is not None:
        save_model(exported.model, output)
    return QuantizationResult(
        model=exported.model,
        output=Path(output) if output is not None else None,
        settings=settings,
        plan=plan,
        units=tuple(results),
        probe=tuple(probe),
        equalized=tuple(ready.equalized),
        sensitivities=tuple(sensitivities),
        protected=protected,
        parity=ready.parity,
        verification=verification,
        skipped=tuple(f"{path} ({reason})" for path, reason in ready.dataset.skipped),
        images=len(next(iter(data.values()))),
        seconds=clock.seconds,
    )


def reconstruct(
    simulation: Simulation,
    units: tuple[UnitPlan, ...],
    data: dict[str, Tensor],
    settings: Settings,
    method: Method,
    iters: int,
    stage: str,
    report: Report | None,
) -> list[UnitResult]:
    """Learn ``units`` one after the other and write the outcome into ``simulation``."""
    base = default_rates(iters)
    rates = LearningRates(settings.lr_rounding or base.rounding, settings.lr_scale or base.scale)
    count = len(next(iter(data.values())))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed))
    held = round(count * settings.held_out)
    prefix = Prefix(
        simulation, units, data, batch_size=settings.batch_size, quantize_activations=method.keep_quantized is not None
    )
    results = []
    for i, unit in enumerate(units):

        def tell(iteration: int, loss: float, unit: UnitPlan = unit, i: int = i) -> None:
            if report is not None:
                report(Progress(stage, unit.name, i, len(units), iteration, iters, loss))

        targets = prefix.targets(unit)
        result = reconstruct_unit(
            unit,
            simulation,
            prefix.data(unit, targets, order[held:], order[:held]),
            iters=iters,
            batch_size=settings.batch_size,
            rates=rates,
            keep_quantized=method.keep_quantized,
            learn_scales=method.learn_scales,
            learn_bias=settings.learn_bias and method.learn_scales,
            rounding_weight=settings.rounding_weight,
            knee=settings.knee if settings.loss == "huber" else None,
            window=settings.window,
            seed=settings.seed + i,
            clock=time.perf_counter,
            report=tell,
        )
        prefix.advance(unit, targets)
        results.append(result)
        if report is not None:
            report(Progress(stage, unit.name, i + 1, len(units), iters, iters, result.loss, result))
    return results


def _metadata(
    model: onnx.ModelProto | str | Path, settings: Settings, dataset: Dataset, plan: Plan, protected: tuple[str, ...]
) -> dict[str, str]:
    """Entries of metadata_props: who made the file, how, and what ``validate`` needs to check it."""
    entries = {
        "mrecg_onnx.version": __version__,
        "mrecg_onnx.settings": json.dumps(settings.to_json(), separators=(",", ":")),
        "mrecg_onnx.units": json.dumps([list(u.layers) for u in plan.merged_units()], separators=(",", ":")),
        "mrecg_onnx.protected": json.dumps(list(protected)),
    }
    if dataset.preprocess is not None:
        entries[PREPROCESS_KEY] = json.dumps(dataset.preprocess.to_json(), separators=(",", ":"))
    source = source_sha256(model) if isinstance(model, str | Path) else None
    if source is not None:
        entries[SOURCE_KEY] = source
    return entries
