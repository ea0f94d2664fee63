"""What every run does before anything is learned: load, plan, read the images, convert, equalize, search ranges."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from mrecg_onnx.calibrating import IMAGES, activation_grids, make_images, nearest_weights
from mrecg_onnx.converters import load_model, normalize
from mrecg_onnx.converters.errors import ConversionError, DataError, ModelError, SettingsError
from mrecg_onnx.converters.normalize import in_float32
from mrecg_onnx.converters.passes.opset import lower_opset, raise_opset, require_raisable
from mrecg_onnx.converters.versions import require_known_versions, runtime_versions
from mrecg_onnx.data import ZEROQ, Dataset, InputSpec, for_images, holds_images, open_calibration, require_numbers
from mrecg_onnx.machine import ALONE, Workers
from mrecg_onnx.methods import METHODS
from mrecg_onnx.network import Network, Simulation, bridged, rebridged
from mrecg_onnx.planning import (
    BYSTANDER_BITS,
    WHOLE_BATCH,
    WIDE_BITS,
    Plan,
    branch_narrow_reads,
    default_merges,
    groups_from_mask,
    join_units,
    mark_fallbacks,
    place,
    plan_layer_units,
    plan_layers,
    plan_units,
    read_scheme,
    select_eq4,
    select_peaks,
)
from mrecg_onnx.progress import Clock
from mrecg_onnx.quantizers import Grid, chosen_ranges, symmetric_eight
from mrecg_onnx.rewriting import (
    Absorbed,
    Equalized,
    allocate_activations,
    allocate_weights,
    apply_absorption,
    apply_scale,
    bound_channels,
    choose_absorptions,
    choose_scales,
    find_streams,
)
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets import load_target
from mrecg_onnx.writing import FOUR_BITS, WIDE_OPSET

__all__ = [
    "Prepared", "calibrate", "editable_graph", "load_planned", "make_plan", "merge_by", "pick_device", "prepare", "search_grids",
]  # fmt: skip

logger = logging.getLogger(__name__)

#: Ops whose presence says that activations are quantized; with them all that begin with QLinear.
QUANTIZED_OPS = frozenset({
    "ConvInteger", "DequantizeBFP", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul",
    "GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits",
    "QAttention", "QEmbedLayerNormalization", "QGemm", "QMoE", "QOrderedMatMul", "QuantizeBFP", "QuantizeLinear",
})  # fmt: skip
#: Calibration images used at most where the user does not say.
SAMPLES = 1024
#: Images on which the bridge is compared with ONNX Runtime.
PARITY_IMAGES = 8
#: Images held in full for what comes before reconstruction: parity, equalization, and ranges where no more are wanted for them.
#: Spread over the whole set.
HEAD = 64
#: Steps of a tensor, over those of what is joined into it, from which it is not quantized: two bits are lost.
COARSER = 4.0


@dataclass
class Prepared:
    """A model that is ready to be calibrated.

    Attributes:
        original: the user's model as loaded.
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
    """

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


def prepare(
    model: onnx.ModelProto | str | Path,
    calib: str | Path | Dataset,
    settings: Settings,
    clock: Clock,
    workers: Workers = ALONE,
    keep: str | Path | None = None,
    measured_on: str | Path | Dataset | None = None,
) -> Prepared:
    """Load, plan, read the images (or make them), convert and equalize.

    ``keep`` is a folder where made images are kept, ``measured_on`` the data that the result will be measured on: images in it
    have to become what the model is calibrated on.

    Raises:
        MrecgError: the model, the images or the settings do not do; the subclass says which.
    """
    device = pick_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with clock.stage("load"):
        original, graph, plan = load_planned(model, settings)
        inputs = graph_inputs(graph)
    settings = dataclasses.replace(settings, preprocess=for_images(settings.preprocess, model, calib, measured_on))
    # A path is a folder of that name; only the bare word is not.
    made = isinstance(calib, str) and calib == ZEROQ
    settings = dataclasses.replace(
        settings, samples=settings.samples or (IMAGES if made else SAMPLES), range_samples=settings.range_images
    )
    if made:
        with clock.stage(ZEROQ):
            calib = make_images(original, inputs, settings, device, workers=workers, report=clock.report, keep=keep)
    with clock.stage("load"):
        dataset = _open(calib, inputs, settings)
        if dataset.preprocess is None and holds_images(measured_on):
            require_numbers(
                settings.preprocess, inputs, f"{measured_on} holds images, and the model is calibrated on arrays"
            )
        arrays = dataset.load(HEAD)
        data = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if len(next(iter(data.values()))) < 2:
            raise DataError("calibration needs at least two images")
        settings = dataclasses.replace(settings, preprocess=dataset.preprocess or settings.preprocess)
        few = {name: array[:PARITY_IMAGES] for name, array in arrays.items()}
        loaded = graph

        def kept(made: ir.Model) -> set[str]:
            return _kept_apart(plan if made is loaded else make_plan(made, settings), settings)

        with _named(model):
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

    def rebuilt() -> Network:
        return rebridged(original, graph, few, network)[0]

    ready = Prepared(original, graph, plan, settings, dataset, data, network, parity)
    if min(settings.range_images, len(dataset)) > HEAD:
        ready.ranging = dataset
    if settings.equalize == "auto" and plan.activations:
        with clock.stage("equalize"):
            _equalize(ready, rebuilt, workers)
    if settings.absorb == "auto" and plan.activations:
        with clock.stage("absorb"):
            _absorb(ready, rebuilt, workers)
    if METHODS[settings.method].allocate and settings.channel_bits == "auto" and plan.activations:
        with clock.stage("allocate"):
            streams, images = find_streams(graph), settings.range_images
            seen = data if ready.ranging is None else ready.ranging
            folded = workers.once(
                lambda: allocate_activations(ready.network, streams, plan.activations, seen, images=images)
            )
            for one in folded:
                apply_scale(graph, one.stream, one.scale)
                ready.channel_grids |= one.grids
            ready.network = rebuilt()
    return ready


def _kept_apart(plan: Plan, settings: Settings) -> set[str]:
    """Tensors that are kept image by image: what goes from unit to unit, where a method goes that way."""
    if METHODS[settings.method].granularity == "none" and not settings.bias_correction:
        return set()
    return {name for unit in plan.units for name in unit.outputs}


def _equalize(ready: Prepared, rebuilt: Callable[[], Network], workers: Workers) -> None:
    """Rescale the channels of every stream as its own decision says."""
    graph, plan, bounded = ready.graph, ready.plan, ready.settings.relu6 == "auto"
    streams, layers = find_streams(graph, bounded=bounded), plan.quantized_layers if bounded else ()
    ready.equalized = workers.once(lambda: choose_scales(ready.network, streams, plan.activations, ready.data, layers))
    for entry in ready.equalized:
        if entry.alpha:
            apply_scale(graph, entry.stream, entry.scale)
        if entry.bounded:
            bound_channels(graph, entry.stream, entry.scale)
    if any(entry.alpha for entry in ready.equalized):
        ready.plan, ready.network = make_plan(graph, ready.settings), rebuilt()


def _absorb(ready: Prepared, rebuilt: Callable[[], Network], workers: Workers) -> None:
    """Move what channels never fall below into the biases behind them."""
    activations = ready.plan.activations
    ready.absorbed = workers.once(lambda: choose_absorptions(ready.network, ready.graph, activations, ready.data))
    for entry in ready.absorbed:
        if entry.used:
            apply_absorption(ready.graph, entry)
    if any(entry.used for entry in ready.absorbed):
        ready.network = rebuilt()


def load_planned(model: onnx.ModelProto | str | Path, settings: Settings) -> tuple[onnx.ModelProto, ir.Model, Plan]:
    """Read and plan a float model.

    Returns:
        The model as it is, but in float32 where it was in half precision, the graph that gets its Q/DQ, and the plan for it.

    Raises:
        MrecgError: the model or the settings do not do; what is wrong with a file has its path in the message.
    """
    original = load_model(model)
    with _named(model):
        original = in_float32(original)
        graph = editable_graph(original, settings)
        return original, graph, make_plan(graph, settings)


@contextlib.contextmanager
def _named(model: onnx.ModelProto | str | Path) -> Iterator[None]:
    """Put the path of ``model`` in front of what is said about it."""
    try:
        yield
    except (ModelError, ConversionError) as error:
        if isinstance(model, onnx.ModelProto):
            raise
        raise type(error)(f"{model}: {error}") from error


def editable_graph(original: onnx.ModelProto, settings: Settings, *, free: bool = True) -> ir.Model:
    """The normalized graph that gets its Q/DQ, with the branches that the settings want; with ``free`` for any batch.

    Raises:
        MrecgError: the model or the settings do not do.
    """
    graph = normalize(original, free=free)
    _check(graph)
    require_known_versions(original)
    _fit_opset(graph, settings)
    fallen = mark_fallbacks(graph)
    if fallen and settings.loss == "fisher":
        raise SettingsError(
            f"--loss fisher needs gradients from the output, and node '{next(iter(fallen))}' runs forward only; use --loss mse"
        )
    if settings.residual == "wide" and settings.abits < BYSTANDER_BITS:
        branch_narrow_reads(graph, settings)
    return graph


def _check(graph: ir.Model) -> None:
    """Refuse what can be loaded but not quantized.

    Raises:
        ModelError: it is quantized already, or an input or output is no tensor of numbers.
    """
    for node in graph.graph.all_nodes():
        if node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear"):
            raise ModelError(
                f"the model is quantized already (node '{node.name}', {node.op_type}): give the float model it was made from"
            )
    for kind, values in (("input", graph.graph.inputs), ("output", graph.graph.outputs)):
        for value in values:
            if isinstance(value.type, ir.SequenceType | ir.OptionalType):
                what = "a sequence" if isinstance(value.type, ir.SequenceType) else "optional"
                raise ModelError(f"{kind} '{value.name}' is {what}: export a model whose in- and outputs are tensors")
            if value.dtype == ir.DataType.STRING:
                raise ModelError(
                    f"{kind} '{value.name}' holds text: export the part of the model that works on numbers"
                )


def _fit_opset(graph: ir.Model, settings: Settings) -> None:
    """Bring ``graph`` between the lowest and highest opset of the target, and refuse what could not be written in the end.

    Raises:
        ModelError: a node is newer than the target's highest opset, or has no form in one that the settings need.
    """
    rules = load_target(settings.target)
    (low, high), opset = rules.opset, graph.opset_imports.get("", 0)
    if rules.name == "ort":  # the installed runtime is the limit
        high = max(high, runtime_versions()[0])
    try:
        lower_opset(graph, high)
    except ModelError as error:
        raise ModelError(
            f"{error}, the newest that target {rules.name} takes; export the model with opset {high} or older"
        ) from error
    needs = {f"target {rules.name}": low}
    if WIDE_BITS in {settings.abits, *(rule.abits for rule in settings.bits)}:
        needs[f"--abits {WIDE_BITS}"] = WIDE_OPSET
    if settings.container != "int8":
        needs[f"--container {settings.container}"] = FOUR_BITS
    for what, needed in needs.items():
        try:
            require_raisable(graph, needed)
        except ModelError as error:
            raise ModelError(f"{error} ({what} needs it)") from error
    raise_opset(graph, low)
    if graph.opset_imports.get("", 0) < opset:
        logger.info("opset %d is written as %d, the newest that target %s takes", opset, high, rules.name)


def _open(calib: str | Path | Dataset, inputs: list[InputSpec], settings: Settings) -> Dataset:
    if isinstance(calib, Dataset):
        return calib
    return open_calibration(calib, inputs, settings.preprocess, samples=settings.samples, seed=settings.seed)


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


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions on a GPU in float32, not in its 10-bit TF32: codes behind 8 bits would fall the other way, and checks fail."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def graph_inputs(model: ir.Model) -> list[InputSpec]:
    """What the graph wants to be fed."""
    specs = []
    for value in model.graph.inputs:
        shape = tuple(d if isinstance(d, int) else None for d in value.shape) if value.shape is not None else ()
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        specs.append(InputSpec(value.name or "", shape, np.dtype(dtype)))
    return specs


def make_plan(model: ir.Model, settings: Settings) -> Plan:
    """Plan everything that needs no data; merges of the scheme "loss" come after the probing run.

    Raises:
        ModelError: nothing to quantize.
        SettingsError: a pattern or the scheme file does not fit the model.
    """
    layers = plan_layers(model, settings)
    activations = place(model, layers, settings)
    method = METHODS[settings.method]
    if method.granularity == "layer":
        units = plan_layer_units(model, layers, settings.alpha)
    else:
        units = plan_units(model, layers, settings.alpha)
    units = join_units(model, units)
    plan = Plan(layers, activations, units, tuple((i,) for i in range(len(units))))
    if not method.merge or settings.scheme in {"none", "loss"}:
        return plan
    if settings.scheme == "modcap":
        return merge_by(plan, settings, [u.capacity for u in units], "modcap")
    return dataclasses.replace(plan, merges=read_scheme(settings.scheme, units), scheme=settings.scheme)


def merge_by(plan: Plan, settings: Settings, capacities: list[float], scheme: str) -> Plan:
    """Choose merges from capacities: module capacities or losses (Eq. 3 and 4)."""
    k, rising = settings.merges, scheme == "modcap"
    if k is None and (rising or settings.selection != "peak"):
        k = default_merges(len(capacities))
    # Counts of parameters do not fall behind a pooling.
    units = [dataclasses.replace(u, pools=False) for u in plan.units] if rising else list(plan.units)
    if settings.selection != "peak":
        relative = settings.selection == "relative"
        mask = select_eq4(capacities, k or 0, settings.penalty, relative=relative, units=units)
    else:
        mask = select_peaks(capacities, k, rising=rising, units=units)
    losses = tuple(capacities) if scheme == "loss" else None
    return dataclasses.replace(plan, merges=groups_from_mask(mask), scheme=scheme, losses=losses)


def search_grids(
    network: Network,
    plan: Plan,
    data: dict[str, Tensor],
    settings: Settings,
    only: Collection[str] | None = None,
    dataset: Dataset | None = None,
) -> dict[str, Grid]:
    """Activation grids by quantizer name, searched as the settings say; those in ``only``, or all.

    The images for ranges are read from ``dataset``, or are the first of ``data``.

    Where tensors of very different ranges (boxes and scores) are joined into an output of the graph the result has none: the
    runtime joins their values, as one scale would leave the smaller ones no codes. What else is joined has the grid of the
    result, which saves one of two roundings and a pass of the Concat.
    """
    row = chosen_ranges(settings)
    grids = activation_grids(
        network,
        plan.activations,
        data,
        images=settings.range_images,
        only=only,
        estimators=row.proposals,
        dataset=dataset,
    )
    if load_target(settings.target).symmetric:
        grids = {name: symmetric_eight(grid) for name, grid in grids.items()}
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
    network: Network, plan: Plan, data: dict[str, Tensor], settings: Settings, dataset: Dataset | None = None
) -> Simulation:
    """Nearest-rounded weights and searched activation ranges: where every method starts.

    ``dataset`` is as in :func:`search_grids`.
    """
    grids = search_grids(network, plan, data, settings, dataset=dataset)
    weights = nearest_weights(network, plan.quantized_layers, min_max=chosen_ranges(settings).min_max_weights)
    simulation = Simulation(network, plan, grids, weights)
    if METHODS[settings.method].allocate:
        each = settings.channel_bits != "off"
        seen = data if dataset is None else dataset
        state = allocate_weights(network, plan.layers, seen, images=settings.range_images, allocate=each)
        simulation.adopt(state)
    simulation.settle()
    simulation.fit_biases()
    return simulation
