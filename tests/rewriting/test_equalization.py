"""The choice of scales: outlier channels are equalized and Relu6 bounded where the output gains."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers.architectures import Graph
from helpers.rescalable import run, spread
from helpers.stages import feeds, network_of, planned, tensors
from onnx import numpy_helper

from mrecg_onnx.converters import normalize
from mrecg_onnx.quantization import quantize
from mrecg_onnx.rewriting.equalization import LARGEST, MIN_GAIN, SMALLEST, choose_scales
from mrecg_onnx.rewriting.rescaling import apply_scale
from mrecg_onnx.rewriting.streams import find_streams
from mrecg_onnx.rewriting.walk import FIRST_SLICE
from mrecg_onnx.settings import Settings

# --- the choice --------------------------------------------------------------------------------------------------


def expanded() -> onnx.ModelProto:
    """A layer, Relu6 and a depthwise layer; the channels differ a hundredfold."""
    g = Graph(seed=2)
    x = g.conv(g.input(), 8, 12, "first")
    g.conv(g.clip(x, "clip"), 12, 12, "depthwise", groups=12, output="output")
    model = g.model()
    factors = np.geomspace(0.01, 1.0, 12, dtype=np.float32)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.name in {"first.weight", "first.bias"}:
            scaled = value * factors.reshape(-1, *[1] * (value.ndim - 1))
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    return model


def test_channels_below_a_ceiling_grow_up_to_it_and_the_function_stays():
    model = expanded()
    fed = feeds(model, 64, 0)
    graph, plan = planned(model, wbits=4, abits=4, first_last_bits=4)
    (stream,) = find_streams(graph)
    assert stream.ceilings == (("clip_out", 6.0),)
    data = {name: torch.from_numpy(x) for name, x in fed.items()}
    (chosen,) = choose_scales(network_of(graph), [stream], plan.activations, data)
    assert chosen.alpha > 0
    assert chosen.error_after < chosen.error_before
    scale = np.array(chosen.scale)
    assert (scale <= 1.0).all()
    before, peaks = run(model, fed), network_of(graph).run(data, keep=["clip_out"])["clip_out"].amax((0, 2, 3)).numpy()
    assert (peaks / scale <= 6.0 + 1e-5).all()
    apply_scale(graph, stream, chosen.scale)
    assert np.linalg.norm(run(graph, fed) - before) <= 1e-5 * np.linalg.norm(before)


def planted(outliers: dict[int, float], seed: int = 0) -> onnx.ModelProto:
    """Eight linear channels of equal power between two 1x1 layers, some of them then made larger, with no change of the
    function: what equalization should take back."""
    g = Graph(seed)
    x = g.clip(g.conv(g.input(), 8, 16, "stem"), "stem_clip")
    x = g.conv(x, 16, 8, "project", kernel=1)
    x = g.conv(x, 8, 16, "expand", kernel=1)
    g.classifier(g.clip(x, "clip2"), 16)
    model = g.model()
    graph = normalize(model)
    (stream,) = [s for s in find_streams(graph) if "project" in s.producers]
    values = network_of(graph).run(tensors(model, 64, 5), keep=["project_out"])["project_out"]
    power = values.pow(4).mean((0, 2, 3)).pow(0.25)
    factors = torch.tensor([outliers.get(c, 1.0) for c in range(8)])
    apply_scale(graph, stream, (power / factors).tolist())
    return ir.to_proto(graph)


def chosen(model: onnx.ModelProto, images: int = 64, **options) -> dict[str, float]:
    graph, plan = planned(model, **options)
    data = tensors(model, images, 5)
    decided = choose_scales(network_of(graph), find_streams(graph), plan.activations, data)
    return {entry.stream.name: entry for entry in decided}


def test_outlier_channels_are_equalized():
    entry = chosen(planted({2: 12.0, 5: 8.0}))["project_out"]
    assert entry.alpha > 0
    assert entry.spread == pytest.approx(12, rel=0.05)
    assert entry.error_after < (1 - MIN_GAIN) * entry.error_before
    scale = torch.tensor(entry.scale)
    assert torch.topk(scale, 2).indices.tolist() == [2, 5]
    assert float(scale.min()) >= SMALLEST
    assert float(scale.max()) <= LARGEST
    # s_c = (m_c / median m)^alpha
    assert float(scale[2]) == pytest.approx(entry.spread**entry.alpha, rel=0.01)


def test_equal_channels_are_left_alone():
    entry = chosen(planted({}))["project_out"]
    assert entry.alpha == 0
    assert entry.error_after == entry.error_before
    assert entry.scale == (1.0,) * 8


def test_predicted_error_is_that_of_the_rescaled_network():
    model = planted({2: 12.0, 5: 8.0})
    # So few images that both are measured on all of them.
    entry = chosen(model, FIRST_SLICE)["project_out"]
    assert entry.alpha > 0
    graph = normalize(model)
    apply_scale(graph, entry.stream, entry.scale)
    again = chosen(ir.to_proto(graph), FIRST_SLICE)["project_out"]
    assert again.error_before == pytest.approx(entry.error_after, rel=0.02)


def test_dead_channel_does_not_upset_the_others():
    graph = normalize(planted({2: 12.0}))
    for name in ("project.weight", "project.bias"):
        value = graph.graph.initializers[name]
        array = value.const_value.numpy().copy()
        array[4] = 0
        value.const_value = ir.tensor(array, name=name)
    entry = chosen(ir.to_proto(graph))["project_out"]
    assert entry.alpha > 0
    assert entry.scale[4] == 1
    assert np.isfinite(entry.scale).all()


def test_stream_without_a_quantizer_is_not_judged():
    assert chosen(planted({2: 12.0}), abits=32) == {}


def test_quantize_equalizes_and_reports_it(tmp_path):
    model = planted({2: 12.0, 5: 8.0})
    np.savez(tmp_path / "calib.npz", **feeds(model, 64, 5))
    errors = {}
    for mode in ("auto", "off"):
        result = quantize(model, tmp_path / "calib.npz", Settings(method="nearest", equalize=mode))
        reported = {entry.stream.name: entry.alpha for entry in result.equalized}
        assert (reported.get("project_out", 0) > 0) == (mode == "auto")
        assert json.loads(json.dumps(result.to_json()))["equalized"] == [] or mode == "auto"
        fed = feeds(model, 64, 9)
        reference = run(model, fed)
        errors[mode] = float(np.linalg.norm(run(result.model, fed) - reference) / np.linalg.norm(reference))
    assert errors["auto"] < 0.8 * errors["off"]


# --- bounds ------------------------------------------------------------------------------------------------------


SETTINGS = {"method": "nearest", "wbits": 8, "abits": 4}


def test_quantizer_takes_the_bounds_into_its_codes(tmp_path):
    np.savez(tmp_path / "calib.npz", **feeds(spread(), 48))
    plain, bounded = (
        quantize(spread(), tmp_path / "calib.npz", Settings(**SETTINGS, relu6=relu6)) for relu6 in ("off", "auto")
    )
    assert any(e.bounded for e in bounded.equalized)
    assert not any(e.bounded for e in plain.equalized)
    assert bounded.verification.warnings == ()
    made = {n.output[0]: n for n in bounded.model.graph.node}
    limits = [n for n in bounded.model.graph.node if n.op_type == "Min"]
    constants = {t.name: numpy_helper.to_array(t) for t in bounded.model.graph.initializer}
    assert limits
    for node in limits:  # on codes: uint8 between QuantizeLinear and DequantizeLinear
        assert made[node.input[0]].op_type == "QuantizeLinear"
        assert constants[node.input[1]].dtype == np.uint8
        assert constants[node.input[1]].max() <= 15
    assert bounded.verification.fused["QLinearConv"] == plain.verification.fused["QLinearConv"]


def test_bounds_are_chosen_where_the_output_gains_with_the_weights_behind():
    graph, plan = planned(spread(), wbits=8, abits=4)
    data, network = tensors(spread(), 48), network_of(graph)
    streams = find_streams(graph, bounded=True)
    chosen = choose_scales(network, streams, plan.activations, data, plan.quantized_layers)
    stream = next(e for e in chosen if e.bounded)
    assert not stream.stream.grouped
    assert stream.error_after < stream.error_before
    # Two bits of weights behind cost more than the activations gain.
    coarse = [replace(x, wbits=2) for x in plan.quantized_layers]
    again = choose_scales(network, streams, plan.activations, data, coarse)
    assert sum(e.bounded for e in again) <= sum(e.bounded for e in chosen)
