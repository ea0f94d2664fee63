"""What a unit is judged by, and that nothing worse than rounding to nearest is ever kept."""

from __future__ import annotations

import pytest
import torch
from helpers.learned import prefix_of, small
from helpers.stages import simulated, tensors

from mrecg_onnx.learning.judging import Judge
from mrecg_onnx.learning.losses import reconstruction_loss
from mrecg_onnx.network import QuantizedWeight, Simulation

COUNT = 12


@pytest.fixture
def judged():
    """The first unit of a network, its simulation, and a judge of it on the last four of its images."""
    stage = simulated(small(), tensors(small(), COUNT), wbits=2, abits=4)
    unit, prefix = stage.plan.units[0], prefix_of(stage)
    data = prefix.data(unit, prefix.targets(unit), torch.arange(8), torch.arange(8, COUNT))
    steps = stage.network.helpers(stage.network.part(unit.nodes), list(data.quantized))
    ones, squares = dict.fromkeys(unit.outputs, 1.0), dict.fromkeys(unit.outputs)
    judge = Judge(unit, steps, stage.simulation, data, 3, squares, ones, quantize_activations=True)
    return unit, stage.simulation, judge


def answers(simulation: Simulation, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a tensor is on the images that judge, quantized and in float."""
    data = tensors(small(), COUNT)
    made, wanted = (run(data, keep=[name])[name] for run in (simulation.run, simulation.network.run))
    return made[8:], wanted[8:]


def float_weight(simulation: Simulation, name: str) -> QuantizedWeight:
    """Codes that stand for the float weight, which no rounding comes near."""
    grid = simulation.weights[name].grid
    scale, zero = grid.along(4)
    return QuantizedWeight(simulation.network.step(name).module.weight.detach() / scale + zero, grid)


def test_loss_is_the_mean_over_held_out_images_whatever_the_batch(judged):
    unit, simulation, judge = judged
    made, wanted = answers(simulation, unit.outputs[0])
    assert judge.nearest == pytest.approx(float(reconstruction_loss(made, wanted)), rel=1e-2)


def test_what_is_better_is_kept(judged):
    unit, simulation, judge = judged
    (name,) = unit.layers
    better = simulation.weights[name] = float_weight(simulation, name)
    offered = judge.offer()
    loss, kept = judge.choose()
    assert loss == offered
    assert kept == "learned"
    assert loss < judge.nearest
    assert simulation.weights[name] is better


def test_what_is_worse_is_put_back_with_its_bias(judged):
    unit, simulation, judge = judged
    (name,) = unit.layers
    before = simulation.state()
    scaled = {n: type(g)(3 * g.scale, g.zero_point, g.bits) for n, g in simulation.activations.items()}
    simulation.activations.update(scaled)
    simulation.weights[name] = QuantizedWeight(torch.zeros_like(before.weights[name].codes), before.weights[name].grid)
    simulation.biases[name] = torch.full_like(simulation.network.step(name).module.bias, 5.0)
    offered = judge.offer()
    loss, kept = judge.choose()
    assert loss == offered
    assert kept == "nearest"
    assert loss > judge.nearest
    assert simulation.state() == before


def test_what_is_as_good_is_not_kept(judged):
    _, _, judge = judged
    assert judge.offer() == judge.nearest
    assert judge.choose() == (judge.nearest, "nearest")


def test_the_best_that_was_offered_is_kept(judged):
    unit, simulation, judge = judged
    (name,) = unit.layers
    best = simulation.weights[name] = float_weight(simulation, name)
    first = judge.offer()
    simulation.weights[name] = QuantizedWeight(torch.zeros_like(best.codes), best.grid)
    assert judge.offer() > first
    assert judge.choose() == (first, "learned")
    assert simulation.weights[name] is best
