"""The table of learned roundings: one interface, codes inside the grid, gradients straight through, each worth its time."""

from __future__ import annotations

import pytest
import torch
from helpers.learned import activation_scales, codes, distance, results
from hypothesis import given, settings
from hypothesis import strategies as st

from mrecg_onnx.commands._options import unused_options
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.methods import METHODS
from mrecg_onnx.quantization import method_of
from mrecg_onnx.quantizers.fake_quantization import fake_quantize_weight, quantize_codes
from mrecg_onnx.quantizers.range_search import search_range
from mrecg_onnx.quantizers.rounding import ANNEALS, ROUNDINGS, BetaSchedule, FlexRounding, StraightRounding
from mrecg_onnx.settings import Settings

NO_DEADLINE = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
FREE = st.sampled_from([FlexRounding, StraightRounding])
NAMES = sorted(ROUNDINGS)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    return results(tmp_path_factory.mktemp("roundings"))


def rounding(name, seed: int, bits: int, shape: tuple[int, ...] = (5, 3, 3, 3), axis: int = 0):
    kind = ROUNDINGS[name] if isinstance(name, str) else name
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    grid = search_range(weight, bits, axis=axis, symmetric=bits == 8)
    return weight, kind(weight, grid)


def disturb(learned, seed: int, amount: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for variable in learned.variables:
            variable.add_(amount * torch.randn(variable.shape, generator=generator))


# --- the table ---------------------------------------------------------------------------------------------------


def test_settings_and_rows_know_the_same_names():
    assert [Settings(rounding=name).rounding for name in NAMES] == NAMES
    assert {row.rounding for row in METHODS.values()} <= set(ROUNDINGS)
    assert {row.anneal for row in METHODS.values()} <= set(ANNEALS)
    for field in ("rounding", "anneal"):
        with pytest.raises(SettingsError, match=f"{field} is 'other'"):
            Settings(**{field: "other"})


@pytest.mark.parametrize("name", NAMES)
def test_settings_replace_what_the_row_says(name):
    assert method_of(Settings(method="brecq", rounding=name)).rounding == name
    assert method_of(Settings(method="mrecg", rounding=name)).rounding == name
    assert method_of(Settings(method="adaquant")).rounding == "ste"
    assert method_of(Settings(method="adaround", anneal="cosine")).anneal == "cosine"


@NO_DEADLINE
@given(name=st.sampled_from(NAMES), seed=SEEDS, bits=st.integers(2, 8), amount=st.sampled_from([0.0, 0.1, 3.0]))
def test_codes_are_integers_inside_the_grid(name, seed, bits, amount):
    _, learned = rounding(name, seed, bits)
    disturb(learned, seed + 1, amount)
    made = learned.hard_codes()
    assert torch.equal(made, made.round())
    assert learned.grid.qmin <= float(made.min()) <= float(made.max()) <= learned.grid.qmax
    assert 0.0 <= learned.unsettled() <= 1.0


@NO_DEADLINE
@given(name=st.sampled_from(NAMES), seed=SEEDS, bits=st.integers(2, 8), axis=st.integers(0, 1))
def test_first_codes_are_rounding_to_nearest(name, seed, bits, axis):
    weight, learned = rounding(name, seed, bits, (6, 8), axis)
    assert torch.equal(learned.hard_codes(), quantize_codes(weight, learned.grid))


@NO_DEADLINE
@given(kind=FREE, seed=SEEDS, bits=st.integers(2, 8))
def test_soft_weight_starts_within_half_a_step_of_the_float_weight_inside_the_grid(kind, seed, bits):
    weight, learned = rounding(kind, seed, bits)
    scale, zero = learned.grid.along(4)
    low, high = (learned.grid.qmin - zero) * scale, (learned.grid.qmax - zero) * scale
    assert torch.all((learned.soft() - weight.clamp(low, high)).abs() <= 0.5001 * scale)


@NO_DEADLINE
@given(kind=FREE, seed=SEEDS, bits=st.integers(2, 8), amount=st.sampled_from([0.0, 0.2, 2.0]))
def test_what_is_learned_from_is_what_is_written(kind, seed, bits, amount):
    _, learned = rounding(kind, seed, bits)
    disturb(learned, seed + 1, amount)
    assert torch.allclose(learned.soft(), fake_quantize_weight(learned.hard_codes(), learned.grid), rtol=0, atol=1e-6)
    assert learned.unsettled() == 0


# --- gradients ---------------------------------------------------------------------------------------------------


def inside(learned) -> torch.Tensor:
    scale, zero = learned.grid.along(4)
    codes = learned.ratio.detach().round() + zero
    return (codes >= learned.grid.qmin) & (codes <= learned.grid.qmax), scale


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_straight_through_gradient_is_one_step_inside_the_grid_and_nothing_outside(bits):
    _, learned = rounding("ste", 3, bits)
    learned.soft().sum().backward()
    kept, scale = inside(learned)
    assert torch.equal(learned.ratio.grad, torch.where(kept, scale, torch.zeros(())).expand_as(learned.ratio))
    assert bits > 2 or not kept.all()


@pytest.mark.parametrize("bits", [2, 4])
def test_gradient_of_a_divisor_grows_with_its_weight(bits):
    weight, learned = rounding("flexround", 3, bits)
    learned.soft().sum().backward()
    expected = torch.where(inside(learned)[0], -weight, torch.zeros(()))
    assert torch.allclose(learned.log_element.grad, expected, atol=1e-6)
    assert torch.allclose(learned.log_channel.grad.flatten(), expected.sum((1, 2, 3)), atol=1e-5)


def test_divisor_keeps_the_sign_of_a_weight():
    weight, learned = rounding("flexround", 0, 8)
    disturb(learned, 1, 1.0)
    assert torch.all(learned.soft().detach() * weight >= 0)


# --- beta --------------------------------------------------------------------------------------------------------


def test_cosine_falls_late_and_early_slowly():
    linear, cosine = BetaSchedule(1000), BetaSchedule(1000, anneal="cosine")
    assert cosine(199) is None
    assert cosine(200) == 20
    assert cosine(999) == pytest.approx(2)
    assert cosine(600) == pytest.approx(linear(600), abs=0.1)
    assert cosine(400) > linear(400) + 1
    assert cosine(800) < linear(800) - 1


# --- whole runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_beats_rounding_to_nearest_and_the_file_computes_it(quantized, name):
    result = quantized("brecq", rounding=name)
    assert distance(result.model) > distance(quantized("nearest").model) + 2
    assert result.verification.warnings == ()
    assert result.verification.sqnr_db > 60
    assert any(unit.kept == "learned" for unit in result.units)


@pytest.mark.parametrize("name", ["flexround", "ste"])
def test_same_seed_same_file(quantized, tmp_path, name):
    chosen = {"rounding": name, "iters": 15}
    again = results(tmp_path)("brecq", **chosen)
    assert again.model.SerializeToString() == quantized("brecq", **chosen).model.SerializeToString()


def test_roundings_differ_in_nothing_else(quantized):
    made = [quantized("brecq", rounding=name) for name in NAMES]
    assert len({tuple(u.layers for u in r.units) for r in made}) == 1
    assert len({tuple(sorted(activation_scales(r))) for r in made}) == 1
    first, second = codes(made[0]), codes(made[1])
    assert any((first[name] != second[name]).any() for name in first)


def test_adaround_anneals_as_it_is_told(quantized):
    linear, cosine = (quantized("adaround", anneal=shape) for shape in ("linear", "cosine"))
    nearest = distance(quantized("nearest").model)
    assert all(distance(r.model) > nearest + 2 for r in (linear, cosine))
    assert linear.model.SerializeToString() != cosine.model.SerializeToString()


# --- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "given", "named"),
    [
        ({"method": "nearest"}, ["rounding", "anneal", "loss", "allocation"], ["--rounding", "--anneal", "--loss"]),
        ({"method": "nearest", "bias_correction": True}, ["augment", "bias_correction"], []),
        ({"method": "adaquant"}, ["anneal", "rounding"], ["--anneal"]),
        ({"method": "brecq", "rounding": "flexround"}, ["anneal", "rounding"], ["--anneal"]),
        ({"method": "adaround", "anneal": "cosine"}, ["anneal"], []),
        ({"method": "brecq-paper", "loss": "fisher"}, ["loss", "drop", "rounding"], ["--drop"]),
    ],
    ids=str,
)
def test_options_without_a_use_are_named(settings, given, named):
    sentences = unused_options(Settings(**settings), given)
    assert [sentence.split()[0] for sentence in sentences] == named
