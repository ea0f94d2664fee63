"""Grids as plain data: they come back bit by bit, and nothing else becomes one."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.values import BITS, SEEDS, values
from hypothesis import given, settings

from mrecg_onnx.quantizers import Grid, plain_grid, restored_grid, search_range


@settings(max_examples=20, deadline=None)
@given(bits=BITS, seed=SEEDS)
def test_grids_come_back_as_they_were(bits, seed):
    x = values("normal", seed, (3, 40))
    for axis, symmetric in ((None, False), (0, False), (0, True)):
        grid = search_range(x, bits, axis=axis, symmetric=symmetric)
        plain = json.loads(json.dumps(plain_grid(grid)))
        found = restored_grid(plain, bits=bits, axis=axis, channels=None if axis is None else 3)
        assert torch.equal(found.scale, grid.scale)
        assert torch.equal(found.zero_point, grid.zero_point)
        assert found.scale.dtype == found.zero_point.dtype == torch.float32
        assert (found.bits, found.axis, found.symmetric) == (bits, axis, symmetric)


GRID = plain_grid(Grid(torch.tensor([0.5, 0.25]), torch.tensor([3.0, 0.0]), 4, 0))


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 5}, {"axis": None}, {"axis": 1}, {"symmetric": True}, {"symmetric": 0}, {"scale": [0.5]},
        {"scale": [0.5] * 3}, {"zero_point": [3.0]}, {"scale": 0.5}, {"scale": None}, {"scale": [0.5, 0.0]},
        {"scale": [0.5, -1.0]}, {"scale": [0.5, float("nan")]}, {"scale": [0.5, float("inf")]}, {"scale": [0.5, "1"]},
        {"scale": [0.5, True]}, {"zero_point": [3.0, 16.0]}, {"zero_point": [3.0, -1.0]}, {"zero_point": [3.0, 0.5]},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_such_grid_is_refused(change):
    assert restored_grid(GRID, bits=4, axis=0, channels=2).bits == 4
    with pytest.raises((ValueError, TypeError, KeyError)):
        restored_grid(GRID | change, bits=4, axis=0, channels=2)


@pytest.mark.parametrize("plain", [None, 7, [], {}, "grid"], ids=repr)
def test_other_data_are_refused(plain):
    with pytest.raises((ValueError, TypeError, KeyError)):
        restored_grid(plain, bits=4)
