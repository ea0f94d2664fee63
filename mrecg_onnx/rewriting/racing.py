"""Which of several alternatives has the least error, on no more images than that takes.

Every alternative is measured on the same images, a slice of them at a time. Judged are the differences image by image, which vary
far less than the errors do (races: Maron and Moore 1994; of blocks: Moore and Lee 1994). The question is the mean over all images
that there are, so that the interval of the mean of the first n of N has the half width

    t(n - 1) s / sqrt(n) sqrt(1 - n / N)

with s the deviation of the differences and t Student's quantile. It closes at the last image, where the answer is the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

__all__ = ["CONFIDENCE", "Contender", "Race"]

#: One-sided, of each single comparison.
CONFIDENCE = 0.99

T = TypeVar("T", bound=Hashable)
Errors = npt.NDArray[np.float64]


@dataclass(eq=False)
class Contender(Generic[T]):
    """One alternative.

    Attributes:
        option: what is chosen with it; a race ends where all that are left in it have the same.
        measure: squared error of each image of a slice, by its number; float64 of shape (n,).
    """

    option: T
    measure: Callable[[int], Errors]
    _found: list[Errors] = field(default_factory=list)

    @property
    def slices(self) -> int:
        """How many it was measured on."""
        return len(self._found)

    def errors(self, slices: int) -> Errors:
        """Of each image of the first ``slices``; those that are not known yet are measured."""
        while len(self._found) < slices:
            self._found.append(self.measure(len(self._found)))
        return np.concatenate(self._found[:slices])


@dataclass(frozen=True)
class Race:
    """Comparisons on ``images`` images in ``slices`` slices.

    Attributes:
        indifference: share of the leader's squared error that is worth no further image: who cannot be better by as much is out.
    """

    images: int
    slices: int
    indifference: float = 0.0

    def winner(self, contenders: Sequence[Contender[T]]) -> Contender[T]:
        """The one with the least mean error, or one that is as good but for the indifference; of equals the first."""
        left = list(contenders)
        for k in range(max(1, min(one.slices for one in left)), self.slices + 1):
            found = [one.errors(k) for one in left]
            best = min(range(len(left)), key=lambda i: float(found[i].mean()))
            worth = self.indifference * float(found[best].mean())
            left = [
                one
                for i, one in enumerate(left)
                if i == best or not self._surely_positive(found[i] - found[best] + worth)
            ]
            if len({one.option for one in left}) == 1 or k == self.slices:
                return min(left, key=lambda one: float(one.errors(k).mean()))
        raise AssertionError("a race of no slices")

    def better(self, one: Contender[T], other: Contender[T], share: float) -> bool:
        """True where the mean error of ``one`` is at most ``share`` times that of ``other``."""
        return self._sign(lambda k: one.errors(k) - share * other.errors(k), min(one.slices, other.slices)) <= 0

    def below(self, one: Contender[T], error: float) -> bool:
        """True where the mean error of ``one`` is less than ``error``."""
        return self._sign(lambda k: one.errors(k) - error, one.slices) < 0

    def _sign(self, differences: Callable[[int], Errors], known: int) -> float:
        """Sign of the mean of all ``differences``, from the first slices that tell; begins with those that are known."""
        for k in range(max(1, known), self.slices + 1):
            found = differences(k)
            if k == self.slices or self._surely_positive(found) or self._surely_positive(-found):
                return float(np.sign(found.mean()))
        raise AssertionError("a race of no slices")

    def _surely_positive(self, differences: Errors) -> bool:
        """True where the mean over all images is positive, as far as the first ones tell; exact once all are there."""
        n, mean = len(differences), float(differences.mean())
        if n >= self.images:
            return mean > 0
        if n < 2:
            return False
        width = float(differences.std(ddof=1)) / math.sqrt(n) * math.sqrt(1 - n / self.images)
        return mean > _quantile(n - 1) * width


@cache
def _quantile(freedom: int) -> float:
    return float(stdtrit(freedom, CONFIDENCE))
