"""The main job on one page: load, plan, equalize, calibrate, reconstruct, export, verify."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from mrecg_onnx import __version__
from mrecg_onnx.calibration import activation_grids, nearest_weights
from mrecg_onnx.converters import check_parity, check_writable, load_model, normalize, save_model, to_torch
from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.equalization import Equalized, apply_scale, choose_scales, find_streams
from mrecg_onnx.export import export
from mrecg_onnx.granularity import default_merges, groups_from_mask, read_scheme, select_eq4, select_peaks
from mrecg_onnx.images import Dataset, InputSpec, open_calibration
from mrecg_onnx.methods import METHODS, Method
from mrecg_onnx.network import Network
from mrecg_onnx.placement import place, plan_layers
from mrecg_onnx.plan import BYSTANDER_BITS, Plan, UnitPlan
from mrecg_onnx.reconstruction import LearningRates, Prefix, UnitResult, default_rates, reconstruct_unit
from mrecg_onnx.sensitivity import Sensitivity, measure_sensitivity
from mrecg_onnx.settings import Settings
from mrecg_onnx.simulation import Simulation
from mrecg_onnx.units import plan_layer_units, plan_units
from mrecg_onnx.validation import PREPROCESS_KEY, SOURCE_KEY, source_sha256
from mrecg_onnx.verification import Verification, verify

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Progress", "QuantizationResult", "Report", "make_plan", "quantize"]

logger = logging.getLogger(__name__)

#: Images on which the bridge is compared with ONNX Runtime, and on which the exported file is.
PARITY_IMAGES, VERIFY_IMAGES = 8, 256
#: A probing run shorter than this does not tell units apart.
MIN_PROBE = 50
#: Rescaling in float32 moves the output of the float network by rounding alone.
EQUALIZED_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        stage: "load", "plan", "equalize", "calibrate", "sensitivity", "probe", "reconstruct", "export" or "verify".
        unit: name of the unit at work, "" in other stages.
        done: units (or other steps) finished.
        total: how many there are.
        iteration: iteration within the unit.
        iters: iterations a unit.
        loss: last training loss, None where there is none yet.
        result: outcome of a unit that has just been finished.
    """

    stage: str
    unit: str = ""
    done: int = 0
    total: int = 0
    iteration: int = 0
    iters: int = 0
    loss: float | None = None
    result: UnitResult | None = None


Report = Callable[[Progress], None]


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


class _Clock:
    """Wall time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, report: Report | None) -> Iterator[None]:
        if report is not None:
            report(Progress(name))
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def pick_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu" or "cuda".

    Raises:
        SettingsError: CUDA is asked for and torch sees no device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    return torch.device(name)


def graph_inputs(model: ir.Model) -> list[InputSpec]:
    """What the graph wants to be fed."""
    specs = []
    for value in model.graph.inputs:
        shape = tuple(d if isinstance(d, int) else None for d in value.shape) if value.shape is not None else ()
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        specs.append(InputSpec(value.name or "", shape, np.dtype(dtype)))
    return specs


def make_plan(model: ir.Model, settings: Settings, protected: frozenset[str] = frozenset()) -> Plan:
    """Plan everything that needs no data; merges of the scheme "loss" come after the probing run.

    Raises:
        ModelError: nothing to quantize.
        SettingsError: a pattern or the scheme file does not fit the model.
    """
    layers = plan_layers(model, settings)
    activations = place(model, layers, settings, protected)
    method = METHODS[settings.method]
    if method.granularity == "layer":
        units = plan_layer_units(model, layers, settings.alpha)
    else:
        units = plan_units(model, layers, settings.alpha)
    plan = Plan(layers, activations, units, tuple((i,) for i in range(len(units))))
    if not method.merge or settings.scheme in {"none", "loss"}:
        return plan
    if settings.scheme == "modcap":
        return _merge_by(plan, settings, [u.capacity for u in units], "modcap")
    return dataclasses.replace(plan, merges=read_scheme(settings.scheme, units), scheme=settings.scheme)


def _merge_by(plan: Plan, settings: Settings, capacities: list[float], scheme: str) -> Plan:
    """Choose merges from capacities: module capacities or losses (Eq. 3 and 4)."""
    k = settings.merges
    if settings.selection == "eq4":
        mask = select_eq4(
            capacities, default_merges(len(capacities)) if k is None else k, settings.penalty, units=plan.units
        )
    else:
        rising = scheme == "modcap"
        if rising and k is None:
            k = default_merges(len(capacities))
        mask = select_peaks(capacities, k, rising=rising, units=plan.units)
    losses = tuple(capacities) if scheme == "loss" else None
    return dataclasses.replace(plan, merges=groups_from_mask(mask), scheme=scheme, losses=losses)


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
    clock = _Clock()
    device = pick_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if output is not None:
        check_writable(output)

    with clock.stage("load", report):
        original = load_model(model)
        graph = normalize(original)
        plan = make_plan(graph, settings)
        dataset = (
            calib
            if isinstance(calib, Dataset)
            else open_calibration(
                calib, graph_inputs(graph), settings.preprocess, samples=settings.samples, seed=settings.seed
            )
        )
        arrays = dataset.load()
        data = {name: torch.from_numpy(array) for name, array in arrays.items()}
        count = len(next(iter(data.values())))
        if count < 2:
            raise DataError("calibration needs at least two images")
        settings = dataclasses.replace(settings, preprocess=dataset.preprocess or settings.preprocess)
        module = to_torch(graph)
        parity = check_parity(original, module, {n: a[:PARITY_IMAGES] for n, a in arrays.items()})
        network = Network(module, device)

    equalized: list[Equalized] = []
    if settings.equalize == "auto" and plan.activations:
        with clock.stage("equalize", report):
            equalized = choose_scales(network, find_streams(graph), plan.activations, data)
            if any(e.alpha for e in equalized):
                for entry in equalized:
                    if entry.alpha:
                        apply_scale(graph, entry.stream, entry.scale)
                module = to_torch(graph)
                check_parity(original, module, {n: a[:PARITY_IMAGES] for n, a in arrays.items()}, EQUALIZED_TOLERANCE)
                network = Network(module, device)

    with clock.stage("calibrate", report):
        simulation = calibrate(network, plan, data, settings)

    sensitivities: list[Sensitivity] = []
    protected: tuple[str, ...] = ()
    if settings.protect:
        with clock.stage("sensitivity", report):
            sensitivities = measure_sensitivity(simulation, data)
            protected = tuple(s.name for s in sensitivities if s.bits < BYSTANDER_BITS)[: settings.protect]
            raised = place(graph, plan.layers, settings, frozenset(protected))
            plan = dataclasses.replace(plan, activations=raised)
            grids = activation_grids(network, raised, data, images=settings.range_samples, only=protected)
            simulation = Simulation(network, plan, simulation.activations | grids, simulation.weights)

    method = method_of(settings)
    probe: list[UnitResult] = []
    if method.merge and settings.scheme == "loss":
        with clock.stage("probe", report):
            iters = min(settings.iters, max(MIN_PROBE, round(settings.iters * settings.probe_fraction)))
            trial = Simulation(network, plan, dict(simulation.activations), dict(simulation.weights))
            probe = reconstruct(trial, plan.units, data, settings, method, iters, "probe", report)
            plan = _merge_by(plan, settings, [u.final_loss for u in probe], "loss")
            simulation = Simulation(network, plan, simulation.activations, simulation.weights)
    results: list[UnitResult] = []
    if method.granularity != "none":
        with clock.stage("reconstruct", report):
            results = reconstruct(
                simulation, plan.merged_units(), data, settings, method, settings.iters, "reconstruct", report
            )

    with clock.stage("export", report):
        exported = export(graph, simulation, _metadata(model, settings, dataset, plan, protected))
    with clock.stage("verify", report):
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
        equalized=tuple(equalized),
        sensitivities=tuple(sensitivities),
        protected=protected,
        parity=parity,
        verification=verification,
        skipped=tuple(f"{path} ({reason})" for path, reason in dataset.skipped),
        images=count,
        seconds=clock.seconds,
    )


def calibrate(network: Network, plan: Plan, data: dict[str, Tensor], settings: Settings) -> Simulation:
    """Nearest-rounded weights and searched activation ranges: where every method starts."""
    grids = activation_grids(network, plan.activations, data, images=settings.range_samples)
    return Simulation(network, plan, grids, nearest_weights(network, plan.quantized_layers))


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
