"""Rounding that goes on from learned codes: where it starts, what it lets through, where it stays."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mrecg_onnx.quantizers import LatentRounding, quantize_codes, search_range


def latent(bits: int = 3, seed: int = 0, reach: float = 0.25, moved: float = 0.0):
    """Weights, codes of which the share ``moved`` is another than the nearest, and the rounding that starts there."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 6, generator=random)
    grid = search_range(weight, bits, axis=0, symmetric=False)
    codes = quantize_codes(weight, grid)
    other = torch.rand(codes.shape, generator=random) < moved
    codes = torch.where(other, (codes + 1).clamp(grid.qmin, grid.qmax), codes)
    return weight, codes, LatentRounding(weight, codes, grid, reach)


@given(bits=st.integers(2, 8), seed=st.integers(0, 500), reach=st.floats(0, 0.49), moved=st.floats(0, 1))
@hypothesis_settings(max_examples=30, deadline=None)
def test_it_starts_at_the_codes_that_were_learned_whatever_the_float_weight(bits, seed, reach, moved):
    _, codes, rounding = latent(bits, seed, reach, moved)
    assert torch.equal(rounding.hard_codes(), codes)
    _, zero = rounding.grid.along(2)
    offset = rounding.latent.detach() - (codes - zero)
    assert float(offset.abs().max()) <= reach + 1e-4


def test_what_is_computed_with_is_what_the_file_has():
    _, codes, rounding = latent(moved=0.3)
    scale, zero = rounding.grid.along(2)
    torch.testing.assert_close(rounding.soft(), (codes - zero) * scale)


def test_gradients_go_straight_through_where_the_grid_has_ended_too():
    _, _, rounding = latent()
    with torch.no_grad():
        rounding.latent[0, 0] = 100.0
    rounding.soft().sum().backward()
    scale, _ = rounding.grid.along(2)
    torch.testing.assert_close(rounding.latent.grad, scale.expand(4, 6))


def test_weights_beyond_the_grid_are_brought_back_to_its_border_without_another_code():
    _, _, rounding = latent()
    with torch.no_grad():
        rounding.latent[0, 0], rounding.latent[1, 1] = 100.0, -100.0
    before = rounding.hard_codes()
    rounding.confine()
    assert torch.equal(rounding.hard_codes(), before)
    assert before[0, 0] == rounding.grid.qmax
    assert before[1, 1] == rounding.grid.qmin
    with torch.no_grad():
        rounding.latent[0, 0] -= 1.0
    assert rounding.hard_codes()[0, 0] == rounding.grid.qmax - 1


def test_held_weights_have_the_codes_they_are_held_at():
    _, codes, rounding = latent()
    where = torch.zeros(4, 6, dtype=torch.bool)
    where[2] = True
    steps = rounding.steps().clone()
    with torch.no_grad():
        rounding.latent += 1.0
    rounding.hold(where, steps)
    assert torch.equal(rounding.hard_codes()[2], codes[2])
    assert not torch.equal(rounding.hard_codes()[1], codes[1])
    rounding.reopen()
    assert rounding.unsettled() == 0.0
    assert rounding.variables[0] is rounding.latent
