"""Bias absorption: exact in float, used where the output gains."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import Graph
from helpers.rescalable import float_run
from helpers.stages import feeds, network_of, planned, tensors
from onnx import numpy_helper

from mrecg_onnx.quantization import quantize
from mrecg_onnx.rewriting.absorption import apply_absorption, choose_absorptions
from mrecg_onnx.settings import Settings

SETTINGS = {"method": "nearest", "wbits": 8, "abits": 4}


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
