"""The simulation: values, biases and scales are those that the file computes with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.architectures import Graph, conv_clip, conv_relu, conv_transpose
from helpers.stages import simulated, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from mrecg_onnx.network import QuantizedWeight, Simulation, State, bias_scale
from mrecg_onnx.network.simulation import BIAS_MAX
from mrecg_onnx.quantizers import Grid, fake_quantize, quantize_codes, search_range


def grid(scale, zero_point=0.0, bits: int = 4, axis: int | None = None, *, symmetric: bool = False) -> Grid:
    return Grid(torch.tensor(scale), torch.tensor(zero_point), bits, axis, symmetric)


def attention():
    """Softmax between two layers, and once without a quantizer behind: as output."""
    g = Graph(opset=13)
    x = g.conv(g.input(4, size=6), 4, 4, "conv1")
    x = g.op("Softmax", [x], "softmax", axis=-1)
    g.conv(x, 4, 4, "conv2", output="output")
    return g.model()


# --- weights -----------------------------------------------------------------------------------------------------


def test_codes_stand_for_their_distance_from_the_zero_point_in_steps_of_the_channel():
    weight = QuantizedWeight(torch.tensor([[0.0, 3.0, 15.0], [2.0, 5.0, 9.0]]), grid([0.5, 2.0], [3.0, 5.0], axis=0))
    assert weight.dequantize().tolist() == [[-1.5, 0.0, 6.0], [-6.0, 0.0, 8.0]]


def test_a_coarser_weight_has_the_nearest_codes_on_the_wider_steps_and_the_same_zero_points():
    fine = QuantizedWeight(torch.tensor([[0.0, 4.0, 15.0], [0.0, 4.0, 15.0]]), grid([0.1, 0.1], [4.0, 4.0], axis=0))
    coarse = fine.coarser(torch.tensor([0.25, 0.05]))
    torch.testing.assert_close(coarse.grid.scale, torch.tensor([0.25, 0.1]))
    # -4, 0 and 11 steps of 0.1 are -1.6, 0 and 4.4 steps of 0.25; the second channel keeps its scale and its codes.
    assert coarse.codes.tolist() == [[2.0, 4.0, 8.0], [0.0, 4.0, 15.0]]


def test_bias_scale_is_the_product_of_the_scales_and_repeated_for_each_group_of_a_transposed_convolution():
    layer = simulated(conv_relu()).plan.layers[0]
    weight = grid([0.5, 2.0], [0.0, 0.0], axis=0)
    assert bias_scale(torch.tensor(0.25), weight, layer).tolist() == [0.125, 0.5]
    assert bias_scale(torch.tensor(0.25, dtype=torch.float64), weight, layer).dtype == torch.float32
    transposed = replace(layer, op="ConvTranspose", groups=3)
    assert bias_scale(torch.tensor(0.25), weight, transposed).tolist() == [0.125, 0.5] * 3
    assert bias_scale(torch.tensor(0.25), weight, replace(layer, op="ConvTranspose", groups=1)).shape == (2,)


# --- biases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [conv_relu, conv_transpose])
def test_bias_is_rounded_to_the_int32_steps_of_the_file(build):
    simulation = simulated(build(), wbits=2, abits=2, first_last_bits=2).simulation
    hook = simulation.weight_hook()
    for layer in simulation.plan.quantized_layers:
        step = simulation.network.step(layer.name)
        own = step.module.bias.detach()
        unit = simulation.input_grid(layer).scale * simulation.weights[layer.name].grid.scale
        unit = unit.repeat(layer.bias_copies).double()
        weight, bias = hook(step)
        expected = (torch.round(own.double() / unit) * unit).float()
        torch.testing.assert_close(bias, expected)
        assert not torch.equal(bias, own)
        assert float((bias - own).abs().max()) <= 0.5001 * float(unit.max())
        assert torch.equal(weight, simulation.weights[layer.name].dequantize())


def test_large_bias_is_rounded_in_double_precision():
    """Codes beyond 2^24 are no float32: rounded there they would be off by several steps."""
    stage = simulated(conv_relu())
    layer = stage.plan.quantized_layers[0]
    step = stage.network.step(layer.name)
    unit = (stage.simulation.input_grid(layer).scale * stage.simulation.weights[layer.name].grid.scale).double()
    wanted = unit * (2**29 + 37)
    stage.simulation.biases[layer.name] = wanted.float()
    found = stage.simulation.weight_hook()(step)[1]
    exact = torch.round(wanted.float().double() / unit) * unit
    torch.testing.assert_close(found, exact.float(), rtol=2e-7, atol=0)


def test_learned_bias_is_taken_and_float_ones_only_where_asked_for_or_the_input_is_float():
    stage = simulated(conv_relu(), wbits=2, abits=2, first_last_bits=2)
    simulation, layer = stage.simulation, stage.plan.quantized_layers[0]
    step = stage.network.step(layer.name)
    own = step.module.bias.detach()
    assert torch.equal(simulation.bias(step), own)
    simulation.biases[layer.name] = own + 0.123
    assert torch.equal(simulation.bias(step), own + 0.123)
    assert torch.equal(simulation.weight_hook(integer_bias=False)(step)[1], own + 0.123)
    assert not torch.equal(simulation.weight_hook()(step)[1], own + 0.123)
    simulation.activations.clear()
    assert simulation.input_grid(layer) is None
    assert torch.equal(simulation.weight_hook()(step)[1], own + 0.123)


def test_only_the_layers_asked_for_are_quantized():
    simulation = simulated(conv_clip(), wbits=2).simulation
    first, second = (simulation.network.step(name) for name in ("conv", "conv2"))
    hook = simulation.weight_hook({second.node})
    assert hook(first)[0] is first.module.weight
    assert hook(first)[1] is first.module.bias
    assert torch.equal(hook(second)[0], simulation.weights[second.node].dequantize())


def scaled_bias(steps: float) -> Simulation:
    """The second layer's bias of channel 1 is ``steps`` of s_x * s_w, the others are 0."""
    simulation = simulated(conv_clip(), wbits=4, first_last_bits=4).simulation
    layer = simulation.plan.quantized_layers[1]
    unit = simulation.input_grid(layer).scale.double() * simulation.weights[layer.name].grid.scale.double()
    bias = torch.zeros(len(unit))
    bias[1] = float(unit[1] * steps)
    simulation.biases[layer.name] = -bias
    return simulation


def test_scale_of_a_weight_grows_to_where_the_largest_bias_is_the_largest_code():
    simulation = scaled_bias(5.0 * BIAS_MAX)
    layer = simulation.plan.quantized_layers[1]
    before = simulation.weights[layer.name]
    simulation.fit_biases()
    after = simulation.weights[layer.name]
    ratio = after.grid.scale / before.grid.scale
    expected = torch.ones(len(ratio))
    expected[1] = 5.0
    torch.testing.assert_close(ratio, expected)
    steps = (before.codes - before.grid.zero_point.view(-1, 1, 1, 1))[1]
    found = (after.codes - after.grid.zero_point.view(-1, 1, 1, 1))[1]
    assert torch.equal(found, torch.round(steps / ratio[1]))


def test_bias_within_half_of_int32_leaves_the_scale_alone():
    assert BIAS_MAX == 2**30
    simulation = scaled_bias(0.999 * BIAS_MAX)
    before = dict(simulation.weights)
    simulation.fit_biases()
    assert all(simulation.weights[name] is weight for name, weight in before.items())


def test_one_scale_for_the_whole_weight_grows_for_the_largest_bias():
    simulation = scaled_bias(3.0 * BIAS_MAX)
    layer = simulation.plan.quantized_layers[1]
    own = simulation.weights[layer.name]
    # The scale of channel 1 for all: its bias is the largest.
    single = Grid(own.grid.scale[1], torch.tensor(7.0), 4)
    simulation.weights[layer.name] = QuantizedWeight(own.codes, single)
    simulation.fit_biases()
    found = simulation.weights[layer.name].grid.scale
    assert found.shape == ()
    torch.testing.assert_close(found, 3.0 * own.grid.scale[1])


def test_layers_that_are_not_yet_quantized_have_no_scale_to_grow():
    simulation = scaled_bias(3.0 * BIAS_MAX)
    layer = simulation.plan.quantized_layers[1]
    weight = simulation.weights.pop(layer.name)
    simulation.fit_biases()
    assert layer.name not in simulation.weights
    simulation.weights[layer.name] = weight
    simulation.activations.clear()
    simulation.fit_biases()
    assert simulation.weights[layer.name] is weight


def test_bias_of_another_length_than_the_scales_is_left_alone():
    """It is not int32 in the file: its layer keeps it as it is."""
    simulation = scaled_bias(3.0 * BIAS_MAX)
    layer = simulation.plan.quantized_layers[1]
    simulation.biases[layer.name] = simulation.biases[layer.name].repeat(2)
    before = simulation.weights[layer.name]
    simulation.fit_biases()
    assert simulation.weights[layer.name] is before


# --- Softmax -----------------------------------------------------------------------------------------------------


def test_scale_behind_a_softmax_is_one_over_a_whole_number_and_others_stay():
    """ONNX Runtime's kernel counts in floor(1 / scale) steps: with any other scale its codes are one too low."""
    simulation = simulated(attention(), abits=8).simulation
    name = simulation.quantizer_of("softmax_out")
    assert name == "softmax_out"
    calibrated = simulation.activations[name].scale
    assert float(1 / calibrated) == pytest.approx(round(float(1 / calibrated)), rel=1e-6)
    others = {n: g for n, g in simulation.activations.items() if n != name}
    assert len(others) > 0
    # Learning has moved it: 1 / 0.0123 is 81.3.
    simulation.activations[name] = replace(simulation.activations[name], scale=torch.tensor(0.0123))
    simulation.settle()
    assert float(simulation.activations[name].scale) == pytest.approx(1 / 81, rel=1e-6)
    assert np.floor(np.float32(1) / np.float32(simulation.activations[name].scale)) == 81
    assert all(simulation.activations[n] is g for n, g in others.items())


def test_calibrated_scale_behind_a_softmax_settles_whatever_the_range():
    for seed in range(4):
        stage = simulated(attention(), tensors(attention(), seed=seed), abits=5)
        inverse = float(1 / stage.simulation.activations["softmax_out"].scale.double())
        assert inverse == pytest.approx(round(inverse), rel=1e-6)


# --- running -----------------------------------------------------------------------------------------------------


def test_activations_are_quantized_at_every_quantizer_or_those_asked_for():
    simulation = simulated(conv_clip()).simulation
    x = torch.linspace(-3, 3, 50)
    names = list(simulation.activations)
    assert len(names) > 1
    hook = simulation.activation_hook()
    for name in names:
        assert torch.equal(hook(name, x), fake_quantize(x, simulation.activations[name]))
    assert hook("nobody", x) is x
    some = simulation.activation_hook({names[0]})
    assert torch.equal(some(names[0], x), fake_quantize(x, simulation.activations[names[0]]))
    assert some(names[1], x) is x


@pytest.mark.parametrize("handed_out", [True, False])
@pytest.mark.parametrize("quantized", [True, False])
def test_whole_run_is_the_layers_by_hand(quantized, handed_out):
    """An output leaves behind its quantizer only where the plan says so."""
    stage = simulated(conv_relu(), wbits=4, first_last_bits=4, abits=4)
    plans = tuple(replace(p, outputs=p.outputs if handed_out else ()) for p in stage.plan.activations)
    grids = stage.simulation.activations
    simulation = replace(stage.simulation, plan=replace(stage.plan, activations=plans))
    assert simulation.float_outputs == (set() if handed_out else {"output"})
    hook = simulation.weight_hook()
    x = stage.data["input"]
    for layer, name in (("conv", "input"), ("conv2", "relu_out")):
        x = fake_quantize(x, grids[name]) if quantized else x
        weight, bias = hook(stage.network.step(layer))
        x = torch.nn.functional.conv2d(x, weight, bias, padding=1).relu()
    expected = fake_quantize(x, grids["output"]) if quantized and handed_out else x
    torch.testing.assert_close(simulation.run(stage.data, quantize_activations=quantized)["output"], expected)


def test_deferred_tensors_are_quantized_where_they_are_read_and_not_where_they_are_made():
    stage = simulated(conv_clip(), abits=2, first_last_bits=2)
    simulation = stage.simulation
    second = simulation.layer("conv2")
    between = simulation.quantizer_of(second.input)
    # All steps up to what the second layer reads, then the second layer alone.
    steps = simulation.network.steps
    cut = next(i for i, step in enumerate(steps) if step.node == second.name)
    raw = simulation.run(stage.data, steps[:cut], keep=[second.input], deferred={between})[second.input]
    made = simulation.run(stage.data, steps[:cut], keep=[second.input])[second.input]
    assert not torch.equal(raw, made)
    assert torch.equal(fake_quantize(raw, simulation.activations[between]), made)
    output = steps[cut].outputs[0]
    late = simulation.run({second.input: raw}, steps[cut : cut + 1], keep=[output], deferred={between})[output]
    early = simulation.run({second.input: made}, steps[cut : cut + 1], keep=[output])[output]
    assert torch.equal(late, early)
    plain = [
        simulation.run(
            {second.input: raw}, steps[cut : cut + 1], keep=[output], quantize_activations=False, deferred=names
        )
        for names in ((), {between})
    ]
    assert torch.equal(plain[0][output], plain[1][output])


def test_state_of_a_unit_is_what_it_reads_and_makes_and_can_be_put_back():
    simulation = simulated(conv_clip()).simulation
    first, second = (simulation.layer(name) for name in ("conv", "conv2"))
    simulation.biases = {first.name: torch.ones(3), second.name: torch.zeros(3)}
    whole = simulation.state()
    assert (whole.activations, whole.weights, whole.biases) == (
        simulation.activations,
        simulation.weights,
        simulation.biases,
    )
    units = [u for u in simulation.plan.units if first.name in u.layers]
    part = simulation.state(units[0])
    assert set(part.weights) == set(part.biases) == set(units[0].layers)
    assert set(part.activations) <= set(simulation.activations)
    assert set(units[0].inputs) & set(simulation.activations) <= set(part.activations)
    moved = replace(simulation.activations["input"], scale=torch.tensor(9.0))
    simulation.adopt(State({"input": moved}, {}, {first.name: torch.full((3,), 2.0)}))
    assert simulation.activations["input"] is moved
    assert set(simulation.activations) == set(whole.activations)
    assert simulation.biases[first.name].tolist() == [2.0] * 3
    assert simulation.biases[second.name].tolist() == [0.0] * 3


def test_codes_of_the_weights_are_nearest_after_calibration():
    simulation = simulated(conv_clip(), wbits=4).simulation
    for layer in simulation.plan.quantized_layers:
        weight = simulation.weights[layer.name]
        assert torch.equal(weight.codes, quantize_codes(simulation.network.step(layer.name).module.weight, weight.grid))


def test_scales_stay_as_they_are_where_biases_fit():
    stage = simulated(conv_clip())
    before = dict(stage.simulation.weights)
    stage.simulation.fit_biases()
    assert all(stage.simulation.weights[name] is weight for name, weight in before.items())


@given(st.integers(0, 2**31), st.integers(2, 8), st.floats(-6, 6))
@settings(deadline=None)
def test_a_coarser_grid_keeps_the_weight_to_half_a_step_and_the_codes_in_range(seed, bits, exponent):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 2, 2, generator=generator)
    grid = search_range(weight, bits, axis=0, symmetric=bits >= 8)
    fine = QuantizedWeight(quantize_codes(weight, grid), grid)
    least = grid.scale * 10.0 ** (exponent * torch.rand(4, generator=generator))
    coarse = fine.coarser(least)
    assert torch.equal(coarse.grid.scale, torch.maximum(grid.scale, least))
    assert coarse.codes.min() >= grid.qmin
    assert coarse.codes.max() <= grid.qmax
    step = coarse.grid.scale.view(-1, 1, 1, 1)
    assert ((coarse.dequantize() - fine.dequantize()).abs() <= 0.5001 * step).all()
    same = least <= grid.scale
    assert torch.equal(coarse.codes[same], fine.codes[same])
