from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrecg_onnx.measures import OutputSums, add_sums, agreement, mcnemar_p, sqnr_db, topk_correct, wilson_interval
from mrecg_onnx.measures.metrics import combined_error, decibels

seeds = st.integers(0, 2**32 - 1)


def test_sqnr_is_ten_decibels_a_factor_of_ten_in_energy():
    r = np.array([3.0, -3.0])  # energy 18
    assert sqnr_db(r, r + np.array([0.3, 0.3])) == pytest.approx(20)
    assert sqnr_db(r, np.zeros(2)) == pytest.approx(0)


def test_sqnr_does_not_count_the_mean_as_signal():
    r = np.array([3.0, -3.0])
    assert sqnr_db(r + 320, r + 320.3) == pytest.approx(20)
    assert sqnr_db(np.full(4, 3.0), np.full(4, 3.3)) == pytest.approx(20)  # a constant has nothing but its mean


def test_sqnr_of_equal_values_is_infinite_and_of_noise_alone_minus_infinite():
    x = np.ones((2, 3), np.float32)
    assert sqnr_db(x, x) == math.inf
    assert sqnr_db(np.zeros(2), np.zeros(2)) == math.inf
    assert sqnr_db(np.zeros(2), np.ones(2)) == -math.inf


def test_sqnr_of_nan_is_nan_and_not_a_number_that_looks_measured():
    assert math.isnan(sqnr_db(np.ones(2), np.array([1, np.nan])))
    assert math.isnan(decibels(math.inf, 1.0))


def test_sqnr_sums_in_float64():
    r = np.tile(np.float32([1e-30, -1e-30]), 5)  # squares vanish in float32
    assert sqnr_db(r, r * np.float32(1.5)) == pytest.approx(10 * math.log10(4), rel=1e-5)


def test_sqnr_takes_integers_and_booleans():
    assert sqnr_db(np.array([200, 100], np.uint8), np.array([100, 200], np.uint8)) == pytest.approx(
        10 * math.log10(5000 / 20000)
    )
    assert sqnr_db(np.array([True, True]), np.array([True, False])) == pytest.approx(10 * math.log10(2))


@given(seeds, st.integers(1, 5))
def test_sums_of_batches_are_those_of_the_whole(seed, parts):
    rng = np.random.default_rng(seed)
    r = (rng.normal(size=(20, 3)) + 5).astype(np.float32)
    o = r + rng.normal(size=(20, 3)).astype(np.float32)
    sums: dict[str, OutputSums] = {}
    for rows in np.array_split(np.arange(20), parts):
        add_sums(sums, {"y": OutputSums.of(r[rows], o[rows])})
    assert sums["y"].error == pytest.approx(float(np.mean((r - o) ** 2) / np.var(r)), rel=1e-5)
    assert sums["y"].sqnr_db == pytest.approx(sqnr_db(r, o), abs=1e-9)
    assert sums["y"].sqnr_db == pytest.approx(-10 * math.log10(sums["y"].error), abs=1e-9)


def test_values_that_are_no_floats_are_compared_one_by_one():
    sums = OutputSums.of(np.array([0, 900, 3, 3]), np.array([0, 1, 3, 3]))
    assert (sums.error, sums.equal) == (0.25, 0.75)
    assert math.isnan(sums.sqnr_db)


def test_sums_begin_at_nothing():
    empty = OutputSums()
    assert (empty.count, empty.total, empty.squares, empty.noise, empty.floating) == (0.0, 0.0, 0.0, 0.0, True)
    assert (empty.signal, empty.error, empty.equal) == (0.0, 0.0, 1.0)
    first = OutputSums(2.0, 3.0, 5.0, 7.0)
    assert empty + first == first
    assert first + OutputSums(10.0, 20.0, 30.0, 40.0) == OutputSums(12.0, 23.0, 35.0, 47.0)
    sums = {"y": first}
    add_sums(sums, {"y": first, "z": first})
    assert sums == {"y": OutputSums(4.0, 6.0, 10.0, 14.0), "z": first}


def test_sums_of_known_values():
    sums = OutputSums.of(np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([[1.0, 2.5], [3.0, 5.0]]))
    assert (sums.count, sums.total, sums.squares, sums.noise) == (4, 12.0, 50.0, 1.25)
    assert sums.signal == 12.5 - 9.0
    assert sums.error == pytest.approx(1.25 / 4 / 3.5)
    assert sums.sqnr_db == pytest.approx(10 * math.log10(14 / 1.25))


def test_output_whose_variance_is_rounding_is_a_constant():
    """Up to 1e-12 of the mean square; the mean square is the signal then."""
    for share, constant in ((0.6e-12, True), (1.5e-12, False)):
        sums = OutputSums(1.0, math.sqrt(1 - share), 1.0)
        assert sums.signal == pytest.approx(1.0 if constant else share, rel=1e-3)
    assert OutputSums.of(np.zeros(4), np.full(4, 0.5)).error == 0.25  # over 1 where all is 0


def test_error_of_several_outputs_is_the_root_of_the_mean_of_the_floats():
    """Integers follow from the floats and count only alone."""
    first, second = OutputSums(1.0, 0.0, 1.0, 0.01), OutputSums(2.0, 0.0, 8.0, 0.32)
    integers = OutputSums(4.0, noise=1.0, floating=False)
    assert combined_error([first]) == pytest.approx(0.1)
    assert combined_error([first, second]) == pytest.approx(math.sqrt((0.01 + 0.04) / 2))
    assert combined_error([first, second, integers]) == pytest.approx(math.sqrt((0.01 + 0.04) / 2))
    assert combined_error([integers, integers]) == pytest.approx(0.5)
    assert combined_error([]) == 0.0


def test_decibels_of_known_ratios():
    assert decibels(100.0, 1.0) == 20.0
    assert decibels(1.0, 10.0) == -10.0
    assert decibels(1.0, 0.0) == math.inf
    assert decibels(0.0, 1.0) == -math.inf
    assert math.isnan(decibels(1.0, math.inf))


def test_sqnr_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        sqnr_db(np.ones((2, 1)), np.ones((2, 2)))


@given(seeds, st.integers(2, 12))
def test_top_one_is_argmax_also_among_ties(seed, classes):
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 3, (20, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 20)
    assert np.array_equal(topk_correct(logits, labels, 1), logits.argmax(1) == labels)


@given(seeds, st.integers(1, 8))
def test_top_k_is_membership_in_a_stable_sort(seed, k):
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 4, (20, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 20)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    assert np.array_equal(topk_correct(logits, labels, k), (best == labels[:, None]).any(1))


def test_all_logits_equal_does_not_count_as_right_for_every_label():
    assert topk_correct(np.zeros((4, 4)), np.arange(4), 1).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("logits", "labels", "k", "message"),
    [
        (np.zeros(3), np.zeros(3, int), 1, "logits"),
        (np.zeros((3, 2)), np.zeros(2, int), 1, "labels"),
        (np.zeros((2, 2)), np.array([0, 2]), 1, "2 classes"),
        (np.zeros((2, 2)), np.array([0, -1]), 1, "2 classes"),
        (np.zeros((2, 2)), np.array([0, 1]), 0, "k = 0"),
        (np.full((2, 2), np.nan), np.array([0, 1]), 1, "NaN"),
    ],
)
def test_top_k_refuses_what_it_cannot_rank(logits, labels, k, message):
    with pytest.raises(ValueError, match=message):
        topk_correct(logits, labels, k)


@settings(deadline=None)  # scipy.stats is loaded by the first of them
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_follows_its_formula(counts):
    correct, n = counts
    p, z = correct / n, 1.959963984540054  # the normal distribution's 97.5 % quantile
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = wilson_interval(correct, n)
    assert low == pytest.approx(max(0, centre - half), abs=1e-12)
    assert high == pytest.approx(min(1, centre + half), abs=1e-12)
    assert 0 <= low <= p <= high <= 1


def test_wilson_interval_known_number():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I: 81 of 263
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_interval_widens_with_confidence():
    narrow, wide = wilson_interval(5, 10, 0.8), wilson_interval(5, 10, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("arguments", [(0, 0), (1, 0), (-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0)])
def test_wilson_interval_refuses_impossible_counts(arguments):
    with pytest.raises(ValueError, match=r"interval|confidence"):
        wilson_interval(*arguments)


def flags(*counts):
    """Pairs in the order both right, only a, only b, both wrong."""
    pairs = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], counts, axis=0).astype(bool)
    return pairs[:, 0], pairs[:, 1]


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20))
def test_mcnemar_is_the_exact_binomial_sum_and_symmetric(only_a, only_b):
    n, k = only_a + only_b, min(only_a, only_b)
    wanted = min(1, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    a, b = flags(3, only_a, only_b, 2)
    assert mcnemar_p(a, b) == pytest.approx(wanted)
    assert mcnemar_p(b, a) == pytest.approx(wanted)


def test_mcnemar_ignores_images_both_get_right_or_wrong():
    assert mcnemar_p(*flags(0, 8, 1, 0)) == mcnemar_p(*flags(1000, 8, 1, 500))
    assert mcnemar_p(*flags(5, 0, 0, 5)) == 1


def test_mcnemar_refuses_different_images():
    with pytest.raises(ValueError, match="same images"):
        mcnemar_p(np.ones(2, bool), np.ones(3, bool))


def test_agreement_is_the_share_of_equal_argmax():
    a = np.array([[1, 2], [2, 1], [0, 0], [5, 1]], np.float32)
    b = np.array([[0, 9], [1, 2], [1, 1], [3, 1]], np.float32)
    assert agreement(a, b) == 0.75  # rows 0, 2 (ties: both the first) and 3
    with pytest.raises(ValueError, match="same shape"):
        agreement(a, b[:2])
    with pytest.raises(ValueError, match="same shape"):
        agreement(a[:0], b[:0])
