"""The search for ranges: never worse than plain loops over what it chooses from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from helpers.values import BITS, KINDS, SEEDS, values
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mrecg_onnx.quantizers import range_search
from mrecg_onnx.quantizers.fake_quantization import fake_quantize, quantize_codes
from mrecg_onnx.quantizers.grids import EPSILON, grid_from_range
from mrecg_onnx.quantizers.range_search import (
    P_NORM,
    PER_CHANNEL_CANDIDATES,
    PER_TENSOR_CANDIDATES,
    _Search,
    _summaries,
    search_range,
)

if TYPE_CHECKING:
    from torch import Tensor

NO_DEADLINE = settings(max_examples=40, deadline=None)


def error(x: Tensor, scale: float, zero: float, bits: int, p: float = 2.4, *, symmetric: bool = False) -> float:
    """Mean |x - Q(x)|^p in float64."""
    top = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    values, scale = x.double().numpy().ravel(), float(scale)
    codes = np.clip(np.round(values / scale) + float(zero), -top if symmetric else 0, top)
    return float(np.mean(np.abs((codes - float(zero)) * scale - values) ** p))


def shrunk_together(x: Tensor, bits: int, candidates: int, p: float = 2.4, *, symmetric: bool = False) -> float:
    """Least error of the ranges whose ends shrink together (docs/method.md 1), as a loop."""
    top = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    least, most = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    found = []
    for i in range(candidates):
        low, high = least * (1 - 0.01 * i), most * (1 - 0.01 * i)
        scale = max(max(-low, high) / top if symmetric else (high - low) / top, EPSILON)
        zero = 0.0 if symmetric else min(max(np.round(-low / scale), 0), top)
        found.append(error(x, scale, zero, bits, p, symmetric=symmetric))
    return min(found)


def all_pairs(x: Tensor, bits: int, p: float = 2.4, steps: int = 100) -> float:
    """Least error over scales of 6 to 100 % and all zero points, as QDrop's observer tries them."""
    full = (max(float(x.max()), 0.0) - min(float(x.min()), 0.0)) / (2**bits - 1)
    scales = [full * i / steps for i in range(6, steps + 1)]
    return min(error(x, scale, zero, bits, p) for scale in scales for zero in range(2**bits))


NORMS = st.sampled_from([1.0, 1.5, 2.0, 2.4, 4.0])
#: What float32 leaves of values around 1 that are on the grid.
NOISE = 1e-6


@NO_DEADLINE
@given(bits=BITS, symmetric=st.booleans(), kind=KINDS, seed=SEEDS, p=NORMS)
def test_range_search_is_never_worse_than_ends_that_shrink_together(bits, symmetric, kind, seed, p):
    x = values(kind, seed, (7, 41))
    grid = search_range(x, bits, symmetric=symmetric, p=p)
    assert grid.scale.shape == grid.zero_point.shape == ()
    assert (grid.bits, grid.axis, grid.symmetric) == (bits, None, symmetric)
    found = error(x, grid.scale, grid.zero_point, bits, p, symmetric=symmetric)
    before = shrunk_together(x, bits, PER_TENSOR_CANDIDATES, p, symmetric=symmetric)
    assert found <= before * (1 + 1e-3) + NOISE
    if symmetric or kind in {"positive", "negative", "constant"}:
        # The zero point is given: there is nothing else to try.
        assert found == pytest.approx(before, rel=1e-3, abs=NOISE)


@settings(max_examples=15, deadline=None)
@given(bits=st.integers(2, 8), kind=KINDS, seed=SEEDS, p=NORMS)
@example(bits=5, kind="positive", seed=94145682, p=1.0)
def test_summaries_of_many_values_find_what_the_values_do(bits, kind, seed, p):
    x = values(kind, seed, (30_000,))
    grid = search_range(x, bits, p=p)
    before = shrunk_together(x, bits, PER_TENSOR_CANDIDATES, p)
    # p = 1 has narrow valleys, which a summary's bins pass over.
    assert error(x, grid.scale, grid.zero_point, bits, p) <= before * (1 + (5e-3 if p == 1 else 1e-3)) + NOISE


@settings(max_examples=15, deadline=None)
@given(bits=st.integers(2, 5), kind=KINDS, seed=SEEDS, p=st.sampled_from([1.0, 2.4]), size=st.sampled_from([60, 3000]))
def test_search_from_coarse_to_fine_is_as_good_as_trying_all_pairs(bits, kind, seed, p, size):
    x = values(kind, seed, (size,))
    grid = search_range(x, bits, p=p)
    # The steps of both nets differ: on few values, where the error is ragged, by more, and so has p = 1 narrow valleys.
    assert (
        error(x, grid.scale, grid.zero_point, bits, p) <= all_pairs(x, bits, p) * (1.03 if size > 1000 else 1.1) + NOISE
    )


@NO_DEADLINE
@given(bits=BITS, symmetric=st.booleans(), kind=KINDS, seed=SEEDS, axis=st.integers(0, 2))
def test_range_search_per_channel_is_the_search_of_each_channel(bits, symmetric, kind, seed, axis):
    # Channels of very different size and both kinds of sign: each has to make its own choice.
    x = (values(kind, seed, (3, 4, 25)) * torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1)).movedim(0, axis)
    x.select(axis, 1).abs_()
    grid = search_range(x, bits, axis=axis, symmetric=symmetric)
    assert grid.scale.shape == grid.zero_point.shape == (3,)
    for channel in range(3):
        alone = search_range(x.select(axis, channel), bits, symmetric=symmetric, candidates=PER_CHANNEL_CANDIDATES)
        found, expected = (
            error(x.select(axis, channel), s, z, bits, symmetric=symmetric)
            for s, z in ((grid.scale[channel], grid.zero_point[channel]), (alone.scale, alone.zero_point))
        )
        # Of grids that float32 cannot tell apart either may be taken.
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("function", "spread"),
    [(torch.nn.functional.silu, 2.5), (torch.nn.functional.hardswish, 3.0), (torch.nn.functional.gelu, 1.7)],
)
def test_small_negative_lobe_is_kept_at_four_bits(function, spread):
    """Ends that shrink together round the zero point of the whole range to 0, and everything below is cut."""
    x = function(spread * values("normal", 0, (100_000,)))
    assert float(grid_from_range(x.amin(), x.amax(), 4, symmetric=False)[1]) == 0
    grid = search_range(x, 4, p=1.0)
    assert float(grid.zero_point) >= 1
    assert error(x, grid.scale, grid.zero_point, 4, 1.0) < 0.99 * shrunk_together(x, 4, PER_TENSOR_CANDIDATES, 1.0)


def test_ends_are_cut_apart_where_tails_differ():
    x = values("normal", 0, (20_000,)) + 1
    grid = search_range(x, 4)
    low, high = -grid.zero_point * grid.scale, (15 - grid.zero_point) * grid.scale
    # Together they would keep the ratio of the minimum to the maximum.
    assert 0 < float(-low / high) < 0.8 * float(-x.amin() / x.amax())
    assert error(x, grid.scale, grid.zero_point, 4) < 0.9 * shrunk_together(x, 4, PER_TENSOR_CANDIDATES)


def test_whole_range_has_the_better_of_both_zero_points():
    x = torch.tensor([-0.4] * 50 + [1.0, 10.0])
    whole = search_range(x, 4, candidates=1)
    assert float(whole.scale) == pytest.approx(10.4 / 15)
    assert float(whole.zero_point) == 1  # -0.4 / 0.69 is nearer to -1 than to 0


@pytest.mark.parametrize("axis", [None, 0])
def test_large_tensor_is_searched_a_few_candidates_at_a_time(axis):
    base = values("outliers", 0, (4, 5_000))
    # Copies change no mean, but from 4 million values on each candidate is taken alone.
    large, small = search_range(base.repeat(1, 210), 4, axis=axis), search_range(base, 4, axis=axis)
    for channel in range(1 if axis is None else 4):
        part = base if axis is None else base[channel]
        found = [error(part, *(t.reshape(-1)[channel] for t in (g.scale, g.zero_point)), 4) for g in (large, small)]
        assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_true_range_of_a_sample_is_what_shrinks():
    sample = values("normal", 0, (1000,)).clamp(-1, 1)
    low, high = torch.tensor(-2.0), torch.tensor(2.0)
    whole = search_range(sample, 8, low=low, high=high, candidates=1)
    assert float(whole.scale) == pytest.approx(4 / 255)
    free = search_range(sample, 8, low=low, high=high)
    assert float(free.scale) == pytest.approx(2 / 255, rel=0.03)


def test_outlier_is_clipped_at_few_bits_and_kept_at_eight():
    x = torch.cat([values("normal", 0, (10_000,)), torch.tensor([8.0])])
    clipped, kept = search_range(x, 3), search_range(x, 8)
    assert float(fake_quantize(x, clipped)[-1]) < 5
    assert float(fake_quantize(x, kept)[-1]) > 7


@NO_DEADLINE
@given(bits=BITS, symmetric=st.booleans(), kind=KINDS, seed=SEEDS)
def test_zero_has_a_code_of_its_own(bits, symmetric, kind, seed):
    grid = search_range(values(kind, seed, (4, 30)), bits, axis=0, symmetric=symmetric)
    zeros = torch.zeros(4, 3)
    assert torch.equal(quantize_codes(zeros, grid), grid.zero_point[:, None].expand(4, 3))
    assert not fake_quantize(zeros, grid).any()
    assert torch.equal(grid.zero_point, grid.zero_point.round())
    assert ((grid.zero_point >= 0) & (grid.zero_point <= 2**bits - 1)).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_tensor_of_zeros_has_a_grid(symmetric):
    grid = search_range(torch.zeros(3, 5), 4, axis=0, symmetric=symmetric)
    assert torch.equal(grid.scale, torch.full((3,), EPSILON))
    assert not fake_quantize(torch.zeros(3, 5), grid).any()


def test_ranges_shrink_to_a_twentieth_per_tensor_and_to_a_fifth_per_channel():
    """In steps of a hundredth: 95 of them per tensor and 80 per channel, as MQBench's observers have it."""
    assert (P_NORM, PER_TENSOR_CANDIDATES, PER_CHANNEL_CANDIDATES) == (2.4, 95, 80)
    for least, options in ((0.06, {}), (0.21, {"axis": 0}), (0.91, {"candidates": 10})):
        # All but one value are on the smallest grid, so that none loses less.
        x = torch.cat([torch.full((200_000,), least / 3), torch.tensor([1.0])])[None]
        assert float(search_range(x, 2, **options).scale) == pytest.approx(least / 3, rel=1e-5)
    x = torch.cat([torch.full((200_000,), 0.06), torch.tensor([-1.0])])
    assert float(search_range(x, 2, symmetric=True).scale) == pytest.approx(0.06, rel=1e-5)


def test_error_without_an_exponent_is_that_of_2_4():
    x = values("outliers", 5, (4000,))
    assert search_range(x, 3).scale == search_range(x, 3, p=2.4).scale
    assert search_range(x, 3).scale != search_range(x, 3, p=3.0).scale


@pytest.mark.parametrize("p", [1.0, 2.0, 2.4, 0.5])
def test_errors_are_the_mean_powers_of_the_distance_in_steps_of_the_whole_range(p):
    x = values("normal", 0, (2, 50))
    low, high = x.amin(1), x.amax(1)
    search = _Search([(x, None)], 3, symmetric=False, p=p, low=low, high=high)
    scale = torch.stack([(high - low) / 7, (high - low) / 9, (high - low) / 20])
    zero = torch.tensor([[3.0, 4.0], [2.0, 2.0], [5.0, 0.0]])
    found = search.errors(scale, zero, level=-1)
    for k in range(3):
        for c in range(2):
            whole = float((high[c] - low[c]) / 7)
            expected = error(x[c], scale[k, c], zero[k, c], 3, p) / whole**p
            assert float(found[k, c]) == pytest.approx(expected, rel=1e-4)


def test_zero_points_of_use_leave_no_code_idle_and_none_lacking():
    """At a scale of 1: 2 below 0 and 4 above fit 3 bits with zero points of 2 or 3; at half of it codes lack at both ends."""
    x = torch.tensor([[-2.0, 0.3, 4.0]])
    search = _Search([(x, None)], 3, symmetric=False, p=2.0, low=torch.tensor([-2.0]), high=torch.tensor([4.0]))
    assert [t.tolist() for t in search.bounds(torch.tensor([[1.0]]))] == [[[2.0]], [[3.0]]]
    assert [t.tolist() for t in search.bounds(torch.tensor([[0.5]]))] == [[[0.0]], [[4.0]]]
    assert [t.tolist() for t in search.bounds(torch.tensor([[0.9]]))] == [[[2.0]], [[3.0]]]
    assert search.bounds(torch.tensor([[100.0]]))[1].tolist() == [[6.0]]
    scale, zero = search.zero_points(torch.tensor([[1.0]]))
    assert (scale.tolist(), zero.tolist()) == ([[1.0], [1.0]], [[2.0], [3.0]])
    assert search.free.tolist() == [True]
    for low, high, symmetric in ((0.0, 4.0, False), (-2.0, 0.0, False), (-2.0, 4.0, True)):
        other = _Search([(x, None)], 3, symmetric=symmetric, p=2.0, low=torch.tensor([low]), high=torch.tensor([high]))
        assert other.free.tolist() == [False]


def test_summary_keeps_the_sum_and_the_share_of_all_values():
    x = torch.stack([values("outliers", 0, (5000,)), values("positive", 1, (5000,))])
    found = _summaries(x, (256, 1024, 4096))
    assert [tuple(means.shape) for means, _ in found][:2] == [(2, 256), (2, 1024)]
    assert len(found) == 2  # a third of all values would save little
    for means, share in found:
        torch.testing.assert_close(share.sum(1), torch.ones(2))
        torch.testing.assert_close((means * share).sum(1), x.mean(1), rtol=1e-4, atol=1e-5)
        assert (share >= 0).all()
        for row, weights, own in zip(means, share, x, strict=True):
            used = row[weights > 0]
            assert torch.equal(used, used.sort().values)
            assert float(own.min()) <= float(used[0])
            assert float(used[-1]) <= float(own.max())
            # Half of the borders stand equally far apart: no mean is of values farther from each other than that.
            order = own.sort().values
            spread = float(order[-1] - order[0]) / (len(row) // 2 + 1)
            nearest = (order[:, None] - used[None]).abs().amin(1).max()
            assert float(nearest) <= 1.01 * spread
    assert _summaries(x[:, :500], (256,)) == []
    assert len(_summaries(x[:, :512], (256,))) == 1


def test_values_are_summed_up_once_for_all_norms_and_again_when_they_have_changed(monkeypatch):
    calls = []

    def counting(*arguments):
        calls.append(len(arguments[0]))
        return _summaries(*arguments)

    monkeypatch.setattr(range_search, "_summaries", counting)
    x, other = values("outliers", 0, (50_000,)), values("normal", 1, (50_000,))
    fresh = [search_range(x.clone(), 4, p=p) for p in (2.4, 1.0, 2.0)]
    calls.clear()
    found = [search_range(x, 4, p=p) for p in (2.4, 1.0, 2.0)]
    assert len(calls) == 1
    assert [g.scale for g in found] == [g.scale for g in fresh]
    search_range(x, 3)
    search_range(other, 3)
    search_range(x, 3)
    assert len(calls) == 4
    x.mul_(2)
    twice = search_range(x, 3)
    assert len(calls) == 5
    assert float(twice.scale) == pytest.approx(
        2 * float(search_range(values("outliers", 0, (50_000,)), 3).scale), rel=1e-5
    )
