"""The table of methods: each is a row of choices over shared parts, not a branch.

Sources: AdaRound (Nagel 2020), AdaQuant (Hubara 2021), BRECQ (Li 2021, as published and in the joint variant of the MRECG
code base), QDrop (Wei 2022), MRECG (Ma 2023), docs/method.md 2 and 14; Bit-Split (Wang 2020), docs/method.md 9; ACIQ (Banner
2019), docs/method.md 12; LAPQ (Nahshan 2021), docs/method.md 13.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from mrecg_onnx.converters.choices import Between, OneOf, SettingsGroup

__all__ = ["METHODS", "RANGE_NAMES", "Method", "MethodSettings", "Phase", "method_of"]

#: Activation ranges (``--range``); :data:`mrecg_onnx.quantizers.ranges.RANGES` says what they are. Here, where torch is not
#: needed.
RANGE_NAMES = ("output", "mse", "minmax", "percentile", "entropy", "aciq")


@dataclass(frozen=True)
class Phase:
    """One walk over all units.

    Attributes:
        stage: its name in reports and checkpoints.
        keep_quantized: see :class:`Method`.
        learn_scales: activation scales are learned.
        learn_rounding: weights are learned; else they stay as they are.
        float_inputs: units read what the float network makes instead of the quantized prefix.
        power: exponent of the error; 2 leaves the choice of the loss to the settings.
        share: iterations as a share of the run's.
    """

    stage: str = "reconstruct"
    keep_quantized: float | None = 1.0
    learn_scales: bool = False
    learn_rounding: bool = True
    float_inputs: bool = False
    power: float = 2.0
    share: float = 1.0


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        granularity: "none" (nothing is learned), "layer" or "block".
        keep_quantized: probability that an activation element keeps its quantized value in training; None trains with
            float activations inside the unit.
        learn_scales: activation scales are trained together with the rounding.
        merge: neighbouring units are merged by mixed reconstruction granularity.
        solver: how a unit is learned: "gradient" (Adam on rounding variables) or "bit-split" (ternary planes in closed form).
        least_wbits: smallest weight width that the solver can do.
        ranges: row of :data:`mrecg_onnx.quantizers.ranges.RANGES` under ``--range auto``.
        allocate: channels get widths of their own at a fixed average (:mod:`mrecg_onnx.rewriting.channel_bits`).
        joint_steps: the steps of all quantizers are minimised together (:mod:`mrecg_onnx.learning.lapq`).
        rounding: how weights are rounded, a row of :data:`mrecg_onnx.quantizers.rounding.ROUNDINGS`.
        anneal: shape of the rounding regularizer's schedule, a row of :data:`mrecg_onnx.quantizers.rounding.ANNEALS`.
        input_scales: a unit learns the scales of what it reads, with its weights, instead of those of what it makes.
        phases: walks over the units; by default one that does everything above at once.
    """

    granularity: str
    keep_quantized: float | None = 1.0
    learn_scales: bool = False
    merge: bool = False
    solver: str = "gradient"
    least_wbits: int = 2
    ranges: str = "output"
    allocate: bool = False
    joint_steps: bool = False
    rounding: str = "adaround"
    anneal: str = "linear"
    input_scales: bool = False
    phases: tuple[Phase, ...] = ()

    @property
    def learn_bias(self) -> bool:
        """Biases move where scales are learned, and where a solver has a closed form for them."""
        return self.learn_scales or self.solver != "gradient"

    @property
    def passes(self) -> tuple[Phase, ...]:
        """The walks over the units, in order."""
        return self.phases or (Phase(keep_quantized=self.keep_quantized, learn_scales=self.learn_scales),)


METHODS: dict[str, Method] = {
    "nearest": Method("none"),
    "bit-split": Method("layer", keep_quantized=1.0, solver="bit-split", least_wbits=3),
    "aciq": Method("none", ranges="aciq", allocate=True),
    "lapq": Method("none", joint_steps=True),
    "adaround": Method("layer", keep_quantized=None),
    "adaquant": Method("layer", learn_scales=True, rounding="ste", input_scales=True),
    # As published: weights first, activations in float; then step sizes from float inputs, a quarter of the iterations.
    "brecq-paper": Method(
        "block",
        keep_quantized=None,
        phases=(
            Phase("weights", keep_quantized=None),
            Phase("steps", learn_scales=True, learn_rounding=False, float_inputs=True, power=2.4, share=0.25),
        ),
    ),
    "brecq": Method("block", keep_quantized=1.0, learn_scales=True),
    "qdrop": Method("block", keep_quantized=0.5, learn_scales=True),
    # keep_quantized of `mrecg` comes from its base, see MethodSettings.base
    "mrecg": Method("block", keep_quantized=0.5, learn_scales=True, merge=True),
}


@dataclass(frozen=True, kw_only=True)
class MethodSettings(SettingsGroup):
    """Which row of the table, and what takes the place of its own choices.

    Attributes:
        method: a row of :data:`METHODS`.
        base: reconstruction under ``mrecg``: "qdrop" or "brecq".
        drop: probability that QDrop keeps an element quantized, None for the method's own (docs/method.md 2).
        rounding: how weights are rounded: "adaround", "flexround", "ste", or "auto" for the method's own.
        anneal: schedule of the rounding regularizer: "linear", "cosine", or "auto" for the method's own.
    """

    method: Annotated[str, OneOf(*METHODS)] = "mrecg"
    base: Annotated[str, OneOf("qdrop", "brecq")] = "brecq"
    drop: Annotated[float | None, Between(0.0, 1.0)] = None
    rounding: Annotated[str, OneOf("auto", "adaround", "flexround", "ste")] = "auto"
    anneal: Annotated[str, OneOf("auto", "linear", "cosine")] = "auto"


def method_of(settings: MethodSettings) -> Method:
    """The row of the table, with the base of ``mrecg`` and what the settings choose instead put in."""
    row = METHODS[settings.method]
    if row.merge:
        row = dataclasses.replace(METHODS[settings.base], merge=True)
    if settings.drop is not None and row.keep_quantized is not None:
        row = dataclasses.replace(row, keep_quantized=settings.drop)
    if settings.rounding != "auto":
        row = dataclasses.replace(row, rounding=settings.rounding)
    if settings.anneal != "auto":
        row = dataclasses.replace(row, anneal=settings.anneal)
    return row
