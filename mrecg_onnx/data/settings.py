"""Which images a run reads, how many of them for what, and how they become inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mrecg_onnx.converters.choices import AtLeast, Between, SettingsGroup
from mrecg_onnx.data.profiles import PreprocessField

__all__ = ["RANGE_IMAGES", "SAMPLES", "DataSettings"]

#: Calibration images used at most where the user does not say.
SAMPLES = 1024
#: Images on which activation ranges are searched where the user does not say.
RANGE_IMAGES = 64
#: What every generator of random numbers takes.
MOST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class DataSettings(SettingsGroup):
    """Calibration images.

    Attributes:
        samples: calibration images used at most, None for 1024; with ``zeroq`` the number made, None for 256.
        range_samples: images for the range search, None for ``samples`` where given, else :data:`RANGE_IMAGES`.
        batch_size: images an iteration, of learning or of making them.
        seed: seed of every random choice.
        preprocess: how an image becomes an input: a Preprocess, the name of a profile ("imagenet", "unit", "raw") or a file with
            one (:mod:`mrecg_onnx.data.profiles`). By default what a file beside the model says, else ImageNet's mean and
            deviation where the input has three channels; others have to be told.
    """

    samples: Annotated[int | None, AtLeast(1)] = None
    range_samples: Annotated[int | None, AtLeast(1)] = None
    batch_size: Annotated[int, AtLeast(1)] = 32
    seed: Annotated[int, Between(0, MOST_SEED)] = 0
    preprocess: PreprocessField = PreprocessField()  # noqa: RUF009 - a descriptor, which holds nothing itself

    @property
    def most_images(self) -> int:
        """Calibration images at most, where they are not made."""
        return self.samples or SAMPLES

    @property
    def range_images(self) -> int:
        """Images for the range search."""
        return self.range_samples or self.samples or RANGE_IMAGES
