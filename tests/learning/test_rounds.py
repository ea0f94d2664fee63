"""How a unit's iterations are cut into rounds, and when it is left."""

from __future__ import annotations

import pytest

from mrecg_onnx.learning.rounds import LEAST_GAIN, MOST, PATIENCE, SHORTEST, rounds, settled


@pytest.mark.parametrize("iters", [1, 7, 124, 125, 249, 250, 300, 999, 1000, 1001, 1024, 4003, 20_000])
def test_rounds_are_equal_and_make_all_iterations(iters):
    found = rounds(iters)
    assert sum(found) == iters
    assert max(found) - min(found) <= 1
    assert len(found) <= MOST
    assert len(found) == 1 or min(found) >= SHORTEST


def test_rounds_are_as_many_as_are_long_enough():
    assert [len(rounds(iters)) for iters in (100, 249, 250, 500, 1000, 20_000)] == [1, 1, 2, 4, 8, 8]


def test_a_unit_has_settled_when_two_rounds_hardly_lowered_its_least_loss():
    assert (LEAST_GAIN, PATIENCE) == (0.06, 2)
    assert not settled([])
    assert not settled([1.0, 1.0])
    assert settled([1.0, 0.99, 0.97])
    assert settled([1.0, 0.99, 0.95])
    assert not settled([1.0, 0.99, 0.93])
    assert not settled([1.0, 1.2, 0.9])
    assert settled([1.0, 0.5, 0.6, 0.49])
    assert settled([1.0, 2.0, 3.0])
