"""Learned rounding against the formulas of AdaRound (Nagel et al. 2020, eq. 21-25)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrecg_onnx.quantizers.fake_quantization import fake_quantize, fake_quantize_weight, quantize_codes
from mrecg_onnx.quantizers.range_search import search_range
from mrecg_onnx.quantizers.rounding import GAMMA, ZETA, BetaSchedule, SoftRounding, h, regularizer

NO_DEADLINE = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def rounding(
    seed: int, bits: int, shape: tuple[int, ...] = (5, 3, 3, 3), axis: int = 0
) -> tuple[torch.Tensor, SoftRounding]:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    grid = search_range(weight, bits, axis=axis, symmetric=bits == 8)
    return weight, SoftRounding(weight, grid)


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
    weight, soft = rounding(seed, bits)
    scale, zero = soft.grid.along(4)
    low, high = (soft.grid.qmin - zero) * scale, (soft.grid.qmax - zero) * scale
    # A rest of exactly 0 or 1 has no finite V: V0 stops 1e-4 of a step short of it.
    assert torch.all((soft.soft() - weight.clamp(low, high)).abs() <= 1.1e-4 * scale)


@NO_DEADLINE
@given(seed=SEEDS, bits=st.integers(2, 8))
def test_first_hard_codes_are_rounding_to_nearest(seed, bits):
    weight, soft = rounding(seed, bits)
    assert torch.equal(soft.hard_codes(), quantize_codes(weight, soft.grid))


@NO_DEADLINE
@given(seed=SEEDS, bits=st.integers(2, 8), axis=st.integers(0, 1))
def test_weight_is_rounded_up_where_v_is_not_negative(seed, bits, axis):
    weight, soft = rounding(seed, bits, (6, 8), axis)
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
    weight, soft = rounding(seed, bits)
    with torch.no_grad():
        soft.V.copy_(torch.where(soft.V >= 0, 9.0, -9.0))
    assert torch.allclose(soft.soft(), fake_quantize_weight(soft.hard_codes(), soft.grid), rtol=0, atol=1e-6)
    assert torch.allclose(soft.soft(), fake_quantize(weight, soft.grid), rtol=0, atol=1e-6)
    assert soft.unsettled() == 0


def test_share_of_unsettled_variables():
    _, soft = rounding(0, 4, (4, 5))
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
