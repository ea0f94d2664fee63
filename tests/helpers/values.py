"""Values of the shapes that weights and activations come in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from hypothesis import strategies as st

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BITS", "KINDS", "SEEDS", "values"]

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(["normal", "positive", "negative", "outliers", "shifted", "constant"])


def values(kind: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Values of one of the shapes that weights and activations come in."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return {
        "normal": x,
        "positive": x.relu(),
        "negative": -x.abs(),
        "outliers": torch.where(torch.rand(shape, generator=generator) < 0.02, x * 30, x),
        "shifted": x + 3,
        "constant": torch.full(shape, 0.7),
    }[kind]
