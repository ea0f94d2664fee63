"""The table of methods: each is a row of choices over shared parts, not a branch.

Sources: AdaRound (Nagel 2020), BRECQ (Li 2021, in the joint variant of the MRECG code base), QDrop (Wei 2022),
MRECG (Ma 2023); docs/method.md 2.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        granularity: "none" (nothing is learned), "layer" or "block".
        keep_quantized: probability that an activation element keeps its quantized value in training; None trains with
            float activations inside the unit.
        learn_scales: activation scales are trained together with the rounding.
        merge: neighbouring units are merged by mixed reconstruction granularity.
    """

    granularity: str
    keep_quantized: float | None = 1.0
    learn_scales: bool = False
    merge: bool = False


METHODS: dict[str, Method] = {
    "nearest": Method("none"),
    "adaround": Method("layer", keep_quantized=None),
    "brecq": Method("block", keep_quantized=1.0, learn_scales=True),
    "qdrop": Method("block", keep_quantized=0.5, learn_scales=True),
    # keep_quantized of `mrecg` comes from its base, see Settings.base
    "mrecg": Method("block", keep_quantized=0.5, learn_scales=True, merge=True),
}
