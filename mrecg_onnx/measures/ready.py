"""Ready metrics by name. A new one is a row: how it is made, and which packages it needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.measures.detection import DetectionMap
from mrecg_onnx.measures.given import as_numbers
from mrecg_onnx.measures.metric import Metric
from mrecg_onnx.measures.metrics import topk_correct
from mrecg_onnx.measures.predictions import two_axes
from mrecg_onnx.measures.segmentation import MeanIoU

if TYPE_CHECKING:
    from mrecg_onnx.measures.metric import Accumulating

__all__ = ["READY", "Ready"]


@dataclass(frozen=True)
class Ready:
    """A row of :data:`READY`.

    Attributes:
        name: of the metric.
        make: makes the function or object.
        says: what it is, for help pages.
        packages: what it needs beside what the product needs.
        extra: the extra of this package that brings them.
    """

    name: str
    make: Callable[[], Callable[[Any, Any], float] | Accumulating]
    says: str
    packages: tuple[str, ...] = ()
    extra: str = ""

    def require(self) -> None:
        """Refuse, before the work, a metric whose packages are not there.

        Raises:
            SettingsError: one is missing.
        """
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise SettingsError(
                f"metric {self.name} needs {' and '.join(missing)}: pip install 'mrecg-onnx[{self.extra}]'"
            )

    def metric(self) -> Metric:
        """The metric."""
        return Metric(self.make(), self.name, lower_is_better=False, percent=True, needs_targets=True, spec=self.name)


class _TopK:
    """Share of images with their class among the ``k`` largest scores."""

    def __init__(self, k: int) -> None:
        self.k, self.right, self.images = k, 0, 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch: class indices are the targets, the first output [N, classes] has the scores."""
        found = outputs.values() if isinstance(outputs, dict) else [outputs]
        scores = next((rows for x in found if (rows := two_axes(x)) is not None), None)
        if scores is None:
            raise DataError(f"metric top-{self.k}: no output is [N, classes]")
        labels = as_numbers(targets)
        if labels is not None and labels.shape[1:] == (1,):
            labels = labels[:, 0]
        # numpy.loadtxt and tables of pandas have whole numbers as floats, which are classes, too.
        whole = (
            labels is not None
            and labels.ndim == 1
            and labels.dtype.kind in "iuf"
            and (labels == np.floor(labels)).all()
        )
        if labels is None or not whole:
            raise DataError(f"metric top-{self.k}: class indices are wanted as targets, one an image")
        if len(labels) and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
            raise DataError(
                f"metric top-{self.k}: labels {labels.min():g} to {labels.max():g} for {scores.shape[1]} classes"
            )
        self.right += int(topk_correct(scores, labels.astype(np.int64), self.k).sum())
        self.images += len(labels)

    def compute(self) -> float:
        """The share."""
        return self.right / self.images


_ROWS = (
    Ready("top-1", partial(_TopK, 1), "share of images whose largest score is their class's"),
    Ready("top-5", partial(_TopK, 5), "share of images with their class among the five largest scores"),
    Ready(
        "mAP", DetectionMap, "boxes found, mean average precision at IoU .50 to .95 (COCO)", ("pycocotools",), "detection"
    ),
    Ready("mAP50", partial(DetectionMap, iou=0.5), "the same at IoU .50", ("pycocotools",), "detection"),
    Ready("mIoU", MeanIoU, "pixels' classes, mean over classes of intersection over union"),
)  # fmt: skip
#: Ready metrics, all of them shares.
READY: dict[str, Ready] = {row.name: row for row in _ROWS}
