"""Mean average precision of boxes, counted by pycocotools as COCO counts it (the extra ``detection``)."""

from __future__ import annotations

import contextlib
import io
import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mrecg_onnx.converters.errors import DataError, MetricError, SettingsError
from mrecg_onnx.measures.box_forms import (
    ADVICE,
    MOST,
    UNNAMED,
    WANTED,
    boxes_in,
    check_scored_classes,
    detections_of,
    outputs_told,
    turned,
)
from mrecg_onnx.measures.given import as_numbers, told

__all__ = ["DetectionMap", "mean_average_precision"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
#: Images on which two ways of counting classes are compared.
_COMPARED = 500


class DetectionMap:
    """Mean average precision, a metric that is told of one batch after the other.

    Outputs are what :func:`detections_of` takes, targets what :func:`mean_average_precision` does. Whether values of outputs are
    what their shape says is looked at on the first model alone, the float one.

    Args:
        iou: the overlap from which on a box is found; None: the mean over .50, .55 ... .95.
    """

    #: Outputs are wanted by name, also where there is one.
    by_name = True

    def __init__(self, iou: float | None = None) -> None:
        self.iou = iou
        self._found: list[dict[str, Array]] = []
        self._wanted: list[dict[str, Array]] = []
        self._unnamed = False
        self._outputs = ""
        self._shared = _Shared()

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch.

        Raises:
            DataError: outputs hold no detections, or targets no boxes.
            MetricError: outputs have the shape of detections, and values that are none.
        """
        wanted = [boxes_in(target) for target in targets]
        check_scored_classes(outputs, wanted)
        self._wanted += wanted
        self._outputs = outputs_told(outputs)
        found = detections_of(outputs, look=self._shared.is_first(self))
        self._found += found
        self._unnamed |= any((one["labels"] == UNNAMED).any() for one in found)
        if self._unnamed:
            self._check_one_class(outputs)

    def _check_one_class(self, outputs: Mapping[str, Any]) -> None:
        """Refuse outputs without classes where the targets have several.

        Raises:
            DataError: they have.
        """
        classes = _classes(self._wanted)
        if len(classes) > 1:
            some = ", ".join(map(str, classes[:5])) + (", ..." if len(classes) > 5 else "")
            raise DataError(
                f"metric mAP: {outputs_told(outputs)}: no classes are among them, and the targets have {len(classes)} ({some}); "
                f"{WANTED}"
            )

    def compute(self) -> float:
        """The figure, 0 to 1.

        Raises:
            DataError: no target holds a box, or its boxes are no corners.
            MetricError: boxes of the outputs are no corners.
        """
        if self._shared.is_first(self):
            self._check_corners()
        self._shared.sound = True
        only = next(iter(_classes(self._wanted)), 0)
        found = [one | {"labels": np.where(one["labels"] == UNNAMED, only, one["labels"])} for one in self._found]
        worth = mean_average_precision(found, self._wanted, iou=self.iou)
        self._compare_counts(found[:_COMPARED])
        return worth

    def _check_corners(self) -> None:
        """Refuse boxes that end before they begin, but for a few: of centre and size, or of corner and size.

        Raises:
            DataError: those of the targets do.
            MetricError: those of the outputs do.
        """
        share = turned(self._wanted)
        if share is not None:
            raise DataError(
                f"metric mAP: in {share:.0%} of the boxes of the targets x1 < x0 or y1 < y0: x0, y0, x1, y1 are wanted, no sizes"
            )
        share = turned(self._found)
        if share is not None:
            raise MetricError(
                f"metric mAP: {self._outputs}: boxes were taken for x0, y0, x1, y1, but in {share:.0%} of them x1 < x0 or y1 < "
                f"y0, as where two of the numbers are a size; {ADVICE}"
            )

    def _compare_counts(self, found: Sequence[Mapping[str, Array]]) -> None:
        """Warn where the model counts classes from 0 and the targets from 1: the next label fits better than its own.

        One that has a background at 0 and counts as the targets do is worth less so.
        """
        wanted = self._wanted[: len(found)]
        classes = _classes(wanted)
        if self._shared.told or not classes or classes[0] < 1 or not any((one["labels"] == 0).any() for one in found):
            return
        shifted = [{**one, "labels": one["labels"] + 1} for one in found]
        own, next_one = (mean_average_precision(labels, wanted, iou=self.iou) for labels in (found, shifted))
        if next_one > own:
            self._shared.told = True
            logger.warning(
                "metric mAP: the model gives label 0, which no target has, and its labels plus 1 are worth %.2f%%, its own "
                "%.2f%%: they do not count alike; of COCO's JSON --labels FILE.json:order counts categories from 0",
                100 * next_one,
                100 * own,
            )


class _Shared:
    """What copies of a metric know of each other: each model has its own.

    Attributes:
        told: a doubt was, by one of them.
        sound: what the first model gave is what its shape says.
    """

    def __init__(self) -> None:
        self.told = self.sound = False
        self._first: weakref.ref[DetectionMap] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self

    def is_first(self, one: DetectionMap) -> bool:
        """Whether ``one`` is told of the first model, and nobody was through with it."""
        if self.sound:
            return False
        if self._first is None or self._first() is None:
            self._first = weakref.ref(one)
        return self._first() is one


def _classes(wanted: Sequence[Mapping[str, Array]]) -> list[int]:
    """Those of the targets, in order."""
    return sorted({int(label) for one in wanted for label in one["labels"]})


def mean_average_precision(
    detections: Sequence[Mapping[str, Any]], targets: Sequence[Any], *, iou: float | None = None
) -> float:
    """Mean average precision of boxes, as COCO counts it: 101 points of recall, 100 detections an image, all sizes.

    Args:
        detections: for each image a dict of ``boxes`` [n, 4] (corners x0, y0, x1, y1), ``scores`` [n] and ``labels`` [n].
        targets: for each image a dict of ``boxes`` [n, 4] and ``labels`` [n] (and ``iscrowd`` [n] where some stand for
            many), as torchvision has them, or rows ``x0, y0, x1, y1, class`` [n, 5], those of class -1 being none.
        iou: the overlap from which on a box is found; None: the mean over .50, .55 ... .95.

    Returns:
        The figure, 0 to 1.

    Raises:
        SettingsError: pycocotools is not installed, or ``iou`` is not between 0 and 1.
        DataError: there is no box in the targets, they are not as many as the detections, or one of either has another form.
    """
    try:
        from pycocotools.coco import COCO  # noqa: PLC0415 - an extra
        from pycocotools.cocoeval import COCOeval  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(f"mAP needs pycocotools ({error}): pip install 'mrecg-onnx[detection]'") from error
    if iou is not None and not 0 < iou < 1:
        raise SettingsError(f"iou is {iou}: it must lie between 0 and 1")
    if len(detections) != len(targets):
        raise DataError(f"metric mAP: {len(detections)} images with detections, {len(targets)} with targets")
    for one in detections:
        _check_detection(one)
    wanted = [target if isinstance(target, dict) and "crowd" in target else boxes_in(target) for target in targets]
    if not any(len(w["boxes"]) for w in wanted):
        raise DataError("metric mAP: no target holds a box")
    labels = {int(x) for w in wanted for x in w["labels"]} | {
        int(x) for d in detections for x in np.asarray(d["labels"])
    }
    # Categories and annotations are counted from 1: COCOeval takes an id of 0 for "matched with nothing".
    category = {label: i for i, label in enumerate(sorted(labels), 1)}
    truth = [
        {"image_id": i, "category_id": category[int(c)], "bbox": _corner_and_size(b), "iscrowd": int(k), **_area(b)}
        for i, w in enumerate(wanted, 1)
        for b, c, k in zip(w["boxes"], w["labels"], w["crowd"], strict=True)
    ]
    found = [
        {"image_id": i, "category_id": category[int(c)], "bbox": _corner_and_size(b), "score": float(s), **_area(b)}
        for i, d in enumerate(detections, 1)
        for b, s, c in zip(np.asarray(d["boxes"]).reshape(-1, 4), np.asarray(d["scores"]), np.asarray(d["labels"]), strict=True)
    ]  # fmt: skip
    if not found:
        return 0.0
    base = {
        "images": [{"id": i} for i in range(1, len(wanted) + 1)],
        "categories": [{"id": i} for i in category.values()],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress there
        sides = []
        for entries in (truth, found):
            side = COCO()
            side.dataset = base | {"annotations": [entry | {"id": i} for i, entry in enumerate(entries, 1)]}
            side.createIndex()
            sides.append(side)
        counted = COCOeval(*sides, iouType="bbox")
        if iou is not None:
            counted.params.iouThrs = np.array([iou])
        counted.params.areaRng, counted.params.areaRngLbl = counted.params.areaRng[:1], counted.params.areaRngLbl[:1]
        counted.params.maxDets = [MOST]
        counted.evaluate()
        counted.accumulate()
    precision = counted.eval["precision"]  # [overlaps, recalls, classes, 1, 1], -1 where a class has no box
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


def _check_detection(one: Any) -> None:
    """Refuse what are no detections of an image.

    Raises:
        DataError: it has another form.
    """
    said = "metric mAP: detections of an image are"
    if not isinstance(one, Mapping) or not {"boxes", "scores", "labels"} <= set(one):
        raise DataError(f"{said} {told(one)}: a dict of boxes [n, 4], scores [n] and labels [n] is wanted")
    parts = [as_numbers(one[name]) for name in ("boxes", "scores", "labels")]
    sizes = {None if part is None else part.size // each for part, each in zip(parts, (4, 1, 1), strict=True)}
    if len(sizes) > 1 or sizes == {None}:
        shapes = ", ".join(f"{name} {told(one[name])}" for name in ("boxes", "scores", "labels"))
        raise DataError(f"{said} {shapes}: boxes [n, 4], scores [n] and labels [n] are wanted")


def _corner_and_size(box: Array) -> list[float]:
    x0, y0, x1, y1 = (float(x) for x in box)
    return [x0, y0, max(0.0, x1 - x0), max(0.0, y1 - y0)]


def _area(box: Array) -> dict[str, float]:
    _, _, width, height = _corner_and_size(box)
    return {"area": width * height, "ignore": 0}
