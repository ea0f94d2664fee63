"""Mean intersection over union of segmentation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.measures.given import as_numbers, told

__all__ = ["IGNORED", "MeanIoU"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
#: The class of pixels that do not count, as in Pascal VOC and Cityscapes.
IGNORED = 255


class MeanIoU:
    """Mean over classes of intersection over union, all images' pixels together (Long et al., CVPR 2015; Pascal VOC).

    Outputs are scores ``[N, classes, H, W]`` or ``[N, H, W, classes]``, or classes ``[N, H, W]`` (with an axis of 1 in front or
    behind, too); of several outputs the first counts that is one of them. Targets are classes of the same size, ``[H, W]`` for
    each image. Classes that neither targets nor outputs hold do not count.

    Args:
        ignored: pixels of this class in the targets do not count; nor do those below 0.
    """

    #: Outputs are wanted by name, also where there is one.
    by_name = True

    def __init__(self, ignored: int = IGNORED) -> None:
        self.ignored = ignored
        self._counts = np.zeros((0, 0), np.int64)
        self._left_out = False

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch.

        Raises:
            DataError: outputs and targets do not fit each other.
        """
        wanted = [_mask(target) for target in targets]
        named = outputs if isinstance(outputs, dict) else {"": outputs}
        found = list(named.values())
        size = wanted[0].shape
        classes = next((c for x in found if (c := _classes(np.asarray(x), size)) is not None), None)
        if classes is None:
            shapes = ", ".join(f"{name} {list(np.asarray(x).shape)}".strip() for name, x in named.items())
            raise DataError(
                f"metric mIoU: no output ({shapes}) holds classes or scores of classes for masks of {size[0]}x{size[1]} pixels"
            )
        made, count = classes
        for guess, mask in zip(made, wanted, strict=True):
            if mask.shape != size:
                raise DataError(
                    f"metric mIoU: masks of {size[0]}x{size[1]} and of {mask.shape[0]}x{mask.shape[1]} pixels"
                )
            counts = (mask != self.ignored) & (mask >= 0)
            self._left_out |= bool((mask == self.ignored).any())
            true, said = mask[counts].astype(np.int64), guess[counts].astype(np.int64)
            if count and true.size and int(true.max()) >= count:
                raise DataError(
                    f"metric mIoU: class {true.max()} in a mask is beyond the {count} classes of the outputs"
                )
            most = max(count, int(true.max(initial=-1)) + 1, int(said.max(initial=-1)) + 1)
            if most > MOST_CLASSES:
                raise DataError(f"metric mIoU: {most} classes are more than {MOST_CLASSES}: masks hold no classes")
            self._grow(most)
            n = len(self._counts)
            self._counts += np.bincount(true * n + said, minlength=n * n).reshape(n, n)

    def _grow(self, count: int) -> None:
        more = count - len(self._counts)
        if more > 0:
            self._counts = np.pad(self._counts, (0, more))

    def compute(self) -> float:
        """The mean, 0 to 1.

        Raises:
            DataError: all pixels are ignored.
        """
        both = np.diag(self._counts)
        either = self._counts.sum(0) + self._counts.sum(1) - both
        if not either.any():
            raise DataError("metric mIoU: no pixel of the masks counts")
        if self._left_out and not self._counts[1:].any():
            said = "the masks hold class 0 and %d alone, and %d does not count: write the class in its place"
            logger.warning(said, self.ignored, self.ignored)
        return float((both[either > 0] / either[either > 0]).mean())


#: Classes at most: masks of other things (instances, depths) hold thousands of values.
MOST_CLASSES = 4096


def _mask(target: Any) -> Array:
    """A target as classes [H, W].

    Raises:
        DataError: it is something else.
    """
    mask, wanted = as_numbers(target), "whole numbers [H, W], the pixels' classes, are wanted"
    if isinstance(target, Mapping):
        raise DataError(f"metric mIoU: a target is a dict, as of boxes: {wanted}")
    if mask is None or mask.ndim != 2 or mask.dtype.kind not in "iub":
        raise DataError(f"metric mIoU: a target is {told(target)}: {wanted}")
    return mask


def _classes(output: Array, size: tuple[int, ...]) -> tuple[Array, int] | None:
    """Classes [N, H, W] of an output and how many there are (0: not known), None where it holds none of masks of this size."""
    if output.dtype.kind in "iu" and output.ndim == 4 and 1 in {output.shape[1], output.shape[3]}:
        output = output[:, 0] if output.shape[1] == 1 else output[..., 0]
    if output.ndim == 3 and output.shape[1:] == size and output.dtype.kind in "iu":
        return output, 0
    if output.ndim != 4 or output.dtype.kind != "f":
        return None
    if output.shape[2:] == size and output.shape[1] > 1:
        return output.argmax(1), output.shape[1]
    if output.shape[1:3] == size and output.shape[3] > 1:
        return output.argmax(3), output.shape[3]
    return None
