"""Reconstruction of one unit: what is learned, at which rates, what is kept and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
import torch
from helpers.architectures import Graph
from helpers.one_unit import data_of, single, stage_of
from helpers.stages import Stage, simulated

from mrecg_onnx.learning import reconstruct_unit, reconstruction
from mrecg_onnx.learning.losses import output_weights
from mrecg_onnx.learning.rates import LearningRates, default_rates
from mrecg_onnx.machine import ALONE
from mrecg_onnx.progress import UnitResult
from mrecg_onnx.quantizers.rounding import SoftRounding


def two_sizes():
    """Layers of 576 and 64 weights."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8, "large"), "between")
    g.relu(g.conv(x, 8, 8, "small", kernel=1), "last", output="output")
    return g.model()


def learned(stage: Stage, unit=None, **more) -> UnitResult:
    ticks = count(10.0, 3.5)
    options = {
        "iters": 60,
        "batch_size": 4,
        "rates": default_rates(60),
        "keep_quantized": 1.0,
        "learn_scales": True,
        "learn_weight_scales": True,
        "learn_bias": True,
        "rounding_weight": 0.01,
        "knee": None,
        "window": 0,
        "seed": 0,
        "clock": lambda: next(ticks),
    }
    unit = unit or stage.plan.units[0]
    return reconstruct_unit(unit, stage.simulation, more.pop("data", None) or data_of(stage, unit), **(options | more))


def smooth_stage(wbits: int = 2) -> Stage:
    """Images of a few even areas: of noise nothing is learned that rounding to nearest has not."""
    areas = torch.rand(24, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(areas, size=(16, 16))
    return simulated(single(), {"input": images}, wbits=wbits, abits=4, first_last_bits=wbits)


@pytest.fixture
def spied(monkeypatch) -> list[tuple]:
    """What the loop is given instead of being run."""
    seen: list[tuple] = []
    monkeypatch.setattr(reconstruction, "learn", lambda *args: seen.append(args))
    return seen


def test_a_learned_unit_is_better_and_says_so():
    stage = smooth_stage()
    before = stage.simulation.state()
    unit = stage.plan.units[0]
    result = learned(stage)
    assert (result.name, result.layers, result.iters, result.kept) == (unit.name, unit.layers, 60, "learned")
    assert result.loss < 0.9 * result.loss_nearest
    assert result.seconds == 3.5
    assert 0 <= result.unsettled <= 1
    after = stage.simulation.state()
    assert not torch.equal(before.weights["conv"].codes, after.weights["conv"].codes)
    assert not torch.equal(before.weights["conv"].grid.scale, after.weights["conv"].grid.scale)
    assert before.activations["output"].scale != after.activations["output"].scale
    assert before.activations["input"] is after.activations["input"]
    assert not torch.equal(after.biases["conv"], stage.network.step("conv").module.bias)


@pytest.mark.parametrize("options", [{"learn_scales": False}, {"keep_quantized": None}])
def test_scales_of_activations_stay_where_they_are_not_learned(options):
    stage = smooth_stage()
    before = dict(stage.simulation.activations)
    assert learned(stage, **options).kept == "learned"
    assert all(stage.simulation.activations[name] is grid for name, grid in before.items())


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ("no layers", {}),
        ("no layers", {"rounding": None}),
        ("no weights", {}),
        ("", {"rounding": None, "learn_scales": False}),
        ("", {"rounding": None, "keep_quantized": None}),
    ],
)
def test_unit_with_nothing_to_learn_is_judged_and_left(change, options, spied):
    stage = stage_of(single)
    unit = stage.plan.units[0]
    if change == "no layers":
        unit = replace(unit, layers=())
    if change == "no weights":
        stage.simulation.weights.clear()
    before = stage.simulation.state()
    result = learned(stage, unit, **options)
    assert spied == []
    assert result == UnitResult(
        unit.name, unit.layers, 0, result.loss_nearest, result.loss_nearest, "nearest", 0.0, 3.5
    )
    assert result.loss_nearest > 0
    assert stage.simulation.state() == before


def test_without_roundings_scales_are_learned_alone():
    stage = smooth_stage(wbits=8)
    wide = stage.simulation.activations["output"]
    stage.simulation.activations["output"] = replace(wide, scale=1.5 * wide.scale)
    before = stage.simulation.state()
    result = learned(stage, rounding=None)
    assert (result.iters, result.kept, result.unsettled) == (60, "learned", 0.0)
    after = stage.simulation.state()
    assert after.weights["conv"] is before.weights["conv"]
    assert after.biases == before.biases
    assert after.activations["output"].scale != before.activations["output"].scale


@pytest.mark.parametrize(("rounding", "rate", "decays"), [("adaround", 0.3, False), ("flexround", 0.03, True)])
def test_rates_are_those_of_the_rounding_and_of_scales(rounding, rate, decays, spied):
    stage = stage_of(two_sizes)
    rates = LearningRates(0.3, 0.07)
    learned(stage, rates=rates, rounding=rounding)
    ((loop, groups, windows, iters, batch_size, _, beta, workers, report, parts),) = spied
    assert parts == 1
    first, second = groups
    assert (first.rate, first.decays) == (pytest.approx(rate), decays)
    assert (second.rate, second.decays) == (0.07, True)
    trainable = loop.trainable
    assert [id(p) for p in first.params] == [id(v) for r in trainable.rounding.values() for v in r.variables]
    others = (trainable.log_ratio, trainable.shift, trainable.log_gain)
    assert {id(p) for p in second.params} == {id(v) for table in others for v in table.values()}
    assert (windows, iters, batch_size, workers, report) == (None, 60, 4, ALONE, None)
    assert (beta(11), beta(12)) == (None, 20.0)
    spied.clear()
    learned(stage, learn_scales=False, learn_weight_scales=False, learn_bias=False)
    assert len(spied[0][1]) == 1
    spied.clear()
    learned(stage, rounding=None)
    assert [group.rate for group in spied[0][1]] == [default_rates(60).scale]


@pytest.mark.parametrize(("keep", "probability"), [(None, 1.0), (1.0, 1.0), (0.5, 0.5)])
def test_the_loop_is_what_was_asked_for(keep, probability, spied):
    stage = stage_of(single)
    learned(stage, keep_quantized=keep, knee=0.5)
    loop = spied[0][0]
    assert loop.masks.probability == probability
    assert loop.quantize_activations == (keep is not None)
    assert (loop.power, loop.rounding_weight) == (2.0, 0.01)
    (deviation,) = (store.read(0, 99).std(unbiased=False) for store in loop.data.targets.values())
    assert loop.knees == {"output": pytest.approx(0.5 * float(deviation), rel=1e-3)}
    assert loop.weights == output_weights(loop.data.targets, 2.0, ALONE) == {"output": 1.0}
    assert all(not t.requires_grad for t in loop.trainable.log_ratio.values()) == (keep is None)


def test_windows_are_cut_where_maps_are_large(spied):
    stage = stage_of(single)
    learned(stage, window=8)
    plan = spied[0][2]
    assert (plan.size, plan.whole, plan.source, plan.stride, plan.halo) == ((8, 8), (16, 16), (16, 16), 1, 2)


def test_undecided_variables_are_counted_over_all_layers(spied, monkeypatch):
    stage = stage_of(two_sizes)
    monkeypatch.setattr(SoftRounding, "unsettled", lambda self: 0.75 if self.V.numel() == 64 else 0.25)
    result = learned(stage)
    assert result.unsettled == pytest.approx((576 * 0.25 + 64 * 0.75) / 640)
    assert result.layers == ("large", "small")


def test_held_out_images_judge_and_those_that_are_learned_from_where_there_are_none(spied):
    stage = stage_of(single, count=12)
    unit = stage.plan.units[0]
    own = data_of(stage, unit)
    judged = learned(stage, data=own).loss_nearest
    swapped = learned(stage, data=replace(own, training=own.held_out, held_out=own.training)).loss_nearest
    none = learned(stage, data=replace(own, held_out=torch.arange(0))).loss_nearest
    assert judged != swapped
    assert none == pytest.approx(swapped)


# --- rounds ------------------------------------------------------------------------------------------------------


def test_rounds_have_rates_of_their_length_and_end_when_the_loss_has_settled(spied, monkeypatch):
    losses = iter([5.0, 4.0, 3.0, 2.99, 2.98, 2.97])
    monkeypatch.setattr(reconstruction.Judge, "offer", lambda judge: setattr(judge, "best", next(losses)) or judge.best)
    result = learned(smooth_stage(), iters=1000, rates=default_rates(1000), stop=True)
    assert [call[3] for call in spied] == [125] * 5
    assert result.iters == 625
    for call in spied:
        assert [group.rate for group in call[1]] == pytest.approx(
            [default_rates(125).rounding, default_rates(125).scale]
        )
        assert call[6].iters == 125


def test_rates_that_were_chosen_grow_alike_in_rounds(spied, monkeypatch):
    monkeypatch.setattr(reconstruction.Judge, "offer", lambda judge: setattr(judge, "best", 1.0) or 1.0)
    chosen = default_rates(1000)
    learned(smooth_stage(), iters=1000, rates=LearningRates(2 * chosen.rounding, 3 * chosen.scale), stop=True)
    assert [group.rate for group in spied[0][1]] == pytest.approx(
        [2 * default_rates(125).rounding, 3 * default_rates(125).scale]
    )


def test_without_stop_there_is_one_round(spied):
    assert learned(smooth_stage(), iters=1000, rates=default_rates(1000)).iters == 1000
    assert [call[3] for call in spied] == [1000]


def test_rounds_are_told_as_one_run():
    told = []
    result = learned(smooth_stage(), iters=250, stop=True, report=lambda step, loss: told.append((step, loss)))
    assert result.iters == 250
    assert [step for step, _ in told] == sorted({*range(10, 125, 10), 125, *range(135, 250, 10), 250})


def test_another_round_lowers_the_loss():
    once, twice = (learned(smooth_stage(), iters=n, rates=default_rates(n), stop=True) for n in (125, 250))
    assert twice.loss <= once.loss
