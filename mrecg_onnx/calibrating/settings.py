"""How images are made where there are none, as a user chooses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mrecg_onnx.converters.choices import AtLeast
from mrecg_onnx.data import DataSettings, PreprocessField

__all__ = ["IMAGES", "ZeroqSettings"]

#: Images that are made where the user does not say how many.
IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class ZeroqSettings(DataSettings):
    """Images made from the network's own statistics.

    Attributes:
        zeroq_iters: iterations for a batch of images made by ``zeroq``.
    """

    # Once more: mypy takes the type that an inherited descriptor is set to for the one that it gives.
    preprocess: PreprocessField = PreprocessField()  # noqa: RUF009 - a descriptor, which holds nothing itself
    zeroq_iters: Annotated[int, AtLeast(1)] = 500
