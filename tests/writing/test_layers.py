"""Weights and biases in the file: integer codes that are what was learned."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import PATTERNS, conv_clip, conv_relu, residual
from helpers.export_patterns import GRAPHS, computed_bias, no_bias, tokens
from helpers.stages import feeds, simulated
from helpers.written import exported, initializers, maker, node, run
from onnx import helper, numpy_helper

import mrecg_onnx
from mrecg_onnx.checking.verification import verify
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.quantization import quantize
from mrecg_onnx.quantizers import quantize_codes
from mrecg_onnx.running import fused_op_counts, open_session, run_padded
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing.qdq import export
from mrecg_onnx.writing.retargeting import retarget


@pytest.mark.parametrize("wbits", [2, 3, 4, 7])
def test_shifted_codes_are_the_asymmetric_weights(wbits):
    """Codes 0..2^b-1 with a zero point a channel, stored as code - zero point with zero point 0 (docs/method.md 6)."""
    stage, result = exported(residual(), wbits=wbits, first_last_bits=wbits)
    values = initializers(result.model)
    asymmetric = 0
    for layer in stage.plan.layers:
        quantized = stage.simulation.weights[layer.name]
        codes, zero, scale = (x.numpy() for x in (quantized.codes, quantized.grid.zero_point, quantized.grid.scale))
        assert codes.min() >= 0
        assert codes.max() <= 2**wbits - 1
        asymmetric += int((zero != 2 ** (wbits - 1)).sum())
        shape = [-1] + [1] * (codes.ndim - 1)
        reference = (codes - zero.reshape(shape)) * scale.reshape(shape)
        name = layer.weight
        stored = values[f"{name}_quantized"].astype(np.float32) * values[f"{name}_scale"].reshape(shape)
        assert np.array_equal(stored, reference.astype(np.float32))
    assert asymmetric > 0


def test_convolution_of_codes_equals_a_float_reference_from_codes_and_zero_points():
    """One layer by hand, in float64, against the file unoptimized and on the integer kernel."""
    model = conv_relu()
    stage, result = exported(model, wbits=4, first_last_bits=3)
    grids, weights = stage.simulation.activations, stage.simulation.weights["conv"]
    x = torch.from_numpy(feeds(model, 4, seed=7)["input"])
    grid = grids["input"]
    data = (quantize_codes(x, grid) - grid.zero_point).double() * grid.scale.double()
    scale, zero = weights.grid.along(4)
    kernel = (weights.codes - zero).double() * scale.double()
    bias_scale = (grid.scale * weights.grid.scale).double()
    own = stage.network.step("conv").module.bias.double()
    bias = torch.round(own / bias_scale) * bias_scale
    y = torch.nn.functional.conv2d(data, kernel, bias, padding=1).relu()
    out = grids["relu_out"]
    expected = torch.round(y / out.scale.double()).clamp(0, out.qmax).numpy()
    with_codes = onnx.ModelProto()
    with_codes.CopyFrom(result.model)
    codes = node(with_codes, "relu_out_DequantizeLinear").input[0]
    with_codes.graph.output.append(onnx.ValueInfoProto(name=codes))
    for optimized in (False, True):
        (found,) = run(with_codes, {"input": x.numpy()}, [codes], optimized=optimized)
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert np.mean(found != expected) < 1e-3


def test_weight_of_eight_bits_is_symmetric():
    stage, result = exported(conv_relu(), wbits=8)
    for layer in stage.plan.layers:
        codes = initializers(result.model)[f"{layer.weight}_quantized"]
        assert codes.min() >= -127
        assert not initializers(result.model)[f"{layer.weight}_zero_point"].any()


def bias_of(model: onnx.ModelProto, layer: str) -> str:
    """The tensor that a layer adds, in the node itself or in the Add behind a MatMul."""
    found = node(model, layer)
    if len(found.input) > 2:
        return found.input[2]
    (add,) = [n for n in model.graph.node if found.output[0] in n.input]
    assert add.op_type == "Add"
    return next(name for name in add.input if name != found.output[0])


@pytest.mark.parametrize("name", [*PATTERNS, "tokens"])
def test_biases_are_int32_at_the_product_of_the_scales(name):
    stage, result = exported(GRAPHS[name]())
    values = initializers(result.model)
    assert result.float_biases == []
    for layer in stage.plan.layers:
        bias = stage.network.step(layer.name).module.bias
        dequantize = maker(result.model, bias_of(result.model, layer.name))
        codes, scale, zero = (values[n] for n in dequantize.input)
        assert (dequantize.op_type, codes.dtype, zero.dtype) == ("DequantizeLinear", np.int32, np.int32)
        assert not zero.any()
        weight_scale = values[f"{layer.weight}_scale"]
        grid = stage.simulation.input_grid(layer)
        assert np.array_equal(scale, (np.float32(grid.scale) * weight_scale).astype(np.float32))
        assert np.abs(codes * scale.astype(np.float64) - bias.numpy()).max() <= scale.max() * 0.5001


def test_bias_stays_float_beside_float_activations():
    _, result = exported(conv_relu(), abits=32)
    assert np.array_equal(initializers(result.model)["conv.bias"], initializers(conv_relu())["conv.bias"])
    assert result.float_biases == []


def overflowing() -> onnx.ModelProto:
    """One channel of the middle layer has next to no weights and a large bias: its scale is tiny."""
    model = conv_clip()
    for tensor in model.graph.initializer:
        factor = {"conv2.weight": 1e-9, "conv2.bias": 500}.get(tensor.name)
        if factor is not None:
            array = numpy_helper.to_array(tensor).copy()
            array[3] *= factor
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


@pytest.mark.parametrize("abits", [4, 8])
@pytest.mark.parametrize("target", ["ort", "qnn", "portable"])
def test_a_channels_scale_grows_where_its_bias_would_not_fit(target, abits):
    stage, result = exported(overflowing(), abits=abits, target=target)
    helper.set_model_props(result.model, {"mrecg_onnx.version": mrecg_onnx.__version__})
    grid = stage.simulation.weights["conv2"].grid
    before = simulated(conv_clip(), abits=abits, target=target).simulation.weights["conv2"].grid
    assert grid.scale[3] > 1e-9
    assert torch.equal(torch.cat([grid.scale[:3], grid.scale[4:]]), torch.cat([before.scale[:3], before.scale[4:]]))
    assert result.float_biases == []
    values = initializers(result.model)
    codes = values[maker(result.model, node(result.model, "conv2").input[2]).input[0]]
    assert 2**29 < np.abs(codes.astype(np.int64)).max() <= 2**30
    found = verify(result, stage.simulation, stage.data)
    assert min(found.sqnr_db, found.sqnr_fused_db) > 100
    assert found.warnings == ()
    # The other targets' forms are other files, portable's with a float bias, which ONNX Runtime quantizes itself: it fits, too.
    aimed = retarget(result.model, load_target(target))
    feed = {name: x.numpy() for name, x in stage.data.items()}
    for level in ("off", "all"):
        (made,) = run_padded(open_session(aimed, level), feed).values()
        assert sqnr_db(stage.network.run(stage.data)["output"].numpy(), made) > 20
    if abits == 8:
        assert fused_op_counts(aimed)["QLinearConv"] == 2


@pytest.mark.parametrize("method", ["brecq", "bit-split"])
def test_learned_layers_keep_room_for_their_biases(tmp_path, method):
    np.savez(tmp_path / "calibration.npz", **feeds(overflowing()))
    options = Settings(method=method, iters=20, equalize="off", wbits=4)
    result = quantize(overflowing(), tmp_path / "calibration.npz", options)
    assert result.verification.fused["QLinearConv"] == 2
    assert result.verification.warnings == ()


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_input_keeps_its_layer_in_integers(value):
    data = {"input": torch.full((8, 8, 16, 16), value)}
    stage = simulated(conv_clip(), data)
    result = export(stage.graph, stage.simulation, {})
    found = verify(result, stage.simulation, stage.data)
    assert found.fused["QLinearConv"] == 2
    assert found.warnings == ()
    assert stage.simulation.activations["input"].scale > 1e-3


def test_bias_that_does_not_fit_stays_float_with_a_warning(caplog):
    """The guard behind that: scales that nobody has fitted to a bias."""
    stage, _ = exported(conv_clip())
    bias = stage.network.step("conv2").module.bias.detach()
    stage.simulation.biases["conv2"] = bias + 1e8 * (torch.arange(len(bias)) == 3)
    with caplog.at_level(logging.WARNING):
        result = export(stage.graph, stage.simulation, {})
    assert result.float_biases == ["conv2"]
    assert "layer 'conv2': its bias does not fit int32" in caplog.text
    onnx.checker.check_model(result.model, full_check=True)
    found = verify(result, stage.simulation, stage.data)
    # The layer cannot fuse, nobody expects it to, and the one line says so.
    said = "layer 'conv2': the bias does not fit int32 and stays in float, so the layer runs in float"
    assert [warning.startswith(said) for warning in found.warnings].count(True) == 1


@pytest.mark.parametrize(
    ("steps", "fits"), [(2**31 - 128, True), (-(2**31 - 128), True), (2**31, False), (-(2**31), False)]
)
def test_largest_bias_is_the_largest_int32(steps, fits):
    stage = simulated(conv_clip())
    layer = stage.plan.layer("conv2")
    weights = stage.simulation.weights["conv2"]
    # Scales of a power of two: the bias is exactly so many steps.
    scale = torch.full_like(weights.grid.scale, 2.0**-8)
    stage.simulation.weights["conv2"] = replace(weights, grid=replace(weights.grid, scale=scale))
    grid = stage.simulation.activations[layer.input]
    stage.simulation.activations[layer.input] = replace(grid, scale=torch.tensor(2.0**-4))
    bias = torch.zeros(len(scale))
    bias[2] = steps * 2.0**-12
    stage.simulation.biases["conv2"] = bias
    result = export(stage.graph, stage.simulation, {})
    assert result.float_biases == ([] if fits else ["conv2"])
    if fits:
        codes = initializers(result.model)[f"{layer.bias}_quantized"]
        assert codes.dtype == np.int32
        assert codes.tolist() == [0, 0, steps, *[0] * (len(scale) - 3)]
        found = initializers(result.model)[f"{layer.bias}_scale"]
        assert found.tolist() == [2.0**-12] * len(scale)


def test_layer_without_bias_gets_none():
    _, result = exported(no_bias())
    assert len(node(result.model, "conv").input) == 2


@pytest.mark.parametrize("name", ["tokens", "tokens_of_one_size"])
def test_matmul_and_add_are_one_layer_and_two_nodes(name):
    """The file has both nodes of the user under their names, and the second makes the tensor that it made."""
    stage, result = exported(GRAPHS[name]())
    biases = {layer.name: layer.bias for layer in stage.plan.layers}
    assert biases == {layer: f"{layer}.bias" for layer in ("first", "up", "down", "float", "last")}
    for layer in biases:
        product = node(result.model, layer).output[0]
        add = node(result.model, f"{layer}_add")
        assert (node(result.model, layer).op_type, add.op_type) == ("MatMul", "Add")
        assert product in add.input
        assert add.output[0] == ("output" if layer == "last" else f"{layer}_add_out")
    assert not {"mrecg_onnx.bias_node"} & {p.key for n in result.model.graph.node for p in n.metadata_props}
    found = verify(result, stage.simulation, stage.data)
    assert found.warnings == ()
    # No quantizer between a float op and the layer in front of it; all five layers run on codes.
    assert "float_add_out" not in {plan.name for plan in stage.plan.activations}
    assert sum(found.fused.get(k, 0) for k in ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat")) == 5


def test_bias_of_a_matmul_is_learned(tmp_path):
    np.savez(tmp_path / "calibration.npz", **feeds(tokens()))
    result = quantize(tokens(), tmp_path / "calibration.npz", Settings(wbits=3, iters=20, equalize="off"))
    values = initializers(result.model)
    moved = []
    for layer in result.plan.layers:
        codes, scale, _ = (values[n] for n in maker(result.model, bias_of(result.model, layer.name)).input)
        moved.append(np.abs(codes * scale - initializers(tokens())[layer.bias]).max() / scale.max())
    assert max(moved) > 1
    assert result.verification.warnings == ()


def test_bias_that_the_graph_computes_stays_float():
    model = computed_bias()
    data = {n: torch.from_numpy(x) for n, x in feeds(model, 8).items()}
    stage = simulated(model, data, range_samples=8)
    result = export(stage.graph, stage.simulation, {})
    onnx.checker.check_model(result.model, full_check=True)
    (found,) = run(result.model, {n: x.numpy() for n, x in data.items()})
    assert sqnr_db(stage.simulation.run(data)["output"].numpy(), found) > 60
