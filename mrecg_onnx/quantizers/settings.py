"""How ranges of activations are found, as a user chooses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mrecg_onnx.converters.choices import Between, OneOf
from mrecg_onnx.methods import RANGE_NAMES, MethodSettings

__all__ = ["RangeSettings"]


@dataclass(frozen=True, kw_only=True)
class RangeSettings(MethodSettings):
    """Ranges: the method's own, or others.

    Attributes:
        range: a row of :data:`mrecg_onnx.quantizers.ranges.RANGES` for activations, "auto" for the method's own. "output":
            several norms propose a range and the network's output chooses; "mse": the papers' p = 2.4 alone; "minmax", for
            weights, too.
        percentile: share of the values, in percent, that the range "percentile" keeps on either side.
    """

    range: Annotated[str, OneOf("auto", *RANGE_NAMES)] = "auto"
    percentile: Annotated[float, Between(50.0, 100.0)] = 99.99
