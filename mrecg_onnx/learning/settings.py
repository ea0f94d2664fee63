"""How units are learned, as a user chooses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mrecg_onnx.converters.choices import AtLeast, Between, OneOf
from mrecg_onnx.data import DataSettings
from mrecg_onnx.machine import MachineSettings
from mrecg_onnx.methods import MethodSettings
from mrecg_onnx.planning import MergeSettings

__all__ = ["LearnerSettings", "LearningSettings"]


@dataclass(frozen=True, kw_only=True)
class LearningSettings(DataSettings, MethodSettings):
    """The loop over units, and the solvers beside it.

    Attributes:
        iters: iterations a reconstruction unit.
        joint_iters: iterations of joined units: "sum", those of all members, so that every weight is moved as often as alone;
            "same" as every other unit, as published (in short runs joining then costs more than it brings, docs/method.md 4).
        stop: "auto": a unit's iterations come in up to eight rounds, each with a whole schedule and rates of its length, and it
            is left when two rounds hardly lower its held-out loss: ``iters`` is the most. "off": one schedule, all of ``iters``.
        probe_fraction: iterations of the probing run as a share of ``iters``.
        augment: units learn from variants of every calibration image, too: "flip" is its mirror image, "shift" and "crop" are
            three random ones, moved by up to an eighth of the side or cropped to half the area at least; "none".
        held_out: share of the calibration images on which a unit is compared with nearest rounding.
        window: largest side, in pixels, of the maps a unit is trained on; 0 for whole maps.
        lr_rounding: Adam's rate for the rounding variables, None for a rate that grows as ``iters`` shrinks.
        lr_scale: Adam's rate for activation scales, relative to the scale, None likewise.
        loss: "huber" (robust to outliers), "mse" (the papers') or "fisher" (BRECQ's, weighted by the task loss's gradient).
        knee: where the Huber loss turns from squares to magnitudes, in standard deviations of the unit's output.
        learn_bias: biases are learned with the rounding (beyond the paper; they cost nothing, being int32).
        learn_weight_scales: learn the scale of each channel's weights together with the rounding (beyond the paper, too).
        rounding_weight: weight of the rounding regularizer.
        bias_correction: biases are shifted by the mean error of their layers' outputs in the end, where that lowers the error of
            the network's outputs on held-out images.
        lapq_evaluations: how often ``lapq`` may run the network to find its steps, None for eight times a step: about one pass.
        lapq_images: calibration images it runs it on.
    """

    iters: Annotated[int, AtLeast(1)] = 1000
    joint_iters: Annotated[str, OneOf("sum", "same")] = "sum"
    probe_fraction: Annotated[float, Between(0.001, 1.0)] = 0.1
    augment: Annotated[str, OneOf("none", "flip", "shift", "crop")] = "none"
    stop: Annotated[str, OneOf("auto", "off")] = "off"
    held_out: Annotated[float, Between(0.0, 0.5)] = 0.125
    window: Annotated[int, AtLeast(0)] = 28
    lr_rounding: float | None = None
    lr_scale: float | None = None
    loss: Annotated[str, OneOf("huber", "mse", "fisher")] = "huber"
    knee: Annotated[float, Between(1e-3, 100.0)] = 0.5
    learn_bias: bool = True
    learn_weight_scales: bool = True
    rounding_weight: float = 0.01
    bias_correction: bool = False
    lapq_evaluations: Annotated[int | None, AtLeast(1)] = None
    lapq_images: Annotated[int, AtLeast(1)] = 512


@dataclass(frozen=True, kw_only=True)
class LearnerSettings(LearningSettings, MachineSettings, MergeSettings):
    """All that :class:`~mrecg_onnx.learning.Learner` reads: the loop, the machine it runs on, and whether units are merged."""
