"""Widths of channels at a fixed average, corrected weights, and the file that holds both."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import depthwise, residual
from helpers.stages import feeds, network_of, simulated, tensors
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from mrecg_onnx.commands._unused import unused_options
from mrecg_onnx.converters import to_torch
from mrecg_onnx.network.simulation import QuantizedWeight
from mrecg_onnx.network.steps import Network
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.quantizers import Grid, fake_quantize, quantize_codes
from mrecg_onnx.rewriting import apply_scale, find_streams
from mrecg_onnx.rewriting.channel_bits import (
    MOST_BITS,
    allocate_activations,
    allocate_bits,
    allocate_weights,
    correct_scale,
    grid_of_widths,
)
from mrecg_onnx.running import open_session
from mrecg_onnx.settings import Settings
from mrecg_onnx.writing.qdq import export

SIGMAS = st.lists(st.one_of(st.just(0.0), st.floats(1e-30, 1e30)), min_size=1, max_size=40)


def uneven(seed: int = 0) -> onnx.ModelProto:
    """The residual pattern with channels of conv1 and conv3 of very different size, and one that is dead."""
    model = residual(seed)
    for tensor in model.graph.initializer:
        if tensor.name in {"conv1.weight", "conv3.weight", "conv1.bias", "conv3.bias"}:
            array = numpy_helper.to_array(tensor).copy()
            size = np.geomspace(0.02, 4.0, len(array)).astype(np.float32)
            size[2] = 0.0
            array *= size.reshape(-1, *[1] * (array.ndim - 1))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


# --- allocation --------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(sigmas=SIGMAS, average=st.integers(0, 8))
# Deviations so close that their logarithms are one number.
@example(
    sigmas=[0.0] * 5
    + [1.249999999999978e29] * 2
    + [3.5355339059326756e29] * 3
    + [9.999999999999824e29, 9.999999999999826e29],
    average=4,
)
def test_widths_keep_the_average_exactly_and_grow_with_the_spread(sigmas, average):
    sigma = torch.tensor(sigmas, dtype=torch.float64)
    widths = allocate_bits(sigma, average)
    assert int(widths.sum()) == len(sigmas) * average
    assert bool(((widths >= 0) & (widths <= MOST_BITS)).all())
    for i in range(len(sigmas)):
        assert bool((widths[sigma < sigma[i]] <= widths[i]).all())


@settings(max_examples=100, deadline=None)
@given(logs=st.lists(st.floats(-6, 6), min_size=2, max_size=20), average=st.integers(1, 6))
def test_widths_are_the_rounded_logarithm_of_the_bins(logs, average):
    sigma = 2.0 ** torch.tensor(logs, dtype=torch.float64)
    widths = allocate_bits(sigma, average).double()
    wanted = torch.log2(sigma ** (2 / 3))
    inner = (widths > 0) & (widths < MOST_BITS)
    # One factor of proportionality, within the half a bit that rounding leaves, serves all channels.
    offset = (widths - wanted)[inner]
    if len(offset) > 1:
        assert float(offset.max() - offset.min()) <= 1 + 1e-9


def test_known_widths():
    # sigma^(2/3) = 1, 2, 4, 8: one bit from channel to channel.
    assert allocate_bits(2.0 ** torch.tensor([0.0, 1.5, 3.0, 4.5]), 3).tolist() in (
        [1, 3, 4, 4],
        [2, 3, 3, 4],
        [2, 2, 4, 4],
    )
    assert allocate_bits(torch.tensor([1.0, 1.0, 1.0]), 5).tolist() == [5, 5, 5]
    assert allocate_bits(torch.tensor([0.0, 1.0]), 4).tolist() == [0, 8]


# --- weights -----------------------------------------------------------------------------------------------------


def test_codes_stay_within_the_width_of_their_channel_and_none_means_zero():
    weight = torch.randn(9, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    widths = torch.arange(9)
    grid = grid_of_widths(weight, widths, 0)
    codes = quantize_codes(weight, grid)
    for channel, bits in enumerate(widths.tolist()):
        most = 254 if bits == 8 else 2**bits - 1
        assert float(codes[channel].min()) >= 0
        assert float(codes[channel].max()) <= most
    value = QuantizedWeight(codes, grid).dequantize()
    assert not value[0].any()
    errors = (value - weight).square().flatten(1).mean(1)
    assert bool((errors[1:] < errors[:-1]).all())
    # The file stores code - zero point in int8.
    assert float((codes - grid.along(4)[1]).abs().max()) <= 127


def test_correction_gives_each_channel_its_deviation_and_tells_what_its_mean_lacks():
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(1)) + 0.3
    grid = grid_of_widths(weight, torch.tensor([0, 1, 2, 2, 3, 4]), 0)
    corrected, missing = correct_scale(weight, QuantizedWeight(quantize_codes(weight, grid), grid))
    value = corrected.dequantize()
    assert torch.allclose(value[1:].std(1), weight[1:].std(1), rtol=1e-4)
    assert torch.allclose(value.mean(1) + missing, weight.mean(1), atol=1e-5)


@pytest.mark.parametrize("build", [residual, depthwise])
def test_bias_holds_the_expected_contribution_of_the_missing_mean(build):
    model = build()
    stage = simulated(model, wbits=2, method="nearest")
    found = allocate_weights(stage.network, stage.plan.layers, stage.data, images=32)
    layer = next(entry for entry in stage.plan.layers if entry.wbits == 2 and entry.groups == 1)
    step = stage.network.step(layer.name)
    quantized = found.weights[layer.name]
    lack = step.module.weight.flatten(1).mean(1) - quantized.dequantize().flatten(1).mean(1)
    x = stage.network.run(stage.data, keep=[layer.input])[layer.input]
    constant = lack.view(-1, 1, 1, 1).expand_as(step.module.weight)
    expected = step.module.compute(x, constant, None).mean((0, 2, 3))
    assert torch.allclose(found.biases[layer.name], step.module.bias + expected, atol=1e-5)


def test_layers_of_eight_bits_and_layers_without_a_bias_keep_what_they_have():
    stage = simulated(residual(), wbits=3)
    layers = [replace(layer, bias=None) if layer.name == "conv2" else layer for layer in stage.plan.layers]
    found = allocate_weights(stage.network, layers, stage.data, images=16)
    assert set(found.weights) == {layer.name for layer in layers if layer.wbits == 3}
    assert set(found.biases) == set(found.weights) - {"conv2"}
    assert 8 in {layer.wbits for layer in layers}


# --- activations -------------------------------------------------------------------------------------------------


def test_rescaled_network_is_the_same_function_and_widths_average_to_the_tensors():
    model = uneven()
    stage = simulated(model, method="nearest")
    before = stage.network.run(stage.data)
    folded = allocate_activations(
        stage.network, find_streams(stage.graph), stage.plan.activations, stage.data, images=32
    )
    assert folded
    for entry in folded:
        assert sum(entry.bits) == 4 * len(entry.bits)
        apply_scale(stage.graph, entry.stream, entry.scale)
        for grid in entry.grids.values():
            assert grid.ceiling.tolist() == [2**b - 1 for b in entry.bits]
    after = Network(to_torch(stage.graph)).run(stage.data)
    for name, value in before.items():
        assert torch.allclose(after[name], value, rtol=1e-4, atol=1e-4)


def test_widths_a_channel_lose_less_than_one_width_for_uneven_channels():
    stage = simulated(uneven(), method="nearest", range="aciq")
    (folded,) = [
        f
        for f in allocate_activations(
            stage.network, find_streams(stage.graph), stage.plan.activations, stage.data, images=32
        )
        if "relu1_out" in f.grids
    ]
    x = stage.network.run(stage.data, keep=["relu1_out"])["relu1_out"]
    scale = torch.tensor(folded.scale).view(1, -1, 1, 1)
    each = fake_quantize(x / scale, folded.grids["relu1_out"]) * scale
    one = fake_quantize(x, stage.simulation.activations["relu1_out"])
    assert float((each - x).square().mean()) < 0.5 * float((one - x).square().mean())


def test_relu6_streams_are_left_alone():
    stage = simulated(depthwise(), method="nearest", residual="shared")
    found = allocate_activations(
        stage.network, find_streams(stage.graph), stage.plan.activations, stage.data, images=16
    )
    assert not found


# --- the whole way -----------------------------------------------------------------------------------------------


def run(model: onnx.ModelProto, tmp_path, **chosen: object) -> QuantizationResult:
    path = tmp_path / "calib.npz"
    np.savez(path, **feeds(model, 32))
    return quantize(model, path, Settings(method="aciq", threads=1, range_samples=32, equalize="off", **chosen))


@pytest.mark.parametrize(("wbits", "allocation"), [(4, "auto"), (2, "auto"), (3, "weights"), (4, "off")])
def test_the_file_agrees_with_the_simulation_and_runs_on_integer_kernels(tmp_path, wbits, allocation):
    result = run(uneven(), tmp_path, wbits=wbits, channel_bits=allocation)
    found = result.verification
    assert found.sqnr_db > 40 or found.exact > 0.5
    assert not found.warnings
    assert found.fused["QLinearConv"] == found.expected["QLinearConv"]
    nodes = [node.op_type for node in result.model.graph.node]
    assert ("Min" in nodes) == (allocation == "auto")
    bits = {p.key: p.value for p in result.model.metadata_props}
    channels = json.loads(bits["mrecg_onnx.channel_bits"])
    if allocation == "off":
        assert all(set(widths) == {wbits} for widths in channels.values())
    else:
        assert len(set(channels["conv1.weight"])) > 1
        assert all(
            sum(widths) == json.loads(bits["mrecg_onnx.bits"])[n] * len(widths) for n, widths in channels.items()
        )


def test_no_activation_code_leaves_the_width_of_its_channel(tmp_path):
    result = run(uneven(), tmp_path)
    values = {entry.key: entry.value for entry in result.model.metadata_props}
    widths = json.loads(values["mrecg_onnx.channel_bits"])["relu1_out"]
    model = onnx.ModelProto()
    model.CopyFrom(result.model)
    codes = next(node.output[0] for node in model.graph.node if node.name == "relu1_out_Min")
    model.graph.output.append(onnx.helper.make_tensor_value_info(codes, onnx.TensorProto.UINT8, None))
    session = open_session(model.SerializeToString())
    found = session.run([codes], {n: 3 * x for n, x in feeds(uneven(), 32).items()})[0]
    assert (found.max((0, 2, 3)) <= np.array([2**b - 1 for b in widths])).all()
    assert found.max() > 15  # some channel has more than the tensor's four bits


def test_channels_of_no_bits_are_constant_zero_in_the_file():
    model = uneven()
    stage = simulated(model, wbits=2, method="aciq")
    exported = export(stage.graph, stage.simulation, {}).model
    stored = {t.name: numpy_helper.to_array(t) for t in exported.graph.initializer}
    codes = next(array for name, array in stored.items() if name.startswith("conv1.weight_quantized"))
    assert codes.dtype == np.int8
    assert not codes[2].any()


def test_correction_and_widths_lower_the_output_error_at_two_bits():
    model = uneven()
    data = tensors(model, 64)
    errors = {}
    network = network_of(model)
    reference = network.run(data)
    for method in ("nearest", "aciq"):
        simulation = simulated(model, data, wbits=2, abits=32, method=method).simulation
        made = simulation.run(data)
        errors[method] = sum(float((made[n] - r).square().sum()) for n, r in reference.items())
    assert errors["aciq"] < errors["nearest"]


def test_allocation_has_no_effect_on_other_methods():
    assert unused_options(Settings(method="nearest"), ["channel_bits"]) == [
        "--channel-bits has no effect with --method nearest"
    ]
    assert not unused_options(Settings(method="aciq"), ["channel_bits"])


def test_a_ceiling_bounds_codes_of_activations_along_axis_one():
    grid = Grid(torch.tensor(0.5), torch.tensor(0.0), 4, ceiling=torch.tensor([0.0, 3.0, 15.0]))
    x = torch.full((2, 3, 4, 4), 100.0)
    assert quantize_codes(x, grid)[0, :, 0, 0].tolist() == [0, 3, 15]
    assert fake_quantize(x, grid)[0, :, 0, 0].tolist() == [0.0, 1.5, 7.5]
