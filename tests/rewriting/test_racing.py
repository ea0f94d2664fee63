"""Races: the exact answer where all images are needed, fewer images where they tell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrecg_onnx.rewriting.racing import Contender, Race

SLICES = (4, 4, 8)


def contender(option: object, errors: np.ndarray) -> Contender:
    ends = np.cumsum(SLICES)
    return Contender(option, lambda k: errors[ends[k] - SLICES[k] : ends[k]])


def race(indifference: float = 0.0) -> Race:
    return Race(sum(SLICES), len(SLICES), indifference)


def test_who_is_far_behind_on_every_image_is_out_after_the_first_slice():
    images = np.random.default_rng(0).uniform(
        1.0, 10.0, 16
    )  # errors of images differ much more than those of contenders
    near, far = contender("near", images), contender("far", images + np.random.default_rng(1).uniform(0.9, 1.1, 16))
    assert race().winner([far, near]) is near
    assert near.slices == far.slices == 1


def test_who_cannot_gain_enough_is_out_too():
    images = np.random.default_rng(1).uniform(1.0, 2.0, 16)
    one, other = contender("one", images), contender("other", images * np.tile([0.999, 1.001], 8))
    assert race(0.04).winner([one, other]).slices == 1
    assert race(0.0).winner([one, other]).slices == 3


def test_what_the_first_images_leave_open_is_decided_by_the_mean_of_all():
    first = np.r_[np.full(8, 1.0), np.full(8, 1.0)]
    second = np.r_[np.tile([0.5, 1.6], 4), np.full(8, 0.9)]  # ahead on all 16, behind on 8
    lead = race().winner([contender("first", first), contender("second", second)])
    assert lead.option == "second"
    assert lead.slices == 3


def test_contenders_for_the_same_option_need_no_decision():
    images = np.linspace(1.0, 2.0, 16)
    assert race().winner([contender("same", images), contender("same", images[::-1])]).slices == 1


@settings(max_examples=100, deadline=None)
@given(errors=st.lists(st.floats(1e-6, 1e3), min_size=16, max_size=16), level=st.floats(1e-6, 1e3))
def test_an_answer_of_all_images_is_exact(errors: list[float], level: float):
    one = contender("one", np.array(errors))
    said = race().below(one, level)
    if one.slices == len(SLICES):
        assert said == (np.array(errors).mean() < level)


def test_early_answers_are_those_of_all_images():
    random, wrong, early = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        errors = random.lognormal(0.0, 0.5, 16)
        other = errors * random.lognormal(random.normal(0.0, 0.2), 0.2, 16)
        one, two = contender("one", errors), contender("two", other)
        said = race().better(one, two, 1.0)
        if one.slices < len(SLICES):
            early += 1
            wrong += said != (errors.mean() <= other.mean())
    assert early > 500
    assert wrong / early < 0.05


def test_images_are_measured_once():
    measured = []
    one = Contender("one", lambda k: measured.append(k) or np.ones(SLICES[k]))
    assert one.errors(3).shape == (16,)
    one.errors(2)
    assert measured == [0, 1, 2]
    assert not race().below(one, 1.0)
    assert race().better(one, one, 1.0)


@pytest.mark.parametrize("errors", [np.zeros(16), np.ones(16)])
def test_equal_contenders_leave_the_first(errors: np.ndarray):
    first = contender("first", errors)
    assert race().winner([first, contender("second", errors.copy())]) is first
