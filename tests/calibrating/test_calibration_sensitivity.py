"""Calibration: grids from weights and images, broken values named. Sensitivity: the worst quantizers first, and protected."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import PATTERNS, Graph, max_pool, residual
from helpers.stages import feeds, planned, simulated, tensors
from onnx import numpy_helper

from mrecg_onnx.calibrating.activation_ranges import JUDGED_IMAGES, activation_grids, sample_activations
from mrecg_onnx.calibrating.nearest_rounding import nearest_weights
from mrecg_onnx.calibrating.sensitivity import measure_sensitivity
from mrecg_onnx.checking.verification import verify
from mrecg_onnx.converters.errors import DataError, ModelError, MrecgError
from mrecg_onnx.measures.output_errors import output_error
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.quantizers import Grid, quantize_codes, search_range
from mrecg_onnx.quantizers.ranges import RANGES
from mrecg_onnx.settings import Settings
from mrecg_onnx.writing.qdq import export

if TYPE_CHECKING:
    from pathlib import Path


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["residual", "conv_transpose", "depthwise", "matmul_add"])
def test_weights_are_searched_and_rounded_per_output_channel(pattern):
    stage = simulated(PATTERNS[pattern]())
    found = nearest_weights(stage.network, stage.plan.layers)
    assert list(found) == [layer.name for layer in stage.plan.layers]
    for layer in stage.plan.layers:
        weight = stage.network.step(layer.name).module.weight.detach()
        # Shifted asymmetric codes of 8 bits would not fit int8.
        expected = search_range(weight, layer.wbits, axis=layer.axis, symmetric=layer.wbits == 8)
        quantized = found[layer.name]
        assert torch.equal(quantized.grid.scale, expected.scale)
        assert torch.equal(quantized.grid.zero_point, expected.zero_point)
        assert quantized.grid.scale.shape == (layer.shape[layer.axis],)
        assert torch.equal(quantized.codes, quantize_codes(weight, expected))
        worst = float((quantized.dequantize() - weight).abs().max())
        assert worst < float(weight.abs().max()) / (2 if layer.wbits == 4 else 32)


def test_excluded_layers_have_no_codes():
    stage = simulated(residual(), exclude=("^conv3$",))
    assert "conv3" not in nearest_weights(stage.network, stage.plan.layers)


# --- activations -------------------------------------------------------------------------------------------------


def test_range_is_searched_where_computing_ops_read():
    """Behind the max pool, not in front of it."""
    stage = simulated(max_pool(), ranges="mse")
    pooled = stage.network.run(stage.data, keep=["maxpool_out"])["maxpool_out"]
    expected = search_range(pooled, 4, low=pooled.amin(), high=pooled.amax())
    # A tensor of this size is searched whole.
    assert float(stage.simulation.activations["relu_out"].scale) == pytest.approx(float(expected.scale), rel=0.02)


def test_range_sees_the_asked_number_of_images_only():
    model = residual()
    data = tensors(model, 32)
    data["input"][16:] *= 100
    _, plan = planned(model)
    stage = simulated(model, data)
    few = activation_grids(stage.network, plan.activations, data, images=16)
    many = activation_grids(stage.network, plan.activations, data, images=32)
    assert all(float(many[name].scale) > 5 * float(few[name].scale) for name in few)


def test_true_extremes_are_kept_beside_a_sample():
    model = residual()
    stage = simulated(model)
    data = {"input": torch.zeros(600, 8, 16, 16)}
    data["input"][123, 4, 5, 6] = 50.0
    data["input"][456, 0, 0, 0] = -20.0
    samplers = sample_activations(stage.network, stage.plan.activations, data, images=600)
    assert (float(samplers["input"].low), float(samplers["input"].high)) == (-20, 50)
    assert sum(part.numel() for part in samplers["input"].parts) < data["input"].numel()


def test_only_the_wanted_quantizers_are_searched():
    stage = simulated(residual())
    found = activation_grids(stage.network, stage.plan.activations, stage.data, images=8, only={"relu1_out"})
    assert list(found) == ["relu1_out"]


def test_grids_have_the_plans_bits_and_one_scale():
    stage = simulated(residual(), abits=3)
    assert set(stage.simulation.activations) == {a.name for a in stage.plan.activations}
    for entry in stage.plan.activations:
        grid = stage.simulation.activations[entry.name]
        assert (grid.bits, grid.axis, grid.symmetric, grid.scale.shape) == (entry.bits, None, False, ())
        if entry.low == 0:
            assert float(grid.zero_point) == 0


def test_each_output_counts_relative_to_its_own_variance():
    scores, boxes = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([0.0, 400.0])
    reference = {"scores": scores, "boxes": boxes}
    # Variances 1 and 200^2: mean squared errors of .04 and 20^2 are .04 and .01.
    outputs = {"scores": scores + 0.2, "boxes": boxes + 20.0}
    assert output_error(outputs, reference) == pytest.approx(np.sqrt((0.04 + 0.01) / 2), rel=1e-5)
    assert output_error(reference, reference) == 0
    # Neither what is added to an output nor its unit of measure changes anything.
    moved, other = ({"scores": x["scores"] + 320, "boxes": x["boxes"] / 640} for x in (reference, outputs))
    assert output_error(other, moved) == pytest.approx(output_error(outputs, reference), rel=1e-3)


def test_constant_outputs_and_those_without_floats_have_an_error_too():
    constant = {"y": torch.full((8, 2), 4.0)}
    assert output_error({"y": torch.full((8, 2), 4.4)}, constant) == pytest.approx(0.1, rel=1e-4)
    assert output_error({"y": torch.full((8, 2), 0.1)}, {"y": torch.zeros(8, 2)}) == pytest.approx(0.1)
    assert output_error({"y": torch.zeros(0, 2)}, {"y": torch.zeros(0, 2)}) == 0
    classes, others = {"top": torch.tensor([0, 900, 3, 3])}, {"top": torch.tensor([0, 1, 3, 3])}
    assert output_error(others, classes) == pytest.approx(0.5)  # a quarter of the values differ, whatever their numbers
    both, wrong = classes | {"y": torch.tensor([1.0, -1.0])}, others | {"y": torch.tensor([1.1, -1.1])}
    assert output_error(wrong, both) == pytest.approx(0.1, rel=1e-4)  # floats decide where there are any


def test_choice_among_norms_is_never_worse_for_the_output_than_the_papers_alone():
    model = residual()
    data = tensors(model, 64)
    # Heavy tails, where the norms disagree.
    data["input"] = data["input"] ** 3
    stage = simulated(model, data, ranges="mse")
    one = stage.simulation.activations
    several = activation_grids(
        stage.network, stage.plan.activations, data, images=64, estimators=RANGES["output"].proposals
    )
    assert any(float(several[name].scale) != float(one[name].scale) for name in one)
    batch = {name: x[:JUDGED_IMAGES] for name, x in data.items()}
    reference = stage.network.run(batch)
    for name in one:
        errors = []
        for grid in (one[name], several[name]):
            simulation = replace(stage.simulation, activations={name: grid})
            hook = simulation.activation_hook()
            fed = {n: hook(n, x) for n, x in batch.items()}
            errors.append(output_error(stage.network.run(fed, activation=hook), reference))
        assert errors[1] <= errors[0] * (1 + 1e-4)


# --- broken values -----------------------------------------------------------------------------------------------


def root() -> onnx.ModelProto:
    """A square root between the layers: NaN wherever the first layer's output is negative."""
    g = Graph()
    x = g.op("Sqrt", [g.conv(g.input(), 8, 8)], "sqrt")
    g.classifier(g.relu(g.conv(x, 8, 8, "conv2"), "relu2"), 8)
    return g.model()


def positive(count: int) -> np.ndarray:
    """Inputs with which :func:`rooted` stays finite."""
    return np.abs(feeds(residual(), count)["input"])


def rooted() -> onnx.ModelProto:
    """:func:`root` with a positive first layer: NaN for negative images alone."""
    model = root()
    for tensor in model.graph.initializer:
        if tensor.name in {"conv.weight", "conv.bias"}:
            tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)), tensor.name))
    return model


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_nan_activations_are_named(tmp_path):
    calib = saved(tmp_path / "calib.npz", **feeds(root(), 16))
    with pytest.raises(MrecgError, match="sqrt_out") as caught:
        quantize(root(), calib, Settings(method="nearest"))
    assert "NaN" in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("image", "method"), [(20, "nearest"), (20, "qdrop"), (70, "qdrop"), (70, "adaround")])
def test_nan_activations_of_a_late_image_are_named(tmp_path, image, method):
    """The first images are compared with ONNX Runtime, the next ones searched, all are learned from."""
    images = positive(80)
    images[image] *= -10
    calib = saved(tmp_path / "calib.npz", input=images)
    with pytest.raises(DataError, match="tensor 'sqrt_out' holds NaN"):
        quantize(rooted(), calib, Settings(method=method, iters=3, equalize="off"))


def test_the_same_model_is_quantized_where_it_stays_finite(tmp_path):
    calib = saved(tmp_path / "calib.npz", input=positive(80))
    assert quantize(rooted(), calib, Settings(method="nearest")).verification.warnings == ()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_weights_are_named(tmp_path, value):
    model = residual()
    for tensor in model.graph.initializer:
        if tensor.name == "conv3.weight":
            array = numpy_helper.to_array(tensor).copy()
            array[1, 2, 0, 0] = value
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    calib = saved(tmp_path / "calib.npz", **feeds(model, 16))
    with pytest.raises(ModelError, match="conv3") as caught:
        quantize(model, calib, Settings(method="nearest"))
    assert "NaN" in str(caught.value) or "Inf" in str(caught.value)


def test_broken_inputs_are_named(tmp_path):
    arrays = feeds(residual(), 16)
    arrays["input"][12, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="input"):
        quantize(residual(), saved(tmp_path / "calib.npz", **arrays), Settings(method="nearest"))


# --- sensitivity -------------------------------------------------------------------------------------------------


def test_planted_bad_quantizer_comes_first():
    stage = simulated(residual())
    for planted in ("relu1_out", "add_relu_out"):
        grids = dict(stage.simulation.activations)
        grids[planted] = Grid(grids[planted].scale * 30, grids[planted].zero_point, 4)
        found = measure_sensitivity(replace(stage.simulation, activations=grids), stage.data)
        assert found[0].name == planted
        assert found[0].error > 2 * found[1].error


def test_every_quantizer_is_measured_alone_and_in_order():
    stage = simulated(residual())
    found = measure_sensitivity(stage.simulation, stage.data)
    assert {s.name for s in found} == {a.name for a in stage.plan.activations}
    assert [s.error for s in found] == sorted((s.error for s in found), reverse=True)
    assert {s.name: s.bits for s in found} == {a.name: a.bits for a in stage.plan.activations}
    assert all(s.error > 0 for s in found)
    # Alone means alone: the float network with just this one.
    for entry in (found[0], next(s for s in found if s.name == "input")):
        hook = stage.simulation.activation_hook({entry.name})
        batch = {n: x[:32] for n, x in stage.data.items()}
        outputs = stage.network.run({n: hook(n, x) for n, x in batch.items()}, activation=hook)
        assert entry.error == pytest.approx(output_error(outputs, stage.network.run(batch)))


def test_four_bits_hurt_more_than_eight():
    stage = simulated(residual())
    found = {s.name: s for s in measure_sensitivity(stage.simulation, stage.data)}
    assert min(s.error for s in found.values() if s.bits == 4) > max(s.error for s in found.values() if s.bits == 8)


def test_measurement_reports_its_progress():
    told = []
    stage = simulated(residual())
    count = len(stage.plan.activations)
    measure_sensitivity(stage.simulation, stage.data, lambda done, total: told.append((done, total)))
    assert told == [(i + 1, count) for i in range(count)]


def protected(tmp_path: Path, number: int) -> QuantizationResult:
    calib = saved(tmp_path / "calib.npz", **feeds(residual(), 64))
    return quantize(residual(), calib, Settings(method="nearest", equalize="off", protect=number))


@pytest.mark.parametrize("number", [1, 2])
def test_protection_raises_the_worst_to_8_bits_and_says_so(tmp_path, number):
    plain, result = protected(tmp_path, 0), protected(tmp_path, number)
    assert plain.sensitivities == ()
    assert plain.protected == ()
    worst = [s.name for s in result.sensitivities if s.bits < 8][:number]
    assert list(result.protected) == worst
    before = {a.name: a for a in plain.plan.activations}
    for entry in result.plan.activations:
        assert entry.protected == (entry.name in worst)
        assert entry.bits == (8 if entry.name in worst else before[entry.name].bits)
    metadata = {p.key: p.value for p in result.model.metadata_props}
    assert json.loads(metadata["mrecg_onnx.protected"]) == worst
    assert all(json.loads(metadata["mrecg_onnx.bits"])[name] == 8 for name in worst)
    report = json.loads(json.dumps(result.to_json()))
    assert report["protected"] == worst
    assert [s["name"] for s in report["sensitivities"]] == [s.name for s in result.sensitivities]
    # In the file there is no Clip on the codes any more, and the scale is that of 8 bits.
    names = {n.name for n in result.model.graph.node}
    scales = [{t.name: numpy_helper.to_array(t) for t in r.model.graph.initializer} for r in (plain, result)]
    for name in worst:
        assert f"{name}_Clip" not in names
        assert scales[1][f"{name}_scale"] < scales[0][f"{name}_scale"] / 4
    assert result.verification.warnings == ()


def test_protecting_more_than_there_are_raises_all(tmp_path):
    result = protected(tmp_path, 99)
    assert {a.bits for a in result.plan.activations} == {8}
    assert len(result.protected) == 4


def test_protected_network_is_closer_to_the_float_one():
    stage = simulated(residual())
    errors = []
    for bits in (4, 8):
        # At 4 bits the noise of the weights would drown that of activations.
        raised = simulated(residual(), wbits=8, abits=bits)
        outputs = raised.simulation.run(raised.data)
        errors.append(output_error(outputs, stage.network.run(stage.data)))
        assert verify(export(raised.graph, raised.simulation, {}), raised.simulation, raised.data).warnings == ()
    assert errors[1] < errors[0]
