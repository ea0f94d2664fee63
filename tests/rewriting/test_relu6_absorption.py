"""Relu6 as a bound a channel, and bias absorption: exact in float, integer in the file, used where the output gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers.architectures import Graph
from helpers.stages import feeds, network_of, planned, tensors
from onnx import numpy_helper

from mrecg_onnx.converters import normalize
from mrecg_onnx.planning.activations import channel_ceilings, is_clamp
from mrecg_onnx.quantization import quantize
from mrecg_onnx.rewriting import apply_scale, bound_channels, choose_scales, find_streams
from mrecg_onnx.rewriting.absorption import apply_absorption, choose_absorptions
from mrecg_onnx.settings import Settings

SETTINGS = {"method": "nearest", "wbits": 8, "abits": 4}


def spread(seed: int = 0) -> onnx.ModelProto:
    """Pointwise, depthwise and pointwise layers with Relu6 between; channels of a depthwise layer of very different sizes."""
    g = Graph(seed)
    x = g.clip(g.conv(g.input(), 8, 16, "stem"), "stem_clip")
    x = g.clip(g.conv(x, 16, 16, "depthwise", groups=16), "depthwise_clip")
    x = g.clip(g.conv(x, 16, 16, "project", kernel=1), "project_clip")
    g.classifier(x, 16)
    model = g.model()
    for tensor in model.graph.initializer:
        if tensor.name in {"depthwise.weight", "depthwise.bias"}:
            values = numpy_helper.to_array(tensor)
            sizes = np.geomspace(0.05, 4.0, 16, dtype=np.float32).reshape(-1, *[1] * (values.ndim - 1))
            tensor.CopyFrom(numpy_helper.from_array(values * sizes, tensor.name))
    return model


def float_run(model: ir.Model, data) -> torch.Tensor:
    with torch.no_grad():
        return network_of(model).run(data)["output"]


# --- bounds --------------------------------------------------------------------------------------------------------------


def test_bounds_a_channel_keep_the_float_function_under_any_scale():
    model, random = spread(), np.random.default_rng(0)
    data = tensors(model)
    before = float_run(normalize(model), data)
    graph = normalize(model)
    streams = [s for s in find_streams(graph, bounded=True) if s.ceilings]
    assert len(streams) > len([s for s in find_streams(graph) if s.ceilings])
    for stream in streams:
        scale = random.uniform(0.2, 5.0, stream.channels)
        apply_scale(graph, stream, scale)
        bound_channels(graph, stream, scale)
    assert not [n for n in graph.graph if n.op_type == "Clip"]
    assert torch.allclose(float_run(graph, data), before, atol=1e-5)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def test_a_min_with_one_bound_a_channel_is_a_clamp_and_no_other():
    graph = normalize(spread())
    stream = next(s for s in find_streams(graph, bounded=True) if s.ceilings)
    bound_channels(graph, stream, np.full(stream.channels, 2.0))
    node = next(n for n in graph.graph if n.op_type == "Min")
    assert channel_ceilings(node) == (3.0,) * stream.channels
    assert is_clamp(node)
    assert channel_ceilings(next(n for n in graph.graph if n.op_type == "Relu")) is None


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


# --- absorption ----------------------------------------------------------------------------------------------------------


def lifted(amount: float, *, padded: bool = False) -> onnx.ModelProto:
    """Two layers with a Relu between; the first one's channels lie ``amount`` above 0."""
    g = Graph(seed=3)
    x = g.relu(g.conv(g.input(4, size=8), 4, 8, "first"), "first_relu")
    x = g.relu(g.conv(x, 8, 8, "second", kernel=3 if padded else 1), "second_relu")
    g.classifier(x, 8)
    model = g.model()
    for tensor in model.graph.initializer:
        if "first" in tensor.name and len(tensor.dims) == 1:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, amount), tensor.name))
    return model


def absorptions(model: onnx.ModelProto, abits: int = 4):
    graph, plan = planned(model, wbits=8, abits=abits)
    data, network = tensors(model), network_of(graph)
    return graph, data, choose_absorptions(network, graph, plan.activations, data)


def test_what_channels_never_fall_below_is_absorbed_and_the_function_stays():
    graph, data, found = absorptions(lifted(20.0))
    (entry,) = [a for a in found if a.producer == "first"]
    assert entry.used
    assert entry.error_after < 0.7 * entry.error_before
    assert min(entry.shift) > 1.0
    before = float_run(graph, data)
    apply_absorption(graph, entry)
    assert torch.allclose(float_run(graph, data), before, rtol=1e-4, atol=1e-4)
    bias = next(n for n in graph.graph if n.name == "first").inputs[2].const_value.numpy()
    assert bias == pytest.approx(20.0 - np.asarray(entry.shift), rel=1e-5)


def test_nothing_to_absorb_and_padding_leave_the_model_alone():
    assert [a for a in absorptions(lifted(0.0))[2] if a.used] == []
    assert [a for a in absorptions(lifted(20.0, padded=True))[2] if a.producer == "first"] == []


def test_absorption_brings_the_file_closer(tmp_path):
    model = lifted(20.0)
    np.savez(tmp_path / "calib.npz", **feeds(model, 48))
    results = [
        quantize(model, tmp_path / "calib.npz", Settings(**SETTINGS, equalize="off", absorb=absorb))
        for absorb in ("off", "auto")
    ]
    assert results[0].absorbed == ()
    assert [a.producer for a in results[1].absorbed if a.used] == ["first"]
    assert all(r.verification.warnings == () for r in results)


@pytest.mark.parametrize("name", ["relu6", "absorb"])
def test_unknown_choices_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 'on'"):
        Settings(**{name: "on"})


# --- bias correction -----------------------------------------------------------------------------------------------------


def test_corrected_biases_are_kept_only_where_held_out_images_gain(tmp_path, monkeypatch):
    np.savez(tmp_path / "calib.npz", **feeds(spread(), 48))
    settings = Settings(method="nearest", wbits=2, abits=8, equalize="off", bias_correction=True)
    plain = quantize(spread(), tmp_path / "calib.npz", replace(settings, bias_correction=False))
    kept = quantize(spread(), tmp_path / "calib.npz", settings)
    assert kept.corrections

    def spoil(prefix, _):
        simulation = prefix.simulation
        for layer in simulation.plan.quantized_layers:
            simulation.biases[layer.name] = simulation.bias(simulation.network.step(layer.name)) + 50.0
        return {"all": 50.0}

    monkeypatch.setattr("mrecg_onnx.quantization.correct_biases", spoil)
    left_out = quantize(spread(), tmp_path / "calib.npz", settings)
    assert left_out.corrections == {}
    same = [[t.raw_data for t in r.model.graph.initializer] for r in (plain, left_out)]
    assert same[0] == same[1]
