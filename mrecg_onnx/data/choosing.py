"""Which samples of many are taken: spread over all of them, as folders are often sorted by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mrecg_onnx.converters.errors import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["middle_of_strata", "pick"]


def pick(total: int, samples: int | None, seed: int) -> NDArray[np.int64]:
    """``samples`` of ``total`` positions in rising order, one drawn from each of ``samples`` equal stretches."""
    if samples is None:
        return np.arange(total)
    if samples < 1:
        raise SettingsError(f"the number of samples (--samples, --limit) must be 1 or more, got {samples}")
    if samples >= total:
        return np.arange(total)
    edges = np.arange(samples + 1) * total // samples
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def middle_of_strata(total: int, limit: int | None) -> list[int]:
    """``limit`` of ``total`` positions in rising order, the middle of each of ``limit`` equal stretches; all where None."""
    if limit is None or limit >= total:
        return list(range(total))
    if limit < 1:
        raise SettingsError(f"limit must be 1 or more, got {limit}")
    return [(2 * number + 1) * total // (2 * limit) for number in range(limit)]
