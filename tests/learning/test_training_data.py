"""What units are trained on: shares of the images, gradients of the task loss, and where quantizers act."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.architectures import Graph, residual
from helpers.stages import Stage, simulated, tensors

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.data import InputSpec, Preprocess
from mrecg_onnx.learning import Prefix, prefix
from mrecg_onnx.learning.prefix import Inputs
from mrecg_onnx.machine import Pool, Store
from mrecg_onnx.quantizers import fake_quantize

COUNT = 7


def stage_of(build=residual, **settings) -> Stage:
    chosen = {"wbits": 3, "abits": 3, "first_last_bits": 3} | settings
    return simulated(build(), tensors(build(), COUNT), **chosen)


def inputs_of(stage: Stage) -> Inputs:
    grids = stage.simulation.activations
    floating = {n: Store.of(x) for n, x in stage.data.items()}
    return Inputs(floating, {n: Store.of(x, grids[n]) for n, x in stage.data.items()}, COUNT)


def prefix_of(stage: Stage, **options) -> Prefix:
    chosen = {"quantize_activations": True} | options
    return Prefix(stage.simulation, stage.plan.units, inputs_of(stage), Pool(), **chosen)


@pytest.fixture(params=[1, 3, 5, 100])
def size(request, monkeypatch) -> int:
    """Images that go forward at a time."""
    monkeypatch.setattr(prefix, "forward_size", lambda *_: request.param)
    return request.param


# --- shares ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "share", "held"), [(20, 0.25, 5), (10, 0.0, 0), (10, 0.16, 2), (3, 0.1, 0)])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_share_of_the_images_is_held_out_and_no_copy_of_them_is_learned_from(count, share, held, copies):
    training, judged = Inputs({}, {}, count * copies, copies).split(share, seed=0)
    assert len(judged) == held
    assert all(i % copies == 0 for i in judged.tolist())
    left_out = [i + k for i in judged.tolist() for k in range(copies)]
    assert sorted([*training.tolist(), *left_out]) == list(range(count * copies))
    again = Inputs({}, {}, count * copies, copies).split(share, seed=0)
    assert torch.equal(training, again[0])
    assert not torch.equal(training, Inputs({}, {}, count * copies, copies).split(share, seed=1)[0])


class Folder:
    """Images in batches of three, as a data set hands them out."""

    def __init__(self, images: torch.Tensor, layout: str) -> None:
        self.images, self.preprocess = images.numpy(), Preprocess(layout=layout)
        self.inputs = [InputSpec("input", (None, *images.shape[1:]), np.dtype(np.float32))]

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int):
        for start in range(0, len(self.images), 3):
            part = self.images[start : start + 3]
            yield {"input": part}, range(start, start + len(part))


@pytest.mark.parametrize(("layout", "axis"), [("nchw", 3), ("nhwc", 2)])
@pytest.mark.parametrize("flip", [True, False])
def test_images_are_read_with_their_mirror_images_along_the_width(layout, axis, flip):
    images = torch.randn(7, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    simulation = stage_of().simulation
    read = Inputs.read(
        Folder(images, layout), simulation, Pool(), quantize_activations=False, augment="flip" if flip else "none"
    )
    assert (read.count, read.copies) == ((14, 2) if flip else (7, 1))
    found = read.floating["input"].read(0, 99)
    assert len(read.floating["input"]) == read.count
    torch.testing.assert_close(found[:: read.copies], images, rtol=2e-3, atol=2e-3)
    if flip:
        torch.testing.assert_close(found[1::2], images.flip(axis), rtol=2e-3, atol=2e-3)
    assert read.quantized["input"] is read.floating["input"]


# --- values ------------------------------------------------------------------------------------------------------


def test_every_sample_is_advanced_whatever_goes_forward_at_a_time(size):
    stage = stage_of()
    made = prefix_of(stage)
    unit = stage.plan.units[0]
    (name,) = unit.outputs
    targets = made.targets(unit)
    wanted = stage.network.run(stage.data, keep=[name])[name]
    torch.testing.assert_close(targets[name].read(0, 99), wanted, rtol=2e-3, atol=2e-3)
    batches = list(made.batches(unit))
    assert [len(quantized["input"]) for _, quantized in batches] == [
        min(size, COUNT - start) for start in range(0, COUNT, size)
    ]
    read = torch.cat([quantized["input"] for _, quantized in batches])
    torch.testing.assert_close(read, fake_quantize(stage.data["input"], stage.simulation.activations["input"]))
    made.advance(unit, targets)
    assert torch.equal(made.floating[name].read(0, 99), targets[name].read(0, 99))
    quantized = stage.simulation.run(stage.data, keep=[name])[name]
    torch.testing.assert_close(made.quantized[name].read(0, 99), quantized, rtol=1e-5, atol=1e-5)


def test_float_inputs_are_the_float_networks_all_the_way():
    stage = stage_of()
    made = prefix_of(stage, float_inputs=True)
    unit = stage.plan.units[0]
    assert made.quantized["input"] is made.floating["input"]
    targets = made.targets(unit)
    made.advance(unit, targets)
    (name,) = unit.outputs
    assert made.quantized[name] is made.floating[name] is targets[name]
    assert "input" not in made.quantized


def test_output_without_a_row_for_each_image_is_refused():
    g = Graph()
    x = g.relu(g.conv(g.input(4, size=4), 4, 4))
    g.op("ReduceMean", [g.conv(x, 4, 4, "conv2")], "mean", "output", axes=[0], keepdims=1)
    stage = simulated(g.model(), tensors(g.model(), COUNT))
    made = prefix_of(stage)
    *before, last = stage.plan.units
    for unit in before:
        made.advance(unit, made.targets(unit))
    with pytest.raises(ModelError, match="needs the batch in the first dimension"):
        made.targets(last)


# --- scales that belong to the reader ----------------------------------------------------------------------------


def test_quantizers_between_units_belong_to_the_unit_that_reads_first():
    stage = stage_of()
    made = prefix_of(stage, input_scales=True)
    units = stage.plan.units
    (between,) = units[0].outputs
    assert between in made.deferred
    assert "input" not in made.deferred
    assert prefix_of(stage).deferred == frozenset()
    assert prefix_of(stage, input_scales=True, quantize_activations=False).deferred == frozenset()
    targets = made.targets(units[0])
    training, held_out = torch.arange(5), torch.arange(5, 7)
    first = made.data(units[0], targets, training, held_out)
    assert first.entries == ()
    assert torch.equal(first.training, training)
    assert torch.equal(first.held_out, held_out)
    made.advance(units[0], targets)
    # It is kept as it is before its quantizer.
    raw = stage.simulation.run(stage.data, keep=[between], deferred=made.deferred)[between]
    torch.testing.assert_close(made.quantized[between].read(0, 99), raw, rtol=2e-3, atol=2e-3)
    second = made.data(units[1], made.targets(units[1]), training, held_out)
    assert second.entries == (between,)
    assert second.deferred == made.deferred


# --- gradients ---------------------------------------------------------------------------------------------------


def by_hand(stage: Stage, unit, image: int) -> torch.Tensor:
    """|dL/dz| of one image: quantized up to the unit's output z, float behind."""
    (name,) = unit.outputs
    network = stage.network
    x = {n: v[image : image + 1] for n, v in stage.data.items()}
    z = stage.simulation.run(x, keep=[name])[name].detach().requires_grad_()
    nodes = [n for later in stage.plan.units[stage.plan.units.index(unit) + 1 :] for n in later.nodes]
    made = network.run({**x, name: z}, network.part(nodes), keep=["output"])["output"]
    with torch.no_grad():
        wanted = network.run(x)["output"]
    if made.dim() == 2:
        logs, aims = made.log_softmax(1), wanted.log_softmax(1)
        loss = (aims.exp() * (aims - logs)).sum()
    else:
        whole = network.run(stage.data)["output"]
        loss = (made - wanted).square().mean() / whole.var(unbiased=False)
    loss.backward()
    return z.grad.abs()


def image_to_image():
    """Two units and an output that is no class score."""
    g = Graph()
    x = g.relu(g.conv(g.input(4, size=6), 4, 6, "conv1"), "relu1")
    y = g.relu(g.conv(x, 6, 6, "conv2"), "relu2")
    x = g.relu(g.op("Add", [g.conv(y, 6, 6, "conv3"), x], "add"), "relu3")
    g.conv(x, 6, 4, "conv4", output="output")
    return g.model()


@pytest.mark.parametrize("build", [residual, image_to_image])
def test_gradients_are_those_of_each_image_alone(build, size):
    stage = stage_of(build)
    made = prefix_of(stage)
    unit = stage.plan.units[0]
    assert len(stage.plan.units) > 1
    (name,) = unit.outputs
    found = made.gradients(unit, made.targets(unit))[name].read(0, 99)
    assert len(found) == COUNT
    for image in range(COUNT):
        expected = by_hand(stage, unit, image)
        distance = float((found[image] - expected[0]).norm() / expected.norm())
        assert distance < 0.02, f"image {image}"


def test_gradient_at_the_networks_own_output_is_that_of_the_loss():
    stage = stage_of()
    made = prefix_of(stage)
    made.output_scales()
    for unit in stage.plan.units[:-1]:
        made.advance(unit, made.targets(unit))
    last = stage.plan.units[-1]
    found = made.gradients(last, made.targets(last))["output"].read(0, 99)
    scores = stage.simulation.run(
        {n: made.quantized[n].read(0, 99) for n in last.inputs}, made.steps(last), keep=["output"]
    )["output"]
    wanted = stage.network.run(stage.data)["output"]
    # d KL / d score = softmax(scores) - softmax(reference)
    expected = (scores.softmax(1) - wanted.softmax(1)).abs()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=2e-3 * float(expected.max()))


def test_output_scales_are_those_of_all_images(monkeypatch):
    stage = stage_of(image_to_image)
    monkeypatch.setattr(prefix, "WHOLE", 2)
    made = prefix_of(stage)
    expected = float(stage.network.run(stage.data)["output"].var(unbiased=False))
    assert made.output_scales().signal["output"] == pytest.approx(expected, rel=1e-3)
    assert made.output_scales() is made.output_scales()
    assert math.isfinite(expected)
