"""Ranges of activations: what is seen of the images, which proposal is taken, and broken values named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import Graph, max_pool, residual
from helpers.stages import feeds, planned, saved, simulated, tensors
from onnx import numpy_helper

from mrecg_onnx.calibrating import activation_ranges
from mrecg_onnx.calibrating.activation_ranges import (
    ADEQUATE,
    FIRST_JUDGED,
    JUDGED_IMAGES,
    MARGINS,
    activation_grids,
    sample_activations,
)
from mrecg_onnx.converters.errors import DataError, ModelError, MrecgError
from mrecg_onnx.measures.output_errors import output_error
from mrecg_onnx.network import Network
from mrecg_onnx.quantization import quantize
from mrecg_onnx.quantizers import Grid, min_max, search_range
from mrecg_onnx.quantizers.ranges import RANGES
from mrecg_onnx.settings import Settings

# --- activations -------------------------------------------------------------------------------------------------


def test_range_is_searched_where_computing_ops_read():
    """Behind the max pool, not in front of it."""
    stage = simulated(max_pool(), range="mse")
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


def test_choice_among_norms_is_never_worse_for_the_output_than_the_papers_alone():
    model = residual()
    data = tensors(model, 64)
    # Heavy tails, where the norms disagree.
    data["input"] = data["input"] ** 3
    stage = simulated(model, data, range="mse")
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


@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_sample_does_not_depend_on_how_many_images_are_run_at_a_time(monkeypatch, size):
    model = residual()
    stage, data = simulated(model), tensors(model, 250)
    expected = sample_activations(stage.network, stage.plan.activations, data, images=230)
    monkeypatch.setattr(activation_ranges, "images_at_once", lambda *_: size)
    found = sample_activations(stage.network, stage.plan.activations, data, images=230)
    for name, sampler in expected.items():
        torch.testing.assert_close(torch.cat(found[name].parts), torch.cat(sampler.parts), rtol=1e-4, atol=1e-5)
        assert float(found[name].low) == pytest.approx(float(sampler.low), rel=1e-4, abs=1e-6)
        assert float(found[name].high) == pytest.approx(float(sampler.high), rel=1e-4, abs=1e-6)
    whole = data["input"][:230].reshape(-1)
    stride = max(1, len(whole) // activation_ranges.SAMPLED_VALUES) | 1
    assert stride > 1
    assert torch.equal(torch.cat(found["input"].parts), whole[::stride])


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 3), (7,)])
@pytest.mark.parametrize("stride", [1, 3, 7])
def test_every_nth_value_is_the_same_in_any_layout(shape, stride):
    x = torch.randn(shape)
    expected = x.reshape(-1)[2::stride]
    other = x.movedim(0, -1).contiguous().movedim(-1, 0)
    for value in (x, other):
        assert torch.equal(activation_ranges._every(value, 2, stride), expected)


# --- proposals in a race -----------------------------------------------------------------------------------------


def proposals(*shares: float):
    """Estimators of the whole range shrunk to ``shares`` of it."""
    return [lambda x, bits, low, high, s=s: min_max(x, bits, low * s, high * s) for s in shares]


def raced(monkeypatch, bits: int, *shares: float) -> tuple[Grid, list[int]]:
    """The grid of the first layer's output, and the images of each run of what is behind it, on :data:`JUDGED_IMAGES`."""
    stage = simulated(residual(), abits=bits, range="mse")
    run, sizes = Network.run, []

    def counted(self, values, steps=None, **options):
        if steps is not None and len(steps) > 1 and "relu1_out" in values:
            sizes.append(len(values["relu1_out"]))
        return run(self, values, steps, **options)

    monkeypatch.setattr(Network, "run", counted)
    estimators = proposals(*shares)
    options = {"images": 32, "only": {"relu1_out"}, "estimators": estimators}
    grid = activation_grids(stage.network, stage.plan.activations, stage.data, **options)["relu1_out"]
    return grid, sizes


def test_proposal_far_behind_is_judged_on_the_first_images_only(monkeypatch):
    good, sizes = raced(monkeypatch, 4, 0.9, 0.05)
    assert sizes == [FIRST_JUDGED, FIRST_JUDGED]
    assert good.scale == raced(monkeypatch, 4, 0.05, 0.9)[0].scale


def test_proposals_side_by_side_are_judged_on_all_images(monkeypatch):
    assert max(MARGINS) > 0.25
    sizes = raced(monkeypatch, 4, 0.9, 0.85)[1]
    assert sizes[:2] == [FIRST_JUDGED, FIRST_JUDGED]
    assert sum(sizes) == 2 * JUDGED_IMAGES


def test_widest_proposal_stays_for_what_only_a_late_image_has(monkeypatch):
    """The first images show what narrow ranges gain in rounding, and nothing of what they cut off."""
    model = residual()
    stage, data = simulated(model, range="mse"), tensors(model, 32)
    data["input"][1] *= 100  # image 0, 4, 8 and 12 are the first
    found = {}
    for margins in (MARGINS, (1e9, 1e9, 1e9)):
        monkeypatch.setattr(activation_ranges, "MARGINS", margins)
        options = {"images": 32, "only": {"input"}, "estimators": proposals(0.01, 0.02, 1.0)}
        found[margins] = activation_grids(stage.network, stage.plan.activations, data, **options)["input"].scale
    assert len(set(map(float, found.values()))) == 1


def test_first_proposal_that_does_well_enough_has_no_rivals(monkeypatch):
    first, sizes = raced(monkeypatch, 8, 0.95, 1.0)
    assert sizes == [FIRST_JUDGED]
    assert first.scale < raced(monkeypatch, 8, 1.0)[0].scale
    monkeypatch.setattr(activation_ranges, "ADEQUATE", ADEQUATE / 1e6)
    assert len(raced(monkeypatch, 8, 0.95, 1.0)[1]) > 1


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
