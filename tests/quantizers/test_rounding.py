"""Learned roundings: AdaRound against its formulas (Nagel et al. 2020, eq. 21-25), and the table of all behind one interface."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrecg_onnx.quantizers.fake_quantization import fake_quantize, fake_quantize_weight, quantize_codes
from mrecg_onnx.quantizers.grids import Grid
from mrecg_onnx.quantizers.range_search import search_range
from mrecg_onnx.quantizers.rounding import (
    GAMMA,
    ROUNDINGS,
    ZETA,
    BetaSchedule,
    FlexRounding,
    SoftRounding,
    StraightRounding,
    h,
    regularizer,
)

NO_DEADLINE = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
FREE = st.sampled_from([FlexRounding, StraightRounding])
NAMES = sorted(ROUNDINGS)


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


# --- h and the regularizer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("v", [-8.0, -2.0, -0.3, 0.0, 0.7, 2.0, 8.0])
def test_h_is_the_stretched_and_clipped_sigmoid(v):
    expected = min(max((1 / (1 + math.exp(-v))) * (ZETA - GAMMA) + GAMMA, 0.0), 1.0)
    assert float(h(torch.tensor(v))) == pytest.approx(expected, abs=1e-6)


def test_h_reaches_its_ends():
    # sigmoid(V) * 1.2 - 0.1 is 0 at V = -log 11 and 1 at V = log 11.
    ends = torch.tensor([-10.0, -math.log(11) - 1e-3, 0.0, math.log(11) + 1e-3, 10.0])
    assert h(ends).tolist() == [0, 0, 0.5, 1, 1]


def test_stretch_is_the_published_one():
    assert (ZETA, GAMMA) == (1.1, -0.1)


@pytest.mark.parametrize("beta", [2.0, 7.5, 20.0])
def test_regularizer_is_the_sum_of_eq_24(beta):
    V = torch.linspace(-4, 4, 41)
    expected = sum(1 - abs(2 * min(max(1.2 / (1 + math.exp(-v)) - 0.1, 0), 1) - 1) ** beta for v in V.tolist())
    assert float(regularizer(V, beta)) == pytest.approx(expected, rel=1e-5)


def test_regularizer_is_the_number_of_undecided_variables_at_its_worst_and_0_when_all_are_settled():
    assert float(regularizer(torch.zeros(3, 7), 4.0)) == 21
    assert float(regularizer(torch.tensor([-9.0, 9.0]), 2.0)) == 0


def test_regularizer_pushes_away_from_the_middle():
    V = torch.tensor([-0.5, 0.5], requires_grad=True)
    regularizer(V, 2.0).backward()
    # Descent moves V against its gradient: the lower one down, the upper one up.
    assert float(V.grad[0]) > 0 > float(V.grad[1])


# --- the soft and the hard weight --------------------------------------------------------------------------------


@NO_DEADLINE
@given(seed=SEEDS, bits=st.integers(2, 8))
def test_soft_weight_starts_as_the_float_weight_inside_the_grid(seed, bits):
    weight, soft = rounding("adaround", seed, bits)
    scale, zero = soft.grid.along(4)
    low, high = (soft.grid.qmin - zero) * scale, (soft.grid.qmax - zero) * scale
    # A rest of exactly 0 or 1 has no finite V: V0 stops 1e-4 of a step short of it.
    assert torch.all((soft.soft() - weight.clamp(low, high)).abs() <= 1.1e-4 * scale)


@NO_DEADLINE
@given(seed=SEEDS, bits=st.integers(2, 8))
def test_first_hard_codes_are_rounding_to_nearest(seed, bits):
    weight, soft = rounding("adaround", seed, bits)
    assert torch.equal(soft.hard_codes(), quantize_codes(weight, soft.grid))


@NO_DEADLINE
@given(seed=SEEDS, bits=st.integers(2, 8), axis=st.integers(0, 1))
def test_weight_is_rounded_up_where_v_is_not_negative(seed, bits, axis):
    weight, soft = rounding("adaround", seed, bits, (6, 8), axis)
    with torch.no_grad():
        soft.V.copy_(torch.randn(soft.V.shape, generator=torch.Generator().manual_seed(seed + 1)))
        soft.V[0, 0] = 0.0
    scale, zero = soft.grid.along(2)
    whole = torch.floor(weight / scale)
    expected = torch.where(soft.V >= 0, whole + 1, whole) + zero
    codes = soft.hard_codes()
    assert torch.equal(codes, expected.clamp(soft.grid.qmin, soft.grid.qmax))
    assert torch.equal(codes, codes.round())


@NO_DEADLINE
@given(seed=SEEDS, bits=st.integers(2, 8))
def test_settled_soft_weight_is_the_hard_one(seed, bits):
    weight, soft = rounding("adaround", seed, bits)
    with torch.no_grad():
        soft.V.copy_(torch.where(soft.V >= 0, 9.0, -9.0))
    assert torch.allclose(soft.soft(), fake_quantize_weight(soft.hard_codes(), soft.grid), rtol=0, atol=1e-6)
    assert torch.allclose(soft.soft(), fake_quantize(weight, soft.grid), rtol=0, atol=1e-6)
    assert soft.unsettled() == 0


def test_share_of_unsettled_variables():
    _, soft = rounding("adaround", 0, 4, (4, 5))
    with torch.no_grad():
        soft.V.fill_(9.0)
        soft.V[0] = 0.0
    assert soft.unsettled() == pytest.approx(0.25)


def test_weights_far_outside_the_grid_learn_nothing():
    weight = torch.tensor([[-5.0, -0.4, 0.1, 0.3, 5.0]])
    grid = search_range(weight.clamp(-0.5, 0.5), 2, axis=0)
    soft = SoftRounding(weight, grid)
    soft.soft().sum().backward()
    assert soft.V.grad[0, [0, 4]].tolist() == [0, 0]
    assert float(soft.V.grad[0, 2].abs()) > 0
    codes = soft.hard_codes()
    assert (float(codes.min()), float(codes.max())) == (0, 3)


@pytest.mark.parametrize("beta", [2.0, 7.5, 20.0])
def test_beta_may_be_a_number_or_a_tensor(beta):
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3)
    grid = search_range(weight, 4, axis=0)
    slopes = []
    for value in (beta, torch.tensor(beta)):
        rounding = SoftRounding(weight, grid)
        (rounding.soft(value, 0.01) ** 2).sum().backward()
        slopes.append(rounding.V.grad)
    torch.testing.assert_close(*slopes)


# --- the table ---------------------------------------------------------------------------------------------------


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


def double_rounding(bits: int = 3, seed: int = 0) -> SoftRounding:
    """AdaRound in float64, V where h is not at its ends; weights inside the grid, on its ends and beyond."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    grid = search_range(weight, bits, axis=0)
    # The search leaves few weights beyond the ends: these are.
    learned = SoftRounding(weight * 1.5, Grid(grid.scale.double(), grid.zero_point.double(), bits, 0))
    with torch.no_grad():
        learned.V.copy_(4 * torch.rand(4, 6, generator=generator, dtype=torch.float64) - 2)
    return learned


def formula(learned: SoftRounding, weight: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    """AdaRound, eq. 22: s (clip(floor(W / s) + h(V) + z, n, p) - z)."""
    scale, zero = learned.grid.along(weight.dim())
    rounded = torch.floor(weight / scale) + (torch.sigmoid(V) * (1.1 + 0.1) - 0.1).clamp(0, 1) + zero
    return scale * (rounded.clamp(learned.grid.qmin, learned.grid.qmax) - zero)


def test_fused_soft_weight_passes_gradcheck():
    learned = double_rounding()

    def soft(V: torch.Tensor) -> torch.Tensor:
        learned.V = V
        return learned.soft()

    assert torch.autograd.gradcheck(soft, (learned.V.detach().clone().requires_grad_(),))


@pytest.mark.parametrize("weight_of_it", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("beta", [None, 2.0, 7.5, 20.0])
def test_fused_gradient_is_plain_autograds_of_the_soft_weight_and_the_regularizer(beta, weight_of_it):
    generator = torch.Generator().manual_seed(0)
    weight = 1.5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    learned = double_rounding()
    with torch.no_grad():
        learned.V[0, :4] = torch.tensor([-9.0, 9.0, -2.3, 2.3])  # where h is flat: log(11) is 2.398
        learned.V[1, 0] = 0.0
    slope = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    V = learned.V.detach().clone().requires_grad_()
    fused = learned.soft(beta, weight_of_it)
    (fused * slope).sum().backward()
    plain = formula(learned, weight, V)
    loss = (plain * slope).sum()
    if beta is not None:
        u = 2 * (torch.sigmoid(V) * 1.2 - 0.1).clamp(0, 1) - 1
        loss = loss + weight_of_it * (1 - u.abs() ** beta).sum()
    loss.backward()
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(learned.V.grad, V.grad, rtol=1e-9, atol=1e-12)
    assert learned.V.grad[0, :2].tolist() == [0, 0]


def test_without_a_weight_the_regularizer_has_no_gradient():
    slopes = []
    for options in ((None,), (2.0,), (2.0, 0.0)):
        learned = double_rounding()
        learned.soft(*options).sum().backward()
        slopes.append(learned.V.grad)
    assert torch.equal(slopes[0], slopes[1])
    assert torch.equal(slopes[0], slopes[2])


def test_first_variables_stop_a_ten_thousandth_of_a_step_before_a_whole_number():
    grid = Grid(torch.tensor([1.0]), torch.tensor([4.0]), 4, 0)
    rest = torch.tensor([[0.0, 1e-5, 0.25, 0.5, 0.99999]])
    learned = SoftRounding(2 + rest.double(), Grid(grid.scale.double(), grid.zero_point.double(), 4, 0))
    expected = torch.tensor([[1e-4, 1e-4, 0.25, 0.5, 1 - 1e-4]], dtype=torch.float64)
    torch.testing.assert_close(h(learned.V), expected, atol=1e-8, rtol=0)
    torch.testing.assert_close(learned.soft(), 2 + expected, atol=1e-8, rtol=0)


def test_weight_on_the_last_code_goes_nowhere_and_one_step_below_it_goes_up():
    grid = Grid(torch.tensor([0.5]), torch.tensor([2.0]), 2, 0)  # codes 0..3 stand for -1, -0.5, 0 and 0.5
    learned = SoftRounding(torch.tensor([[-1.2, -1.0, -0.3, 0.2, 0.5, 0.9]]), grid)
    with torch.no_grad():
        learned.V.zero_()  # halfway
    assert learned.soft().tolist() == [[-1.0, -0.75, -0.25, 0.25, 0.5, 0.5]]
    assert learned.hard_codes().tolist() == [[0.0, 1.0, 2.0, 3.0, 3.0, 3.0]]


def test_channels_with_fewer_bits_end_at_their_own_largest_code():
    grid = Grid(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.0]), 4, 0, ceiling=torch.tensor([3.0, 15.0]))
    learned = SoftRounding(torch.tensor([[1.2, 1.4, 9.0], [1.2, 1.4, 9.0]]), grid)
    with torch.no_grad():
        learned.V.fill_(9.0)
    assert learned.hard_codes().tolist() == [[3.0, 3.0, 3.0], [3.0, 3.0, 15.0]]
    assert learned.soft().tolist() == [[1.5, 1.5, 1.5], [1.5, 1.5, 7.5]]


def test_undecided_are_those_between_a_twentieth_and_the_rest_of_it():
    learned = double_rounding()
    value = torch.tensor([0.0, 0.04, 0.06, 0.5, 0.94, 0.96]).double().expand(4, 6)
    with torch.no_grad():
        learned.V.copy_(torch.log((value + 0.1) / (1.1 - value)))
    assert learned.unsettled() == pytest.approx(0.5)


def test_rates_of_the_table():
    assert {name: (kind.rate, kind.decays) for name, kind in ROUNDINGS.items()} == {
        "adaround": (1.0, False),
        "flexround": (0.1, True),
        "ste": (0.1, True),
    }


@pytest.mark.parametrize("name", ["ste", "flexround"])
def test_free_weights_end_at_the_ends_of_the_grid(name):
    grid = Grid(torch.tensor([0.5]), torch.tensor([1.0]), 2, 0)
    learned = ROUNDINGS[name](torch.tensor([[-3.0, -0.5, 0.3, 1.0, 4.0]]), grid)
    assert learned.hard_codes().tolist() == [[0.0, 0.0, 2.0, 3.0, 3.0]]
    assert learned.soft().tolist() == [[-0.5, -0.5, 0.5, 1.0, 1.0]]


# --- beta --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iters", [50, 1000, 20000])
def test_beta_is_off_in_the_warmup_then_falls_in_a_line_from_20_to_2(iters):
    beta = BetaSchedule(iters)
    begin = iters // 5
    assert all(beta(step) is None for step in (0, 1, begin - 1))
    assert beta(begin) == 20
    assert beta(iters - 1) == pytest.approx(2)
    found = [beta(step) for step in range(begin, iters)]
    differences = torch.tensor(found).diff()
    assert torch.allclose(differences, torch.full_like(differences, -18 / (iters - 1 - begin)), atol=1e-4)


def test_beta_of_the_shortest_runs_stays_between_its_ends():
    for iters in range(1, 6):
        found = [b for step in range(iters) if (b := BetaSchedule(iters)(step)) is not None]
        assert all(2 <= b <= 20 for b in found)


def test_cosine_falls_late_and_early_slowly():
    linear, cosine = BetaSchedule(1000), BetaSchedule(1000, anneal="cosine")
    assert cosine(199) is None
    assert cosine(200) == 20
    assert cosine(999) == pytest.approx(2)
    assert cosine(600) == pytest.approx(linear(600), abs=0.1)
    assert cosine(400) > linear(400) + 1
    assert cosine(800) < linear(800) - 1


def test_beta_of_a_known_schedule():
    beta = BetaSchedule(101, warmup=0.1, start=12.0, end=4.0)
    # The warm-up is 10.1 iterations, what is left of 100 is 89.9.
    assert beta(10) is None
    assert beta(11) == pytest.approx(12 - 8 * 0.9 / 89.9)
    assert beta(100) == pytest.approx(4.0)
    assert beta(200) == pytest.approx(4.0)
    cosine = BetaSchedule(101, warmup=0.0, anneal="cosine")
    assert cosine(25) == pytest.approx(2 + 18 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert BetaSchedule(1, warmup=0.0)(0) == 20.0
    assert BetaSchedule(3, warmup=0.0)(1) == pytest.approx(11.0)


def test_a_decision_that_is_opened_leans_the_same_way_and_learns_again():
    weight = torch.linspace(-0.7, 0.65, 60).view(6, 10)
    grid = Grid(torch.full((6,), 0.1), torch.full((6,), 8.0), 4, axis=0)
    soft = SoftRounding(weight, grid)
    with torch.no_grad():
        soft.V.mul_(100.0)
    codes, leaning = soft.hard_codes(), soft.V.detach().clone()
    soft.soft().sum().backward()
    assert (soft.V.grad[leaning.abs() > 3] == 0).all()
    soft.reopen()
    assert torch.equal(soft.hard_codes(), codes)
    assert soft.V.abs().max() <= 1.5
    assert torch.equal(soft.V[leaning.abs() < 1.5], leaning[leaning.abs() < 1.5])
    soft.V.grad = None
    soft.soft().sum().backward()
    assert (soft.V.grad > 0).all()


@pytest.mark.parametrize("name", ["flexround", "ste"])
def test_weights_that_move_freely_have_nothing_to_open(name):
    rounding = ROUNDINGS[name](
        torch.linspace(-1, 1, 12).view(3, 4), Grid(torch.full((3,), 0.1), torch.full((3,), 8.0), 4, axis=0)
    )
    before = [v.detach().clone() for v in rounding.variables]
    rounding.reopen()
    assert all(torch.equal(a, b) for a, b in zip(before, rounding.variables, strict=True))
