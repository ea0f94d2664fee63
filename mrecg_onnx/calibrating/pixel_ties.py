"""The grid of an image input keeps pixel values off the middle between two codes.

Images have 256 values a channel. Where one of them lies in the middle, within the last digits of a float, runtimes give it
either code: OpenCV 5.0 and OpenVINO 2026.4 add the zero point before they round (53.499996 + 114 is 167.5 in float32, code 168;
ONNX Runtime gives 167). One such value of the 768 changed a tenth of the predictions of a ResNet-20 W4A4; without it OpenCV gives
ONNX Runtime's outputs (docs/deployment.md 1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from mrecg_onnx.data import Preprocess
from mrecg_onnx.quantizers import Grid

__all__ = ["off_ties"]

#: Distance from the middle, in steps of the grid, at which runtimes agree: some ten last digits of a float32 at code 255.
CLEAR = 1e-4
#: By how much the scale is changed at a time, and how often: a hundredth of a percent at most.
NUDGE, TRIES = 1e-6, 200


def off_ties(grids: Mapping[str, Grid], inputs: Collection[str], preprocess: Preprocess) -> dict[str, Grid]:
    """``grids``, that of an image input with the nearest scale at which no pixel value lies between two codes.

    Args:
        grids: activation grids by tensor.
        inputs: the inputs of the model; only a lone one is fed with images.
        preprocess: how images become inputs; where it does not say (arrays) nothing is changed.
    """
    made = dict(grids)
    known = None not in {preprocess.scale, preprocess.mean, preprocess.std}
    for name in inputs if known and len(inputs) == 1 else ():
        if name in made and made[name].axis is None:
            made[name] = _cleared(made[name], preprocess.table(np.dtype(np.float32)))
    return made


def _cleared(grid: Grid, values: npt.NDArray[np.float32]) -> Grid:
    """The grid with the scale nearest to its own that is clear of ties, itself where none is."""
    for turn in range(TRIES):
        scale = grid.scale * (1 + NUDGE * (turn // 2 + turn % 2) * (1 if turn % 2 else -1))
        if _nearest_tie(values / np.float64(scale.item())) >= CLEAR:
            return dataclasses.replace(grid, scale=scale)
    return grid


def _nearest_tie(steps: npt.NDArray[np.float64]) -> float:
    """Distance of the nearest of ``steps`` to the middle between two whole numbers."""
    return float(np.abs(steps - np.floor(steps) - 0.5).min())
