"""Rates of Adam for a number of iterations."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LearningRates", "default_rates"]

#: Published iterations, and Adam's rate for V there (QDrop, MRECG).
PAPER_ITERS, PAPER_LR_ROUNDING = 20000, 1e-3
#: Rate for the logarithms of scales at as many iterations. The published 4e-5 for activation scales of about 0.3 is an eighth
#: of it; with weight scales among what is learned MobileNetV2's first units end 14 to 40 % lower this way.
LR_SCALE = 1e-3
#: Rates grow as iterations shrink, (PAPER_ITERS / iters)^EXPONENT: 300 iterations learn best near 3e-2.
EXPONENT = 0.8
#: Below so many iterations larger steps only do harm: the rates stop growing.
SHORTEST = 150


@dataclass(frozen=True)
class LearningRates:
    """Adam's rates: ``rounding`` for V, ``scale`` relative to the activation scale."""

    rounding: float
    scale: float

    def over(self, iters: int, length: int) -> LearningRates:
        """What is for ``iters`` iterations, for a round of ``length``."""
        whole, part = default_rates(iters), default_rates(length)
        return LearningRates(
            self.rounding * part.rounding / whole.rounding,
            self.scale * part.scale / whole.scale,
        )


def default_rates(iters: int) -> LearningRates:
    """Rates for ``iters`` iterations: the published ones at 20,000, larger in shorter runs (measured, see docs)."""
    factor = max(1.0, PAPER_ITERS / max(iters, SHORTEST)) ** EXPONENT
    return LearningRates(PAPER_LR_ROUNDING * factor, LR_SCALE * factor)
