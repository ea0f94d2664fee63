"""Pixel values of an image input lie clear of the middle between two codes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mrecg_onnx.calibrating import off_ties
from mrecg_onnx.data import InputSpec, Preprocess
from mrecg_onnx.quantizers import Grid

IMAGENET_INPUT = InputSpec("input", (None, 3, 32, 32), np.dtype(np.float32))
IMAGENET = Preprocess().resolve(IMAGENET_INPUT)


def grid(scale: float) -> Grid:
    return Grid(torch.tensor(scale), torch.tensor(114.0), 8)


def nearest(made: Grid) -> float:
    steps = IMAGENET.table(np.dtype(np.float32)) / np.float64(made.scale.item())
    return float(np.abs(steps - np.floor(steps) - 0.5).min())


def test_a_scale_with_a_pixel_value_on_a_tie_is_nudged() -> None:
    """The scale that a ResNet-20 had: one value of blue lies in the middle within 6e-6 of a step."""
    before = grid(0.01872254)
    assert nearest(before) < 1e-5
    after = off_ties({"input": before}, ["input"], IMAGENET)["input"]
    assert nearest(after) >= 1e-4
    assert after.scale.dtype == torch.float32
    assert abs(after.scale.item() / before.scale.item() - 1) < 1e-5
    assert dataclasses.replace(after, scale=before.scale) == before
    # No other value changes its code.
    values = IMAGENET.table(np.dtype(np.float32)).astype(np.float64)
    codes = [np.rint(values / one.scale.item()) for one in (before, after)]
    assert (codes[0] != codes[1]).sum() <= 1


def test_a_scale_without_ties_stays_as_it_is() -> None:
    before = grid(0.018713176)
    assert off_ties({"input": before}, ["input"], IMAGENET)["input"].scale.item() == before.scale.item()


@pytest.mark.parametrize(
    ("inputs", "preprocess"),
    [(["other"], IMAGENET), (["input", "other"], IMAGENET), (["input"], Preprocess())],
    ids=["no input", "several inputs", "arrays"],
)
def test_what_is_no_image_is_left_alone(inputs: list[str], preprocess: Preprocess) -> None:
    before = {"input": grid(0.01872254)}
    assert off_ties(before, inputs, preprocess) == before


def test_a_scale_that_cannot_be_cleared_stays() -> None:
    """Raw pixels with a step of two: every other value, small ones too, lies between two codes."""
    raw = Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3, scale=1.0).resolve(IMAGENET_INPUT)
    assert off_ties({"input": grid(2.0)}, ["input"], raw)["input"].scale.item() == 2.0
