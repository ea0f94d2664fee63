"""What each quantizer costs at each width: the task loss with it alone quantized and all else float.

Weights of few bits are learned for a few iterations first, where the method learns: rounded to nearest, two bits look hopeless
that reconstruction brings back, and the order of layers is another one. A layer is learned alone, on its float inputs, to what it
answered in float (behind the Relu or Clip that follows); the loss is then measured on other images.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mrecg_onnx.calibrating import nearest_weights, proposed_grids, sample_activations
from mrecg_onnx.data import Dataset
from mrecg_onnx.learning import UnitData, default_rates, reconstruct_unit
from mrecg_onnx.machine import Store
from mrecg_onnx.measures import OutputScales, output_sums, task_loss, with_float_outputs
from mrecg_onnx.methods import METHODS
from mrecg_onnx.network import Network, Simulation, Step, WeightHook, advance, whole_batches
from mrecg_onnx.planning import LayerPlan, Plan, UnitPlan
from mrecg_onnx.progress import tell
from mrecg_onnx.quantizers import chosen_ranges, fake_quantize
from mrecg_onnx.settings import Settings

__all__ = ["WIDTHS", "Costs", "cost_images", "measure_costs"]

#: Widths on offer.
WIDTHS = (2, 3, 4, 5, 6, 7, 8)
#: Images on which the loss is measured, and further ones on which rounding is learned.
IMAGES, LEARNING_IMAGES = 32, 64
#: Widths whose rounding is learned first: above them nearest rounding costs next to nothing. Iterations, samples an iteration.
LEARNED, ITERS, BATCH = (2, 3, 4), 40, 16
#: Fewer images than this teach nothing that holds for others.
LEAST_IMAGES = 8


@dataclass
class Costs:
    """Task loss by name and width: of layers' weights, of tensors that layers read."""

    weights: dict[str, dict[int, float]] = field(default_factory=dict)
    tensors: dict[str, dict[int, float]] = field(default_factory=dict)


def cost_images(dataset: Dataset) -> dict[str, Tensor]:
    """The calibration inputs that :func:`measure_costs` takes, [N, ...] by name."""
    return {name: torch.from_numpy(array) for name, array in dataset.load(IMAGES + LEARNING_IMAGES).items()}


def measure_costs(
    network: Network,
    plan: Plan,
    data: Mapping[str, Tensor],
    settings: Settings,
    *,
    layers: Mapping[str, Collection[int]],
    tensors: Mapping[str, Collection[int]],
    dataset: Dataset | None = None,
) -> Costs:
    """Task loss with one layer's weights, or one tensor, quantized and all else float.

    The network is walked once; from each point on the rest of it is run for every width.

    Args:
        network: the float network.
        plan: describes layers and quantizers.
        data: calibration inputs by name, [N, ...]; the first :data:`IMAGES` judge, those behind them teach.
        settings: method (does it learn?), ranges and the loop's settings.
        layers: widths wanted by layer name.
        tensors: widths wanted by name of the quantizer.
        dataset: where the images for ranges are read from; None: they are the first of ``data``.
    """
    judges = {n: x[:IMAGES] for n, x in data.items()}
    teachers = {n: x[IMAGES : IMAGES + LEARNING_IMAGES] for n, x in data.items()}
    method = METHODS[settings.method]
    learns = method.granularity != "none" and method.solver == "gradient"
    teaches = learns and len(next(iter(teachers.values()))) >= LEAST_IMAGES
    quantizers = {q.name: q for q in plan.activations if q.name in tensors}
    seen = data if dataset is None else dataset
    samplers = sample_activations(network, list(quantizers.values()), seen, images=settings.range_images)
    estimators = chosen_ranges(settings).proposals
    found, done, total = Costs(), 0, len(layers) + len(quantizers)

    def count() -> None:
        nonlocal done
        done += 1
        tell(done, total, "layers and tensors")

    def of_tensor(live: Mapping[str, Tensor], rest: Sequence[Step], name: str) -> None:
        floats = {} if name in quantizers[name].outputs else {name: live[name]}
        found.tensors[name] = {
            width: min(
                loss({**live, name: fake_quantize(live[name], grid)}, rest, floats=floats)
                for grid in proposed_grids(samplers[name], width, estimators)
            )
            for width in tensors[name]
        }
        count()

    def loss(
        live: Mapping[str, Tensor],
        rest: Sequence[Step],
        weight: WeightHook | None = None,
        floats: Mapping[str, Tensor] | None = None,
    ) -> float:
        with torch.no_grad():
            outputs = with_float_outputs(network.run(live, rest, weight=weight), floats or {})
            return float(task_loss(outputs, reference, scales))

    with torch.no_grad():
        live = next(whole_batches(judges, IMAGES, network))
        teaching = next(whole_batches(teachers, LEARNING_IMAGES, network)) if teaches else {}
        reference = network.run(live)
    scales = OutputScales.of(output_sums(reference, reference), reference, live)
    for name in (n for n in live if n in quantizers):
        of_tensor(live, network.steps, name)
    for i, step in enumerate(network.steps):
        rest = network.steps[i:]
        if step.node in layers:
            layer = plan.layer(step.node)
            unit = _unit(network, layer) if teaches else None
            taught = _unit_data(network, unit, teaching) if unit is not None else None
            costs = {}
            for width in layers[step.node]:
                alone = _nearest(network, plan, layer, width)
                costs[width] = loss(live, rest, alone.weight_hook({layer.name}))
                if taught is not None and unit is not None and width in LEARNED:
                    _learn(alone, unit, taught, settings)
                    costs[width] = min(costs[width], loss(live, rest, alone.weight_hook({layer.name})))
            found.weights[step.node] = costs
            count()
        with torch.no_grad():
            live = advance(network, live, step, rest[1:])
            teaching = advance(network, teaching, step, rest[1:]) if teaching else {}
        for name in (n for n in step.outputs if n in quantizers and n in live):
            of_tensor(live, rest[1:], name)
    return found


def _nearest(network: Network, plan: Plan, layer: LayerPlan, width: int) -> Simulation:
    """One layer rounded to nearest, all else float."""
    return Simulation(network, plan, {}, nearest_weights(network, [replace(layer, wbits=width)]), {})


def _unit(network: Network, layer: LayerPlan) -> UnitPlan:
    """A layer with the Relu or Clip that alone reads what it makes."""
    nodes, made = [layer.name], layer.output
    readers = [step for step in network.steps if made in step.arguments]
    if len(readers) == 1 and readers[0].op in {"Relu", "Clip"} and made not in network.outputs:
        nodes.append(readers[0].node)
        made = readers[0].outputs[0]
    return UnitPlan(layer.name, tuple(nodes), (layer.name,), (layer.input,), (made,), 0.0)


def _unit_data(network: Network, unit: UnitPlan, live: Mapping[str, Tensor]) -> UnitData | None:
    """Float inputs and outputs of ``unit``; None where its input is no stack of samples."""
    steps = network.helpers(network.part(unit.nodes), unit.inputs)
    with torch.no_grad():
        made = network.run({n: live[n] for n in unit.inputs}, steps, keep=unit.outputs)
    rows = {len(x) if x.dim() else 0 for x in (*made.values(), *(live[n] for n in unit.inputs))}
    if len(rows) != 1 or any(not _by_image(network, n) for n in (*unit.inputs, *made)):
        return None
    inputs = {n: Store.of(live[n]) for n in unit.inputs}
    targets = {n: Store.of(x) for n, x in made.items()}
    return UnitData(inputs, inputs, targets, torch.arange(rows.pop()), torch.empty(0, dtype=torch.long))


def _by_image(network: Network, name: str) -> bool:
    """Whether a tensor has a row an image, as far as is known."""
    return network.rows.get(name, None if network.batch else 1) == 1


def _learn(simulation: Simulation, unit: UnitPlan, data: UnitData, settings: Settings) -> None:
    """Learn the rounding of ``unit``'s one layer for a few iterations, in place."""
    method = METHODS[settings.method]
    reconstruct_unit(
        unit,
        simulation,
        data,
        iters=ITERS,
        batch_size=BATCH,
        rates=default_rates(ITERS),
        keep_quantized=None,
        learn_scales=False,
        learn_weight_scales=settings.learn_weight_scales,
        learn_bias=settings.learn_bias and method.learn_bias,
        rounding_weight=settings.rounding_weight,
        knee=settings.knee if settings.loss == "huber" else None,
        window=settings.window,
        seed=settings.seed,
        clock=time.perf_counter,
        rounding=method.rounding if settings.rounding == "auto" else settings.rounding,
    )
