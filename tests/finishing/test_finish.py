"""The network learned together after its units: what it computes, that it gains, that it never makes held-out images worse."""

from __future__ import annotations

import dataclasses

import click
import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import Graph, residual
from helpers.stages import Stage, feeds, simulated, tensors

from mrecg_onnx import Settings, quantize
from mrecg_onnx.commands._options import Steps
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import open_calibration
from mrecg_onnx.finishing import Fitting, finish, whole_network
from mrecg_onnx.finishing.stage import finish_steps
from mrecg_onnx.finishing.whole_network import WholePass, slices, training_bytes
from mrecg_onnx.learning import Masks, Trainable
from mrecg_onnx.machine import Run
from mrecg_onnx.measures import OutputScales, output_sums, task_loss
from mrecg_onnx.planning import Footprint, UnitPlan, graph_inputs
from mrecg_onnx.quantizers import LatentRounding

LOW = {"wbits": 2, "abits": 4, "first_last_bits": 4, "equalize": "off", "range": "mse"}
GIB = 1 << 30


def two_outputs() -> onnx.ModelProto:
    """A trunk with two outputs that are no class scores: maps of different sizes."""
    g = Graph(seed=3)
    x = g.relu(g.conv(g.input(3), 3, 8, "stem"), "stem_relu")
    near = g.conv(x, 8, 4, "near")
    return g.model(near, g.conv(g.relu(g.conv(x, 8, 8, "deep"), "deep_relu"), 8, 4, "far"))


def whole(stage: Stage, most: int | None = None) -> WholePass:
    simulation = stage.simulation
    every = UnitPlan("network", (), tuple(simulation.weights), (), (), 0.0)
    trainable = Trainable(
        every,
        simulation,
        list(simulation.activations),
        learn_scales=True,
        learn_weight_scales=True,
        learn_bias=True,
        rounding=lambda weight, quantized: LatentRounding(weight, quantized.codes, quantized.grid, 0.25),
    )
    answers = stage.network.run(stage.data)
    scales = OutputScales.of(output_sums(answers, answers), answers, stage.data)
    _, sizes = training_bytes(simulation, {n: x[:1] for n, x in stage.data.items()})
    parts = [list(stage.network.steps)] if most is None else slices(simulation, sizes, most)
    masks = Masks(1.0, torch.device("cpu"), torch.Generator())
    return WholePass(simulation=simulation, trainable=trainable, masks=masks, scales=scales, parts=parts)


@pytest.mark.parametrize("model", [residual(), two_outputs()], ids=["residual", "two outputs"])
def test_what_is_trained_is_what_the_file_computes(model):
    stage = simulated(model, **LOW)
    found, wanted = whole(stage).outputs(stage.data), stage.simulation.run(stage.data)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [residual(), two_outputs()], ids=["residual", "two outputs"])
def test_in_parts_gradients_are_the_same(model):
    stage = simulated(model, **LOW)
    answers = {n: x.detach() for n, x in stage.network.run(stage.data).items()}
    gradients = []
    for most in (None, 1):
        one = whole(stage, most)
        assert (len(one.parts) == 1) == (most is None)
        assert [s.node for part in one.parts for s in part] == [s.node for s in stage.network.steps]
        one.loss(dict(stage.data), answers).backward()
        t = one.trainable
        learned = [
            *(r.latent for r in t.rounding.values()),
            *t.log_gain.values(),
            *t.log_ratio.values(),
            *t.shift.values(),
        ]
        gradients.append([x.grad for x in learned])
        assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients[-1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def lesson(tmp_path, model: onnx.ModelProto, count: int = 160, **settings):
    """Stage, data set and settings of a run of the stage alone, after rounding to nearest."""
    given = Settings(**LOW | {"batch_size": 16} | settings)
    stage = simulated(model, tensors(model, count), **LOW)
    np.savez(tmp_path / "calib.npz", **feeds(model, count))
    dataset = open_calibration(
        tmp_path / "calib.npz", graph_inputs(stage.graph), given.preprocess, samples=count, seed=0
    )
    return stage, dataset, given


def error(stage: Stage, model: onnx.ModelProto) -> float:
    """Task loss on images that nobody has seen."""
    fresh = tensors(model, 256, seed=77)
    answers = stage.network.run(fresh)
    return float(task_loss(stage.simulation.run(fresh), {n: x.detach() for n, x in answers.items()}))


@pytest.mark.parametrize("model", [residual(), two_outputs()], ids=["residual", "two outputs"])
def test_the_network_comes_closer_to_the_float_one_on_images_that_nobody_has_seen(tmp_path, model):
    stage, dataset, settings = lesson(tmp_path, model, finish=80)
    before = error(stage, model)
    result = finish(Run(memory=GIB), stage.simulation, dataset, settings, dict)
    assert result is not None
    assert result.kept == "learned"
    assert result.loss < result.loss_nearest
    assert error(stage, model) < 0.9 * before
    assert 0 < result.changed < result.weights


def learned_bytes(tmp_path, **settings) -> tuple[float, list[bytes]]:
    """Loss, codes and scales that a finishing stage ends with."""
    stage, dataset, settings = lesson(tmp_path, residual(), finish=6, **settings)
    result = finish(Run(memory=GIB), stage.simulation, dataset, settings, dict)
    codes = [weight.codes for weight in stage.simulation.weights.values()]
    scales = [grid.scale for grid in stage.simulation.activations.values()]
    return result.loss, [x.numpy().tobytes() for x in (*codes, *scales)]


@pytest.mark.parametrize("together", [96 << 20, 4 * 130_000], ids=["whole batches", "parts of the batch"])
def test_memory_changes_no_digit(tmp_path, monkeypatch, together):
    """It says where the network is cut; how many images go together does the network alone."""
    cut, found = [], []

    def counted(**fields) -> WholePass:
        cut.append(len(fields["parts"]))
        return WholePass(**fields)

    monkeypatch.setattr("mrecg_onnx.finishing.stage.WholePass", counted)
    monkeypatch.setitem(whole_network.TOGETHER, "cpu", together)
    for budget in (GIB, 16 * 130_000, 10**6, 0):
        monkeypatch.setattr(Run, "cache_budget", lambda _, budget=budget: budget)
        found.append(learned_bytes(tmp_path))
    assert cut[0] == 1 < cut[-1]
    assert all(each == found[0] for each in found)


def test_how_many_images_go_together_is_the_networks_alone():
    assert whole_network.images_together(32, None, 1, "cpu") == 32
    assert whole_network.images_together(32, None, 24 << 20, "cpu") == 4
    assert whole_network.images_together(32, None, 1 << 40, "cpu") == 2
    assert whole_network.images_together(32, 8, 5 << 20, "cpu") == 16  # whole batches of a network that wants eight
    assert whole_network.images_together(32, 8, 1 << 40, "cpu") == 8
    assert whole_network.images_together(32, None, 24 << 20, "cuda") == 32


def test_memory_that_a_step_takes_is_asked_for_at_the_start():
    size = Footprint(
        weights=1, inputs=1, tensors=1, unit=1, pair=1, maps=8 << 20
    )  # 20 MiB an image in training: four go together

    def most(**settings) -> int:
        return Fitting(Run(), Settings(device="cpu", method="brecq", **settings), made=False).needs(size).most

    assert most() < 1 << 20
    assert most(finish=5) == most(finish=None) == 6 * 4 * (8 << 20)


def test_what_is_worse_on_held_out_images_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr("mrecg_onnx.finishing.stage.RATE_SCALES", 3.0)
    monkeypatch.setattr("mrecg_onnx.finishing.stage.TRIED", ())
    stage, dataset, settings = lesson(tmp_path, residual(), finish=12)
    stage.simulation.fit_biases()
    before = stage.simulation.state()
    result = finish(Run(memory=GIB), stage.simulation, dataset, settings, dict)
    assert result.kept == "units"
    assert result.final_loss == result.loss_nearest
    after = stage.simulation.state()
    assert after.biases.keys() == before.biases.keys()
    for name, quantized in before.weights.items():
        assert torch.equal(after.weights[name].codes, quantized.codes)
        assert torch.equal(after.weights[name].grid.scale, quantized.grid.scale)
    for name, grid in before.activations.items():
        assert torch.equal(after.activations[name].scale, grid.scale)


def test_rates_that_a_network_does_not_stand_are_lowered(tmp_path, monkeypatch, caplog):
    """From the start again, at half of them each time: what is learned in the end is better than the units' solution."""
    monkeypatch.setattr("mrecg_onnx.finishing.stage.RATE_SCALES", 3.0)
    stage, dataset, settings = lesson(tmp_path, residual(), finish=80)
    with caplog.at_level("INFO", logger="mrecg_onnx.finishing.stage"):
        result = finish(Run(memory=GIB), stage.simulation, dataset, settings, dict)
    lowered = [r.message for r in caplog.records if r.message.endswith("from the start at lower rates")]
    assert lowered
    assert lowered[0].startswith("finishing, step 10 of 80: ")
    assert result.kept == "learned"
    assert result.loss < 0.9 * result.loss_nearest


def test_the_outcome_is_kept_and_taken_up(tmp_path):
    stage, dataset, settings = lesson(tmp_path, residual(), finish=12)
    first = finish(Run(memory=GIB, folder=tmp_path / "kept"), stage.simulation, dataset, settings, dict)
    learned = stage.simulation.state()
    again, dataset, settings = lesson(tmp_path, residual(), finish=12)
    second = finish(Run(memory=GIB, folder=tmp_path / "kept"), again.simulation, dataset, settings, dict)
    assert second == first
    for name, quantized in learned.weights.items():
        assert torch.equal(again.simulation.weights[name].codes, quantized.codes)
    other, dataset, settings = lesson(tmp_path, residual(), finish=6)
    third = finish(Run(memory=GIB, folder=tmp_path / "kept"), other.simulation, dataset, settings, dict)
    assert third.iters == 6


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"method": "nearest", "finish": None}, 0),
        ({"method": "nearest", "finish": 7}, 7),
        ({"method": "brecq", "iters": 500, "finish": None}, 200),
        ({"method": "brecq", "iters": 20000, "finish": None}, 400),
        ({"method": "brecq"}, 0),
        ({"method": "brecq", "wbits": 4, "finish": None}, 0),
        ({"method": "brecq", "wbits": 3, "iters": 100, "finish": None}, 40),
    ],
    ids=str,
)
def test_steps_by_themselves(settings, steps):
    given = LOW | settings
    stage = simulated(residual(), **{k: v for k, v in given.items() if k not in {"method", "iters", "finish"}})
    assert finish_steps(Settings(**given), stage.simulation) == steps


def test_the_file_computes_what_was_learned_and_says_what_came_of_it(tmp_path):
    np.savez(tmp_path / "calib.npz", **feeds(residual(), 96))
    settings = Settings(**LOW | {"method": "brecq", "iters": 20, "finish": 20, "batch_size": 16})
    result = quantize(residual(), tmp_path / "calib.npz", settings)
    assert result.finished is not None
    assert result.finished.iters == 20
    assert result.to_json()["finished"] == dataclasses.asdict(result.finished)
    assert all(output.simulation_db > 80 for output in result.verification.outputs)
    assert "finish" in result.seconds


@pytest.mark.parametrize(("text", "value"), [("auto", None), ("off", 0), ("120", 120)])
def test_the_option_takes_a_number_or_a_word(text, value):
    assert Steps().convert(text, None, None) == value


def test_other_words_and_negative_numbers_are_refused():
    with pytest.raises(click.BadParameter, match="'many' is not a number of steps, auto or off"):
        Steps().convert("many", None, None)
    with pytest.raises(SettingsError, match="finish is -1: it must be 0 or more"):
        Settings(finish=-1)
