"""Bias correction: layers are right on average, and what is corrected is kept where held-out images gain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.architectures import Graph
from helpers.learned import codes, distance, prefix_of, results, small
from helpers.rescalable import spread
from helpers.stages import feeds, simulated, tensors

from mrecg_onnx.learning.bias_correction import _clamp_behind, correct_biases
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return results(tmp_path_factory.mktemp("correction"))


def test_corrected_layers_are_right_on_average_where_it_is_seen():
    stage = simulated(small(), tensors(small(), 32), wbits=2, abits=4)
    names = ["stem_relu_out", "a1_relu_out", "a_out_out", "b1_relu_out", "output"]

    def errors() -> list[float]:
        wanted = stage.network.run(stage.data, keep=names)
        made = stage.simulation.run(stage.data, keep=names)
        means = [(wanted[n] - made[n]).movedim(1, 0).flatten(1).mean(1).square().mean().sqrt() for n in names]
        return [float(m / wanted[n].std()) for m, n in zip(means, names, strict=True)]

    before = errors()
    shifts = correct_biases(prefix_of(stage))
    assert shifts.keys() == {layer.name for layer in stage.plan.layers}
    after = errors()
    assert sum(after) < 0.5 * sum(before)
    assert after[-1] < 0.01 < before[-1]


def test_channels_of_a_matmul_with_bias_are_on_the_last_axis():
    g = Graph(seed=1)
    x = g.op("Reshape", [g.input(4, size=12), g.constant("rows", np.array([0, 36, 16]))], "reshape")
    for name, cin, cout, output in (("first", 16, 24, None), ("last", 24, 8, "output")):
        x = g.op("MatMul", [x, g.weight(f"{name}.weight", (cin, cout), cin)], name)
        x = g.op("Add", [x, g.bias(f"{name}.bias", cout)], f"{name}_add", output)
        x = g.relu(x) if output is None else x
    stage = simulated(g.model(), tensors(g.model(), 32), wbits=2, abits=4, first_last_bits=4)

    def error() -> float:
        wanted, made = (run(stage.data)["output"] for run in (stage.network.run, stage.simulation.run))
        return float((wanted - made).flatten(0, 1).mean(0).square().mean().sqrt() / wanted.std())

    before = error()
    assert correct_biases(prefix_of(stage)).keys() == {"first", "last"}
    assert error() < 0.25 * before


def test_values_that_are_cut_off_do_not_count():
    g = Graph(seed=1)
    x = g.relu(g.conv(g.input(4, size=12), 4, 8, "stem"), "stem_relu")
    g.classifier(g.relu(g.op("Add", [g.conv(x, 8, 8, "a1"), x], "add"), "last"), 8)
    stage = simulated(g.model(), tensors(g.model(), 32), wbits=2, abits=4)
    prefix = prefix_of(stage)
    found = {}
    for unit in stage.plan.units:
        for layer in unit.layers:
            found[layer] = _clamp_behind(prefix, stage.network.step(layer), prefix.steps(unit))
    assert {name: step and step.node for name, step in found.items()} == {"stem": "stem_relu", "a1": "last", "fc": None}


def test_correction_pays_without_learning(quantized):
    plain, corrected = quantized("nearest"), quantized("nearest", bias_correction=True)
    assert distance(corrected.model) > distance(plain.model) + 3
    assert codes(plain).keys() == codes(corrected).keys()
    assert all((codes(plain)[n] == codes(corrected)[n]).all() for n in codes(plain))
    assert corrected.corrections
    assert plain.corrections == {}
    assert corrected.verification.warnings == ()
    assert "correct" in corrected.seconds


@pytest.mark.parametrize("method", ["brecq", "adaround", "brecq-paper"])
def test_correction_comes_behind_learning(quantized, method):
    plain, corrected = quantized(method, iters=30), quantized(method, iters=30, bias_correction=True)
    assert all((codes(plain)[n] == codes(corrected)[n]).all() for n in codes(plain))
    assert distance(corrected.model) > distance(plain.model) - 1


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

    monkeypatch.setattr("mrecg_onnx.learning.learner.correct_biases", spoil)
    left_out = quantize(spread(), tmp_path / "calib.npz", settings)
    assert left_out.corrections == {}
    same = [[t.raw_data for t in r.model.graph.initializer] for r in (plain, left_out)]
    assert same[0] == same[1]
