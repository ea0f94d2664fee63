"""What every run does before anything is learned: load, plan, read the images, convert, equalize, search ranges."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from mrecg_onnx import __version__
from mrecg_onnx.calibrating import (
    IMAGES,
    Sensitivity,
    activation_grids,
    make_images,
    measure_sensitivity,
    off_ties,
    recalled_activation_grids,
    recalled_nearest_weights,
)
from mrecg_onnx.converters.deadline import limit_runs
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.converters.parity import run_onnx
from mrecg_onnx.converters.save import digest
from mrecg_onnx.data import ZEROQ, Data, Dataset, for_images, given, holds_images, open_calibration, require_numbers
from mrecg_onnx.finishing import Fitting
from mrecg_onnx.learning import Lapq, minimise_steps
from mrecg_onnx.machine import NOTHING_KEPT, Kept, Run, Workers, pick_device, use_threads
from mrecg_onnx.methods import METHODS
from mrecg_onnx.network import Network, Simulation, State, bridged, rebridged
from mrecg_onnx.planning import (
    BYSTANDER_BITS,
    WHOLE_BATCH,
    Plan,
    Tail,
    editable_graph,
    fallbacks,
    graph_inputs,
    load_planned,
    make_plan,
    named,
    place,
)
from mrecg_onnx.progress import Progress
from mrecg_onnx.quantizers import Grid, around_zero, chosen_ranges, range_name, symmetric_eight
from mrecg_onnx.rewriting import (
    Absorbed,
    Equalized,
    Stream,
    allocate_activations,
    allocate_weights,
    apply_absorption,
    apply_scale,
    bound_channels,
    choose_absorptions,
    choose_scales,
    find_streams,
    recalled_scales,
)
from mrecg_onnx.running import describe
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets import load_target

__all__ = ["Calibrated", "Prepared", "calibrate", "calibrated", "prepare", "search_grids"]

logger = logging.getLogger(__name__)

#: Images on which the bridge is compared with ONNX Runtime.
PARITY_IMAGES = 8
#: Images held in full for what comes before reconstruction: parity, equalization, and ranges where no more are wanted for them.
#: Spread over the whole set.
HEAD = 64
#: Folder of what is decided before anything is learned, in the folder of the run.
PREPARED = "prepared"
#: Steps of a tensor, over those of what is joined into it, from which it is not quantized: two bits are lost.
COARSER = 4.0


@dataclass
class Prepared:
    """A model that is ready to be calibrated.

    Attributes:
        source: the user's model as it was given.
        original: the same as loaded, without its tail.
        graph: normalized and equalized float graph: what gets its Q/DQ.
        plan: who is quantized.
        settings: with the preprocessing resolved.
        dataset: calibration images.
        data: some of them (:data:`HEAD`), spread over the set, as tensors [N, ...] on the CPU, by input name.
        network: the graph in torch.
        parity: relative error between ONNX Runtime and torch.
        equalized: decision for every stream.
        channel_grids: activation grids with widths a channel, by quantizer; the graph is rescaled for them.
        absorbed: decision for every tensor whose channels could be shifted.
        ranging: where images for ranges are read from when they are more than ``data`` holds; None: they are the first of it.
        kept: what earlier runs decided, and where this one's decisions go.
        tail: what lies behind that has no row for each image, None where there is nothing.
    """

    source: onnx.ModelProto | str | Path
    original: onnx.ModelProto
    graph: ir.Model
    plan: Plan
    settings: Settings
    dataset: Dataset
    data: dict[str, Tensor]
    network: Network
    parity: float
    equalized: list[Equalized] = field(default_factory=list)
    channel_grids: dict[str, Grid] = field(default_factory=dict)
    absorbed: list[Absorbed] = field(default_factory=list)
    ranging: Dataset | None = None
    kept: Kept = NOTHING_KEPT
    tail: Tail | None = None

    def image_digest(self) -> str:
        """SHA-256 of which images were chosen and of those in :attr:`data` as they are fed, in hexadecimal."""
        found = hashlib.sha256(self.dataset.fingerprint().encode())
        for name in sorted(self.data):  # arrays prepared in another way may have the same names and sizes
            found.update(self.data[name].contiguous().numpy().data)
        return found.hexdigest()

    @property
    def here(self) -> Kept:
        """:attr:`kept`, for what depends on the float network as it is now and on the images."""
        if self.kept.folder is None:
            return self.kept
        network = {"model": digest(ir.to_proto(self.graph)), "batch": self.network.batch}
        return self.kept.on({"images": self.image_digest(), **network})


@dataclass(frozen=True)
class Calibrated:
    """A network with every quantizer in place, before anything is learned.

    Attributes:
        simulation: with nearest rounding, ranges searched, sensitive tensors raised and steps minimised as the settings say.
        sensitivities: quantizers by how much each hurts alone; measured only with ``protect``.
        protected: quantizers raised to 8 bits.
        lapq: what the joint search for steps found, None without one.
    """

    simulation: Simulation
    sensitivities: tuple[Sensitivity, ...] = ()
    protected: tuple[str, ...] = ()
    lapq: Lapq | None = None


def prepare(
    model: onnx.ModelProto | str | Path,
    calib: Data,
    settings: Settings,
    run: Run,
    measured_on: Data | None = None,
) -> Prepared:
    """Load, plan, read the images (or make them), convert and equalize.

    ``measured_on`` are the data that the result will be measured on: images in it have to become what the model is calibrated
    on. Images that are made are kept in the run's folder.

    Raises:
        MrecgError: the model, the images or the settings do not do; the subclass says which.
    """
    device, workers = pick_device(settings.device), run.workers
    calib, measured_on = given(calib), None if measured_on is None else given(measured_on)
    if settings.batch_size % workers.size:
        raise SettingsError(
            f"--batch-size {settings.batch_size} cannot be divided among {workers.size} processes: use a multiple"
        )
    use_threads(settings.threads)
    limit_runs(settings.timeout)
    with run.stage("load"):
        run.require_file(model)
        original, graph, plan, tail = load_planned(model, settings)
        _require_gradients(graph, settings)
        inputs = graph_inputs(graph)
    settings = dataclasses.replace(settings, preprocess=for_images(settings.preprocess, model, calib, measured_on))
    # A path is a folder of that name; only the bare word is not.
    made = isinstance(calib, str) and calib == ZEROQ
    settings = dataclasses.replace(
        settings,
        samples=settings.samples or (IMAGES if made else settings.most_images),
        range_samples=settings.range_images,
    )
    fitting = Fitting(run, settings, made)
    fitting.require(graph, plan, inputs)
    if made:
        with run.stage(ZEROQ):
            calib = make_images(original, inputs, settings, device, workers=workers, report=run.report, keep=run.folder)
    with run.stage("load"):
        dataset = open_calibration(
            calib, inputs, settings.preprocess, samples=settings.samples, seed=settings.seed, memory=run.memory or None
        )
        run.require_same(dataset)
        if dataset.preprocess is None and holds_images(measured_on):
            require_numbers(
                settings.preprocess, inputs, f"{measured_on} holds images, and the model is calibrated on arrays"
            )
        fitting.require(graph, plan, inputs, dataset)
        dataset.require_values()
        arrays = dataset.head(HEAD, settings.samples, workers.size)
        data = {name: torch.from_numpy(array) for name, array in arrays.items()}
        dataset.require_taken(partial(run_onnx, original), describe(model))
        settings = dataclasses.replace(settings, preprocess=dataset.preprocess or settings.preprocess)
        few = {name: array[:PARITY_IMAGES] for name, array in arrays.items()}
        loaded = graph

        def kept(made: ir.Model) -> set[str]:
            return _kept_apart(plan if made is loaded else make_plan(made, settings), settings)

        with named(model):
            graph, network, parity = bridged(
                original,
                lambda free: loaded if free else editable_graph(original, settings, free=False),
                few,
                device,
                kept,
            )
            mixed = _kept_apart(make_plan(graph, settings), settings) - network.rows.keys()
            for value in (v for node in graph.graph for v in node.outputs if v.name in mixed):
                value.meta[WHOLE_BATCH] = True
            if mixed or graph is not loaded:
                plan = make_plan(graph, settings)
        fitting.require_tensors(graph, plan, network, data)

    def rebuilt() -> Network:
        return rebridged(original, graph, few, network)[0]

    ready = Prepared(model, original, graph, plan, settings, dataset, data, network, parity, kept=_kept(run), tail=tail)
    if min(settings.range_images, len(dataset)) > HEAD:
        ready.ranging = dataset
    if settings.equalize == "auto" and plan.activations:
        with run.stage("equalize"):
            _equalize(ready, rebuilt, workers)
    if settings.absorb == "auto" and plan.activations:
        with run.stage("absorb"):
            _absorb(ready, rebuilt, workers)
    if METHODS[settings.method].allocate and settings.channel_bits == "auto" and plan.activations:
        with run.stage("allocate"):
            _widen_channels(ready, rebuilt, workers)
    return ready


def _kept(run: Run) -> Kept:
    return NOTHING_KEPT if run.folder is None else Kept(run.folder / PREPARED, {"version": __version__})


def _require_gradients(graph: ir.Model, settings: Settings) -> None:
    fallen = fallbacks(graph)
    if fallen and settings.loss == "fisher":
        raise SettingsError(
            f"--loss fisher needs gradients from the output, and node '{next(iter(fallen))}' runs forward only; use --loss mse"
        )


def _kept_apart(plan: Plan, settings: Settings) -> set[str]:
    """Tensors that are kept image by image: what goes from unit to unit, where a method goes that way."""
    if METHODS[settings.method].granularity == "none" and not settings.bias_correction:
        return set()
    return {name for unit in plan.units for name in unit.outputs}


def _equalize(ready: Prepared, rebuilt: Callable[[], Network], workers: Workers) -> None:
    """Rescale the channels of every stream as its own decision says."""
    graph, plan, bounded = ready.graph, ready.plan, ready.settings.relu6 == "auto"
    streams, layers = find_streams(graph, bounded=bounded), plan.quantized_layers if bounded else ()

    def choose(some: list[Stream]) -> list[Equalized]:
        return choose_scales(ready.network, some, plan.activations, ready.data, layers)

    ready.equalized = workers.once(lambda: recalled_scales(ready.here, streams, plan.activations, layers, choose))
    for entry in ready.equalized:
        if entry.alpha:
            apply_scale(graph, entry.stream, entry.scale)
        if entry.bounded:
            bound_channels(graph, entry.stream, entry.scale)
    if any(entry.alpha for entry in ready.equalized):
        ready.plan, ready.network = make_plan(graph, ready.settings), rebuilt()


def _widen_channels(ready: Prepared, rebuilt: Callable[[], Network], workers: Workers) -> None:
    """Give channels of activations widths of their own, and rescale them for these."""
    images, seen = ready.settings.range_images, ready.data if ready.ranging is None else ready.ranging
    streams, activations = find_streams(ready.graph), ready.plan.activations
    folded = workers.once(lambda: allocate_activations(ready.network, streams, activations, seen, images=images))
    for one in folded:
        apply_scale(ready.graph, one.stream, one.scale)
        ready.channel_grids |= one.grids
    ready.network = rebuilt()


def _absorb(ready: Prepared, rebuilt: Callable[[], Network], workers: Workers) -> None:
    """Move what channels never fall below into the biases behind them."""
    activations = ready.plan.activations
    ready.absorbed = workers.once(lambda: choose_absorptions(ready.network, ready.graph, activations, ready.data))
    for entry in ready.absorbed:
        if entry.used:
            apply_absorption(ready.graph, entry)
    if any(entry.used for entry in ready.absorbed):
        ready.network = rebuilt()


def search_grids(
    network: Network,
    plan: Plan,
    data: dict[str, Tensor],
    settings: Settings,
    only: Collection[str] | None = None,
    dataset: Dataset | None = None,
    kept: Kept = NOTHING_KEPT,
) -> dict[str, Grid]:
    """Activation grids by quantizer name, searched as the settings say; those in ``only``, or all.

    The images for ranges are read from ``dataset``, or are the first of ``data``. Grids that ``kept`` has of this network and
    these images are not searched again.

    Where tensors of very different ranges (boxes and scores) are joined into an output of the graph the result has none: the
    runtime joins their values, as one scale would leave the smaller ones no codes. What else is joined has the grid of the
    result, which saves one of two roundings and a pass of the Concat.
    """

    def search(names: Collection[str]) -> dict[str, Grid]:
        images, estimators = settings.range_images, chosen_ranges(settings).proposals
        return activation_grids(
            network, chosen, data, images=images, only=names, estimators=estimators, dataset=dataset
        )

    name = range_name(settings)
    chosen = [quantizer for quantizer in plan.activations if only is None or quantizer.name in only]
    found_by = {"range": name, "range images": settings.range_images}
    found_by |= {"percentile": settings.percentile} if name == "percentile" else {}
    grids = recalled_activation_grids(kept.on(found_by), chosen, network.device, search)
    rule = {"zero": symmetric_eight, "by-sign": around_zero}.get(load_target(settings.target).zero_point)
    if rule is not None:
        grids = {name: rule(grid) for name, grid in grids.items()}
    grids = off_ties(grids, data, settings.preprocess)
    plans = {quantizer.name: quantizer for quantizer in plan.activations}
    for quantizer in reversed([q for q in plan.activations if q.name in grids]):
        joined = [grids[name].scale for name in quantizer.joins if name in grids]
        if quantizer.spare and any(bool(scale * COARSER < grids[quantizer.name].scale) for scale in joined):
            logger.info("tensors of very different ranges meet in '%s': they are joined in float", quantizer.name)
            del grids[quantizer.name]
            continue
        made = grids[quantizer.name]
        for name in (n for n in quantizer.copies if n in grids and grids[n].bits == made.bits):
            # A Relu or Clip in front is free where its bound has the code that it had.
            if plans[name].absorbs is None or bool(grids[name].zero_point == made.zero_point):
                grids[name] = made
    return grids


def calibrate(
    network: Network,
    plan: Plan,
    data: dict[str, Tensor],
    settings: Settings,
    dataset: Dataset | None = None,
    kept: Kept = NOTHING_KEPT,
) -> Simulation:
    """Nearest-rounded weights and searched activation ranges: where every method starts.

    ``dataset`` and ``kept`` are as in :func:`search_grids`.
    """
    grids = search_grids(network, plan, data, settings, dataset=dataset, kept=kept)
    whole = chosen_ranges(settings).min_max_weights
    weights = recalled_nearest_weights(kept, network, plan.quantized_layers, min_max=whole)
    simulation = Simulation(network, plan, grids, weights)
    if METHODS[settings.method].allocate:
        each = settings.channel_bits != "off"
        seen = data if dataset is None else dataset
        state = allocate_weights(network, plan.layers, seen, images=settings.range_images, allocate=each)
        simulation.adopt(state)
    simulation.settle()
    simulation.fit_biases()
    return simulation


def calibrated(run: Run, ready: Prepared) -> Calibrated:
    """Every quantizer in place: ranges, and what the settings want of them before anything is learned."""
    with run.stage("calibrate"):
        simulation = Simulation(ready.network, ready.plan)
        seen = ready.network, ready.plan, ready.data, ready.settings, ready.ranging
        simulation.adopt(run.once(lambda: calibrate(*seen, kept=ready.here).state()))
        simulation.activations.update(ready.channel_grids)
    start = Calibrated(simulation)
    if ready.settings.protect:
        with run.stage("sensitivity"):
            start = _protected(run, ready, simulation)
    if METHODS[ready.settings.method].joint_steps:
        with run.stage("lapq"):
            lapq, found = run.once(lambda: _minimised(run, ready, start.simulation))
            start.simulation.adopt(found)
            start = dataclasses.replace(start, lapq=lapq)
    return start


def _protected(run: Run, ready: Prepared, simulation: Simulation) -> Calibrated:
    """``simulation`` with the most sensitive tensors raised to 8 bits."""
    settings, plan = ready.settings, simulation.plan
    sensitivities = run.once(lambda: measure_sensitivity(simulation, ready.data))
    protected = tuple(s.name for s in sensitivities if s.bits < BYSTANDER_BITS)[: settings.protect]
    plan = dataclasses.replace(plan, activations=place(ready.graph, plan.layers, settings, frozenset(protected)))
    seen = ready.network, plan, ready.data, settings, protected, ready.ranging
    grids = run.once(lambda: search_grids(*seen, kept=ready.here))
    raised = Simulation(ready.network, plan, simulation.activations | grids, simulation.weights, simulation.biases)
    return Calibrated(raised, tuple(sensitivities), protected)


def _minimised(run: Run, ready: Prepared, simulation: Simulation) -> tuple[Lapq, State]:
    """Outcome of the joint search for steps (:mod:`mrecg_onnx.learning.lapq`), and the grids it found."""

    def heard(done: int, total: int, loss: float) -> None:
        if run.report is not None:
            run.report(Progress("lapq", done=done, total=total, loss=loss))

    settings = ready.settings
    # Images that are read for the ranges need not be held.
    count = settings.lapq_images if ready.ranging is not None else max(settings.lapq_images, settings.range_images)
    outcome = minimise_steps(
        simulation,
        {name: torch.from_numpy(x) for name, x in ready.dataset.load(count).items()},
        images=settings.lapq_images,
        range_samples=settings.range_images,
        evaluations=settings.lapq_evaluations,
        report=heard,
        dataset=ready.ranging,
        keep=run.cache_budget(),
    )
    return outcome, simulation.state()
