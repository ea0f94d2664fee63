"""Weights that swing are held where they were longer; those that go one way are left alone."""

from __future__ import annotations

import torch

from mrecg_onnx.finishing.oscillation import Oscillations
from mrecg_onnx.quantizers import Grid, LatentRounding


def rounding() -> LatentRounding:
    grid = Grid(torch.ones(1), torch.full((1,), 2.0), 3, axis=0)
    return LatentRounding(torch.zeros(1, 3), torch.full((1, 3), 2.0), grid, 0.25)


def go(walk: list[list[float]]) -> tuple[Oscillations, LatentRounding]:
    """Put the weights where each row of ``walk`` says, in steps, and watch."""
    learned = rounding()
    watched = Oscillations({"layer": learned})
    for row in walk:
        with torch.no_grad():
            learned.latent.copy_(torch.tensor([row]))
        watched.watch()
    return watched, learned


def test_a_weight_that_comes_back_is_frozen_and_others_are_not():
    watched, learned = go([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 2.0, 1.0]])
    assert watched.frozen["layer"].tolist() == [[True, False, False]]
    assert watched.count() == 1
    # The first one is held where it was two of three steps; the walk's last step to 1 is undone.
    assert learned.steps().tolist() == [[0.0, 2.0, 1.0]]


def test_it_is_held_at_the_code_where_it_was_longer():
    watched, learned = go([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert watched.count() == 1
    assert learned.steps().tolist() == [[1.0, 0.0, 0.0]]


def test_what_stays_is_not_touched():
    watched, learned = go([[0.2, -0.3, 0.1]] * 5)
    assert watched.count() == 0
    torch.testing.assert_close(learned.latent.detach(), torch.tensor([[0.2, -0.3, 0.1]]))
