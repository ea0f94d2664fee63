"""Mixed reconstruction granularity: capacities (Eq. 3), and the choice of merges (Eq. 4 and the signed rule)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from helpers.architectures import residual
from helpers.chains import blocks
from helpers.stages import planned
from hypothesis import given, settings
from hypothesis import strategies as st

from mrecg_onnx.planning.granularity import (
    MAX_GROUP,
    default_merges,
    groups_from_mask,
    module_capacity,
    select_eq4,
    select_peaks,
)
from mrecg_onnx.planning.plan import LayerPlan, UnitPlan

#: Loss of BRECQ on MobileNetV2 by block, features.1 to features.17 (Ma et al. 2023, read off the figure), and behind them the
#: classifier's unit, which takes part in no merge.
PUBLISHED_LOSSES = [1.0, 1.5, 7.0, 4.0, 5.1, 7.4, 5.2, 7.4, 8.1, 9.4, 7.2, 10.0, 14.6, 6.8, 10.9, 16.7, 10.7, 12.0]
PUBLISHED_MERGES = [(2, 3), (5, 6), (9, 10), (12, 13), (15, 16)]

CAPACITIES = st.lists(st.integers(0, 50).map(float), min_size=3, max_size=9)


def layer(name: str, shape: tuple[int, ...], stride: tuple[int, ...] = (1, 1), wbits: int = 4) -> LayerPlan:
    params = 1
    for size in shape:
        params *= size
    return LayerPlan(name, "Conv", f"{name}.w", None, shape, 0, stride, 1, params, None, wbits, "x", "y", 4)


def unit(index: int, inputs: tuple[str, ...] | None = None) -> UnitPlan:
    reads = (f"t{index}",) if inputs is None else inputs
    return UnitPlan(f"u{index}", (f"n{index}",), (f"l{index}",), reads, (f"t{index + 1}",), 1.0)


def pairs(mask: list[bool]) -> list[tuple[int, int]]:
    return [(i, i + 1) for i, joined in enumerate(mask) if joined]


# --- Eq. 3 -------------------------------------------------------------------------------------------------------


def test_capacity_is_params_times_bits_and_alpha_at_stride_2():
    plain, strided = layer("a", (8, 4, 3, 3)), layer("b", (8, 8, 3, 3), (2, 2))
    assert module_capacity([plain], 1.6) == 288 * 4
    assert module_capacity([strided], 1.6) == pytest.approx(576 * 4 * 1.6)
    assert module_capacity([plain, strided], 0.5) == pytest.approx(288 * 4 + 576 * 4 * 0.5)
    assert module_capacity([replace(plain, wbits=8)], 1.6) == 288 * 8
    assert module_capacity([], 1.6) == 0


def test_capacity_counts_one_strided_axis_and_layers_without_a_stride():
    assert module_capacity([layer("a", (4, 4, 1, 3), (1, 2))], 2.0) == 48 * 4 * 2
    assert module_capacity([replace(layer("fc", (10, 16)), op="Gemm", stride=())], 2.0) == 160 * 4


def test_capacities_of_a_plan():
    _, plan = planned(residual(), alpha=2.0)
    # stem at 8 bits; block of two 3x3; block of a strided 3x3 (8 to 16), 3x3 and a strided 1x1; fc at 8 bits.
    expected = [576 * 8, 2 * 576 * 4, 1152 * 4 * 2 + 2304 * 4 + 128 * 4 * 2, 160 * 8]
    assert [u.capacity for u in plan.units] == expected


# --- Eq. 4 -------------------------------------------------------------------------------------------------------


def objective(mask: list[bool] | tuple[bool, ...], capacities: list[float], k: int, penalty: float) -> float:
    gain = sum((a - b) ** 2 for m, a, b in zip(mask, capacities, capacities[1:], strict=False) if m)
    return gain - penalty * (sum(mask) - k) ** 2


def allowed_masks(count: int, forbidden: set[int]) -> list[tuple[bool, ...]]:
    """Every mask that leaves stem and classifier alone and joins at most three units."""
    found = []
    for mask in itertools.product([False, True], repeat=count - 1):
        if mask[0] or mask[-1] or any(mask[i] for i in forbidden):
            continue
        if all(len(group) <= MAX_GROUP for group in groups_from_mask(mask)):
            found.append(mask)
    return found


@settings(max_examples=60, deadline=None)
@given(capacities=CAPACITIES, k=st.integers(0, 8), penalty=st.floats(0, 500))
def test_eq4_with_a_penalty_is_the_best_of_all_masks(capacities, k, penalty):
    masks = allowed_masks(len(capacities), set())
    best = max(objective(mask, capacities, k, penalty) for mask in masks)
    mask = select_eq4(capacities, k, penalty)
    assert tuple(mask) in masks
    assert objective(mask, capacities, k, penalty) == pytest.approx(best)


@settings(max_examples=60, deadline=None)
@given(capacities=CAPACITIES, k=st.integers(0, 8), apart=st.sets(st.integers(1, 7), max_size=3))
def test_eq4_without_a_penalty_is_the_best_of_all_masks_with_k_merges(capacities, k, apart):
    count = len(capacities)
    # Units that do not read their predecessor's output cannot be joined with it.
    units = [unit(i, ("elsewhere",) if i - 1 in apart else None) for i in range(count)]
    masks = allowed_masks(count, {i for i in apart if i < count - 1})
    reachable = max(sum(mask) for mask in masks)
    best = max(objective(mask, capacities, k, 0) for mask in masks if sum(mask) == min(k, reachable))
    mask = select_eq4(capacities, k, None, units=units)
    assert tuple(mask) in masks
    assert sum(mask) == min(k, reachable)
    assert objective(mask, capacities, k, 0) == pytest.approx(best)


def test_eq4_takes_the_largest_differences_whatever_their_sign():
    assert pairs(select_eq4([9, 1, 2, 12, 13, 3, 3, 9], 2, None)) == [(2, 3), (4, 5)]


def test_eq4_with_a_large_penalty_is_plain_top_k():
    capacities = [5.0, 1, 8, 2, 2, 9, 4, 4, 1, 5]
    for k in range(6):
        assert select_eq4(capacities, k, 1e9) == select_eq4(capacities, k, None)


def test_eq4_without_weight_on_k_takes_all_that_gains():
    # Two groups of three and one of two are all that fits between stem and classifier.
    mask = select_eq4([float(x) for x in range(10)], 0, 0.0)
    assert sum(mask) == 5


def test_literal_eq4_is_not_the_authors_choice():
    # Top-7 by squared difference.
    expected = {(12, 13), (15, 16), (14, 15), (1, 2), (11, 12), (13, 14), (2, 3)}
    losses = PUBLISHED_LOSSES[:17]
    ranked = sorted(range(16), key=lambda i: -((losses[i] - losses[i + 1]) ** 2))[:7]
    assert {(i, i + 1) for i in ranked} == expected
    # Groups of at most three do not allow a chain from 11 to 16.
    mask = select_eq4(PUBLISHED_LOSSES, 7, None)
    assert sum(mask) == 7
    assert set(pairs(mask)) != expected
    assert max(len(group) for group in groups_from_mask(mask)) == MAX_GROUP


def test_relative_differences_are_not_won_by_the_largest_capacities():
    capacities = [1.0, 2.0, 8.0, 9.0, 60.0, 70.0, 1.0]
    # Absolute: 9 to 60 and 60 to 70. Relative: 9 to 60 (.85) and 2 to 8 (.75).
    assert pairs(select_eq4(capacities, 2, None)) == [(3, 4), (4, 5)]
    assert pairs(select_eq4(capacities, 2, None, relative=True)) == [(1, 2), (3, 4)]


@settings(max_examples=40, deadline=None)
@given(capacities=CAPACITIES, k=st.integers(0, 8), factor=st.sampled_from([0.5, 4.0, 64.0]))
def test_relative_differences_do_not_depend_on_the_unit_of_capacity(capacities, k, factor):
    scaled = [factor * c for c in capacities]  # powers of two: exact
    assert select_eq4(scaled, k, None, relative=True) == select_eq4(capacities, k, None, relative=True)


def test_two_units_without_capacity_do_not_differ():
    assert pairs(select_eq4([1.0, 0.0, 0.0, 4.0, 3.0, 1.0], 1, None, relative=True)) == [(2, 3)]


def test_units_without_capacity_do_not_weigh_more_than_others():
    capacities = [1.0, 0.0, 0.0, 0.0, 4.0, 2.0, 1.0]
    # Of three pairs that may be joined 0 to 4 differs most, 4 to 2 by half, two nothings not at all.
    assert pairs(select_eq4(capacities, 1, None, relative=True)) == [(3, 4)]
    assert pairs(select_eq4(capacities, 2, None, relative=True)) == [(3, 4), (4, 5)]


def test_a_run_of_three_units_is_allowed_from_the_first_pair_on():
    mask = select_eq4([0.0, 10.0, 0.0, 10.0, 10.0, 10.0], 2, None)
    assert pairs(mask) == [(1, 2), (2, 3)]


def test_the_plan_selects_by_relative_differences():
    _, plan = planned(residual(), method="mrecg", scheme="modcap", selection="relative", merges=1)
    assert plan.merges == ((0,), (1, 2), (3,))


def test_losses_behind_a_global_pooling_are_no_drop():
    """The last block of a residual network ends in averages: its loss is small for that reason alone."""
    _, plan = planned(residual(blocks=2))
    assert [unit.pools for unit in plan.units] == [False, False, False, True, False]
    losses = [1.0, 2.0, 3.0, 0.1, 0.1]
    assert pairs(select_peaks(losses, None, units=plan.units)) == []
    assert pairs(select_peaks([1.0, 3.0, 2.0, 0.1, 0.1], None, units=plan.units)) == [(1, 2)]
    assert pairs(select_eq4(losses, 1, None, units=plan.units)) == [(1, 2)]


# --- the signed rule ---------------------------------------------------------------------------------------------


def test_peak_rule_picks_the_published_merges():
    assert pairs(select_peaks(PUBLISHED_LOSSES, None)) == PUBLISHED_MERGES
    assert pairs(select_peaks(PUBLISHED_LOSSES, 5)) == PUBLISHED_MERGES


def test_peak_rule_takes_the_deepest_drops_first_and_extends_to_the_predecessor_when_drops_run_out():
    three = pairs(select_peaks(PUBLISHED_LOSSES, 3))
    relative = {(i, j): (PUBLISHED_LOSSES[i] - PUBLISHED_LOSSES[j]) / PUBLISHED_LOSSES[i] for i, j in PUBLISHED_MERGES}
    assert set(three) == set(sorted(relative, key=relative.get)[-3:])
    seven = pairs(select_peaks(PUBLISHED_LOSSES, 7))
    assert set(PUBLISHED_MERGES) < set(seven)
    assert len(seven) == 7
    # The two more end where another merge begins: a peak joined with the unit in front.
    assert all((j, j + 1) in PUBLISHED_MERGES for _, j in set(seven) - set(PUBLISHED_MERGES))


def test_peak_rule_leaves_rising_losses_and_noise_alone():
    assert not any(select_peaks([1, 2, 3, 4, 5, 6], None))
    assert not any(select_peaks([1, 1, 1, 1, 1], None))
    # 4 % down is noise, 6 % is not.
    assert pairs(select_peaks([1, 100, 96, 100, 94, 95], None)) == [(3, 4)]


def test_a_drop_of_a_twentieth_counts_and_a_smaller_one_does_not():
    assert pairs(select_peaks([1.0, 100.0, 95.0, 95.0, 95.0], None)) == [(1, 2)]
    assert pairs(select_peaks([1.0, 100.0, 95.5, 95.5, 95.5], None)) == []
    # Told how many, rises are taken where drops run out, but never what neither drops nor stands before a drop.
    assert pairs(select_peaks([1.0, 100.0, 95.5, 95.5, 95.5], 2)) == []


def test_drops_are_ranked_by_their_share_of_the_larger_loss():
    # 10 to 4 is the deeper drop beside 100 to 70.
    assert pairs(select_peaks([1.0, 10.0, 4.0, 100.0, 70.0, 70.0, 1.0], 1)) == [(1, 2)]
    # Of the rises in front of both drops that from 4 to 10 is larger than that from 40 to 60.
    losses = [50.0, 4.0, 10.0, 5.0, 40.0, 60.0, 30.0, 30.0]
    assert pairs(select_peaks(losses, 2)) == [(2, 3), (5, 6)]
    assert pairs(select_peaks(losses, 3)) == [(1, 2), (2, 3), (5, 6)]


def test_units_of_no_loss_have_no_drop():
    assert pairs(select_peaks([0.0, 0.0, 0.0, 0.0, 0.0], None)) == []
    assert pairs(select_peaks([1.0, 3.0, 0.0, 0.0, 0.0], None)) == [(1, 2)]


def test_a_group_of_three_takes_no_fourth():
    falling = [1.0, 64.0, 32.0, 16.0, 8.0, 4.0, 2.0]
    groups = groups_from_mask(select_peaks(falling, None))
    assert max(len(group) for group in groups) == 3 == MAX_GROUP
    assert [g for g in groups if len(g) > 1] == [(1, 2, 3), (4, 5)]


def test_peak_rule_on_capacities_joins_where_they_rise():
    assert pairs(select_peaks([9, 1, 5, 5, 2, 8, 1], 2, rising=True)) == [(1, 2), (4, 5)]


@settings(max_examples=60, deadline=None)
@given(losses=CAPACITIES, k=st.none() | st.integers(0, 8), rising=st.booleans())
def test_peak_rule_keeps_the_rules_of_grouping(losses, k, rising):
    mask = select_peaks(losses, k, rising=rising)
    assert tuple(mask) in allowed_masks(len(losses), set())
    assert k is None or sum(mask) <= k
    values = [-x for x in losses] if rising else losses
    for i, joined in enumerate(mask):
        # A drop, or the unit in front of one.
        drops = values[i] > values[i + 1]
        assert not joined or drops or (i + 1 < len(mask) and mask[i + 1])


def test_only_a_unit_that_reads_its_predecessor_is_joined_with_it():
    units = [unit(i, ("elsewhere",) if i == 3 else None) for i in range(18)]
    assert pairs(select_peaks(PUBLISHED_LOSSES, None, units=units)) == PUBLISHED_MERGES[1:]


@pytest.mark.parametrize(
    ("units", "merges"), [(1, 0), (2, 0), (3, 1), (4, 1), (7, 2), (10, 2), (12, 3), (18, 4), (40, 10)]
)
def test_number_of_merges_is_a_quarter_of_the_pairs(units, merges):
    assert default_merges(units) == merges


@pytest.mark.parametrize(
    ("mask", "groups"),
    [
        ([], ((0,),)),
        ([False, False], ((0,), (1,), (2,))),
        ([True, False], ((0, 1), (2,))),
        ([False, True, True, False], ((0,), (1, 2, 3), (4,))),
    ],
)
def test_runs_of_a_mask_are_groups(mask, groups):
    assert groups_from_mask(mask) == groups


@pytest.mark.parametrize("count", [1, 2, 3])
def test_short_models_are_not_merged(count):
    assert not any(select_peaks([5.0, 1.0, 4.0][:count], None))
    assert not any(select_eq4([5.0, 1.0, 4.0][:count], 3, None))


def test_capacities_alone_merge_a_plan():
    _, plan = planned(blocks(6), scheme="modcap", merges=2, selection="eq4")
    assert plan.scheme == "modcap"
    assert plan.losses is None
    assert len(plan.merges) == len(plan.units) - 2
    assert plan.merges[0] == (0,)
    assert plan.merges[-1] == (len(plan.units) - 1,)


@pytest.mark.parametrize("method", ["qdrop", "brecq", "nearest"])
def test_only_mrecg_merges(method):
    _, plan = planned(blocks(4), scheme="modcap", method=method)
    assert all(len(group) == 1 for group in plan.merges)
