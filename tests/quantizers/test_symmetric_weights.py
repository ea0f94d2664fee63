"""Symmetric grids of weights at every width: codes of as many bits, searched and learned like the asymmetric ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.values import BITS, KINDS, SEEDS, values
from hypothesis import given, settings
from hypothesis import strategies as st

from mrecg_onnx.quantizers import (
    ROUNDINGS,
    Grid,
    LatentRounding,
    plain_grid,
    quantize_codes,
    restored_grid,
    search_range,
    search_weight_range,
    weight_codes,
)
from mrecg_onnx.quantizers.grids import grid_from_range

NO_DEADLINE = settings(max_examples=40, deadline=None)


def ends(bits: int) -> tuple[int, int]:
    """Signed codes of ``bits`` bits; those of 8 bits leave -128 out."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if bits < 8 else (-127, 127)


def error(x: torch.Tensor, scale: float, bits: int, p: float) -> float:
    exact = x.double().numpy() / scale
    return float(np.mean(np.abs((np.clip(np.round(exact), *ends(bits)) - exact) * scale) ** p))


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_codes_have_the_range_of_a_signed_integer_but_at_eight_bits(bits):
    symmetric, full = weight_codes(bits, symmetric=True)
    grid = Grid(torch.tensor(1.0), torch.tensor(0.0), bits, symmetric=symmetric, full=full)
    assert (grid.qmin, grid.qmax) == ends(bits)
    assert weight_codes(bits, symmetric=False) == ((True, False) if bits == 8 else (False, False))


@pytest.mark.parametrize(
    ("low", "high", "scale"), [(-8.0, 3.0, 1.0), (-8.0, 14.0, 2.0), (2.0, 7.0, 1.0), (-16.0, 7.0, 2.0)]
)
def test_a_full_range_reaches_one_step_farther_below(low, high, scale):
    found = grid_from_range(torch.tensor(low), torch.tensor(high), 4, symmetric=True, full=True)
    assert [float(t) for t in found] == [scale, 0.0]


@NO_DEADLINE
@given(bits=BITS, kind=KINDS, seed=SEEDS, axis=st.sampled_from([None, 0, 1]), p=st.sampled_from([1.0, 2.0, 2.4]))
def test_search_is_never_worse_than_any_range_that_shrinks(bits, kind, seed, axis, p):
    x = values(kind, seed, (3, 60))
    grid = search_weight_range(x, bits, axis=axis, symmetric=True, p=p)
    assert not grid.zero_point.any()
    codes = quantize_codes(x, grid)
    assert ends(bits)[0] <= float(codes.min()) <= float(codes.max()) <= ends(bits)[1]
    lines = [x] if axis is None else list(x.unbind(axis))
    for line, scale in zip(lines, grid.scale.reshape(-1), strict=True):
        low, top = ends(bits)
        whole = max(float(line.min()) / low, float(line.max()) / top, 1e-16)
        best = min(error(line, whole * (1 - 0.01 * i), bits, p) for i in range(80))
        assert error(line, float(scale), bits, p) <= best * (1 + 1e-3) + 1e-6


@pytest.mark.parametrize("bits", range(2, 8))
def test_the_lowest_code_is_used_and_helps(bits):
    """Never worse than the narrow codes, but for candidates that lie elsewhere; of 2 bits much better."""
    x = values("normal", 3, (16, 400))
    full, narrow = (search_range(x, bits, axis=0, symmetric=True, full=on) for on in (True, False))
    loss = [float((x - quantize_codes(x, g) * g.scale[:, None]).abs().pow(2.4).mean()) for g in (full, narrow)]
    assert loss[0] < loss[1] * (0.9 if bits == 2 else 1.0)
    assert float(quantize_codes(x, full).min()) == full.qmin


@pytest.mark.parametrize("name", sorted(ROUNDINGS))
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, bits=BITS, noise=st.floats(0.0, 5.0))
def test_learned_codes_need_no_bit_more(name, seed, bits, noise):
    weight = values("outliers", seed, (5, 3, 3, 3))
    grid = search_weight_range(weight, bits, axis=0, symmetric=True)
    learned = ROUNDINGS[name](weight, grid)
    assert torch.equal(learned.hard_codes(), quantize_codes(weight, grid))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for variable in learned.variables:
            variable.add_(noise * torch.randn(variable.shape, generator=generator))
    codes = learned.hard_codes()
    assert ends(bits)[0] <= float(codes.min()) <= float(codes.max()) <= ends(bits)[1]
    assert bool((codes == codes.round()).all())
    steps = learned.soft().detach() / grid.scale.view(-1, 1, 1, 1)
    assert ends(bits)[0] - 1e-4 <= float(steps.min()) <= float(steps.max()) <= ends(bits)[1] + 1e-4


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, bits=BITS)
def test_rounding_goes_on_from_symmetric_codes(seed, bits):
    weight = values("normal", seed, (4, 6))
    grid = search_weight_range(weight, bits, axis=0, symmetric=True)
    codes = quantize_codes(weight, grid)
    latent = LatentRounding(weight, codes, grid, 0.25)
    assert torch.equal(latent.hard_codes(), codes)
    with torch.no_grad():
        latent.latent[0, 0], latent.latent[1, 1] = 999.0, -999.0
    latent.confine()
    assert (float(latent.hard_codes()[0, 0]), float(latent.hard_codes()[1, 1])) == ends(bits)[::-1]


@settings(max_examples=20, deadline=None)
@given(bits=BITS, seed=SEEDS)
def test_symmetric_grids_come_back_from_plain_data(bits, seed):
    grid = search_weight_range(values("normal", seed, (3, 40)), bits, axis=0, symmetric=True)
    found = restored_grid(json.loads(json.dumps(plain_grid(grid))), bits=bits, axis=0, channels=3)
    assert torch.equal(found.scale, grid.scale)
    assert (found.qmin, found.qmax, found.full) == (grid.qmin, grid.qmax, bits < 8)


@pytest.mark.parametrize(
    "change", [{"full": 1}, {"full": None}, {"symmetric": False}, {"zero_point": [1.0, 0.0]}], ids=str
)
def test_what_is_no_symmetric_grid_is_refused(change):
    plain = plain_grid(Grid(torch.tensor([0.5, 0.25]), torch.zeros(2), 4, 0, symmetric=True, full=True))
    assert restored_grid(plain, bits=4, axis=0, channels=2).full
    with pytest.raises(ValueError, match=r"codes|grid"):
        restored_grid(plain | change, bits=4, axis=0, channels=2)
