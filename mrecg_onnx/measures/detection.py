"""Mean average precision of boxes, counted by pycocotools as COCO counts it (the extra ``detection``)."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mrecg_onnx.converters.errors import DataError, SettingsError

__all__ = ["DetectionMap", "detections_of", "mean_average_precision", "named_detections"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
#: How outputs are called that hold boxes, scores and classes, in lower case; the first that fits counts.
_NAMES = {"boxes": ("box", "bbox"), "scores": ("score", "conf"), "labels": ("label", "class", "cls")}
_WANTED = "wanted are boxes [N, M, 4] and scores [N, M, classes], or scores [N, M] and an output called labels or classes [N, M]"
_OTHERS = "for other forms give a metric of your own that calls mean_average_precision"
#: Images on which two ways of counting classes are compared.
_COMPARED = 500
#: Detections of an image that count, the surest first, as COCO has it.
MOST = 100
#: The label of boxes whose outputs name no class: they are of the one class that the targets have.
UNNAMED = -1


class DetectionMap:
    """Mean average precision, a metric that is told of one batch after the other.

    Outputs are what :func:`detections_of` takes, targets what :func:`mean_average_precision` does.

    Args:
        iou: the overlap from which on a box is found; None: the mean over .50, .55 ... .95.
    """

    def __init__(self, iou: float | None = None) -> None:
        self.iou = iou
        self._found: list[dict[str, Array]] = []
        self._wanted: list[dict[str, Array]] = []
        self._unnamed = False
        self._told = _Once()

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch.

        Raises:
            DataError: outputs hold no detections, or targets no boxes.
        """
        wanted = [_wanted(target) for target in targets]
        _check_classes(outputs, wanted)
        self._wanted += wanted
        found = detections_of(outputs)
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
                f"metric mAP: outputs are {_told(outputs)}: no classes are among them, and the targets have {len(classes)} "
                f"({some}); {_WANTED}"
            )

    def compute(self) -> float:
        """The figure, 0 to 1.

        Raises:
            DataError: no target holds a box.
        """
        only = next(iter(_classes(self._wanted)), 0)
        found = [one | {"labels": np.where(one["labels"] == UNNAMED, only, one["labels"])} for one in self._found]
        worth = mean_average_precision(found, self._wanted, iou=self.iou)
        self._compare_counts(found[:_COMPARED])
        return worth

    def _compare_counts(self, found: Sequence[Mapping[str, Array]]) -> None:
        """Warn where the model counts classes from 0 and the targets from 1: the next label fits better than its own.

        One that has a background at 0 and counts as the targets do is worth less so.
        """
        wanted = self._wanted[: len(found)]
        classes = _classes(wanted)
        if self._told.done or not classes or classes[0] < 1 or not any((one["labels"] == 0).any() for one in found):
            return
        shifted = [{**one, "labels": one["labels"] + 1} for one in found]
        own, next_one = (mean_average_precision(labels, wanted, iou=self.iou) for labels in (found, shifted))
        if next_one > own:
            self._told.done = True
            logger.warning(
                "metric mAP: the model gives label 0, which no target has, and its labels plus 1 are worth %.2f%%, its own "
                "%.2f%%: they do not count alike; of COCO's JSON --labels FILE.json:order counts categories from 0",
                100 * next_one,
                100 * own,
            )


class _Once:
    """Whether something was told, one for all copies of a metric: each model has its own."""

    def __init__(self) -> None:
        self.done = False

    def __deepcopy__(self, memo: dict[int, Any]) -> _Once:
        return self


def _classes(wanted: Sequence[Mapping[str, Array]]) -> list[int]:
    """Those of the targets, in order."""
    return sorted({int(label) for one in wanted for label in one["labels"]})


def _told(outputs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {list(np.asarray(x).shape)}" for name, x in outputs.items())


def _check_classes(outputs: Any, wanted: Sequence[Mapping[str, Array]]) -> None:
    """Refuse targets of classes beyond those that outputs have scores for.

    Raises:
        DataError: there are some.
    """
    if not isinstance(outputs, Mapping):
        return
    scores = next((np.asarray(x) for name, x in outputs.items() if _is_called(name, "scores")), None)
    most = max((int(one["labels"].max()) for one in wanted if len(one["labels"])), default=-1)
    if scores is not None and scores.ndim == 3 and 1 < scores.shape[2] <= most:
        raise DataError(
            f"metric mAP: class {most} in a target is beyond the {scores.shape[2]} classes of the outputs, which count from 0; "
            "of COCO's JSON --labels FILE.json:order counts categories so, in the order of their ids"
        )


def _is_called(name: str, kind: str) -> bool:
    return any(word in name.lower() for word in _NAMES[kind])


def named_detections(names: Iterable[str]) -> bool:
    """Whether outputs of these names are boxes with their scores, as far as names tell."""
    left = list(names)
    for kind in ("boxes", "scores"):
        found = next((name for name in left if _is_called(name, kind)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def detections_of(outputs: Any) -> list[dict[str, Array]]:
    """The detections of each image in a detector's outputs.

    Args:
        outputs: a dict with boxes ``[N, M, 4]``, scores ``[N, M]`` and classes ``[N, M]``, or scores ``[N, M, classes]`` in place
            of the last two, in outputs whose names hold these words; or one array ``[N, M, 6]`` of corners, score and class.
            Corners are ``x0, y0, x1, y1``. Boxes with scores ``[N, M]`` or ``[N, M, 1]`` and no classes are of one class.

    Returns:
        For each image boxes ``[n, 4]``, scores ``[n]`` and labels ``[n]``, :data:`UNNAMED` where all are of one class; those with
        a score of 0 or less, which fill up a row, are left out.

    Raises:
        DataError: they are in none of these forms.
    """
    if not isinstance(outputs, Mapping):
        rows = np.asarray(outputs)
        if rows.ndim != 3 or rows.shape[2] != 6:
            raise DataError(
                f"metric mAP: the output is {list(rows.shape)}: [N, M, 6] (x0, y0, x1, y1, score, class) is wanted, or boxes, "
                f"scores and classes in outputs of these names; {_OTHERS}"
            )
        return [_kept(one[:, :4], one[:, 4], one[:, 5]) for one in rows]
    left = {name: np.asarray(x) for name, x in outputs.items()}
    boxes, scores, labels = (_taken(left, kind) for kind in _NAMES)
    if boxes is None or scores is None or boxes.ndim != 3 or boxes.shape[2] != 4:
        raise DataError(f"metric mAP: outputs are {_told(outputs)}: {_WANTED}; {_OTHERS}")
    if scores.ndim == 3 and scores.shape[2] == 1:
        scores = scores[..., 0]
    if scores.ndim == 3:  # every class of every box
        count, each = scores.shape[1:]
        wide = np.repeat(np.arange(count), each)
        classes = np.tile(np.arange(each), count)
        return [_kept(b[wide], s.reshape(-1), classes) for b, s in zip(boxes, scores, strict=True)]
    if scores.shape != boxes.shape[:2]:
        raise DataError(f"metric mAP: outputs are {_told(outputs)}: {_WANTED}")
    if labels is None and not any(x.shape == scores.shape and x.shape[1] > 1 for x in left.values()):
        labels = np.full(scores.shape, UNNAMED)
    if labels is None or labels.size != scores.size:  # classes may be there, under another name or in another shape
        raise DataError(
            f"metric mAP: outputs are {_told(outputs)}: whether one of them holds classes cannot be told; {_WANTED} "
            "(--outputs boxes --outputs scores leaves others out)"
        )
    return [_kept(b, s, c.reshape(-1)) for b, s, c in zip(boxes, scores, labels, strict=True)]


def _taken(left: dict[str, Array], kind: str) -> Array | None:
    """The first output that is called so, which is none of the other kinds then: class_scores are scores."""
    names = [name for name in left if _is_called(name, kind)]
    if kind == "boxes":  # of box_scores and boxes the latter
        names.sort(key=lambda name: left[name].shape[-1:] != (4,))
    return left.pop(names[0]) if names else None


def _kept(boxes: Array, scores: Array, labels: Array) -> dict[str, Array]:
    some = np.flatnonzero(scores > 0)
    some = some[np.argsort(-scores[some], kind="stable")][: 10 * MOST]
    return {"boxes": boxes[some], "scores": scores[some], "labels": np.rint(labels[some]).astype(np.int64)}


def _wanted(target: Any) -> dict[str, Array]:
    """The boxes of a target.

    Raises:
        DataError: it holds none.
    """
    said = "metric mAP: a target is"
    if isinstance(target, Mapping):
        if not {"boxes", "labels"} <= set(target):
            raise DataError(f"{said} a dict of {', '.join(map(str, target))}: boxes [n, 4] and labels [n] are wanted")
        boxes = np.asarray(target["boxes"], np.float64).reshape(-1, 4)
        labels = np.asarray(target["labels"]).reshape(-1).astype(np.int64)
        if len(boxes) != len(labels):
            raise DataError(f"{said} a dict of {len(boxes)} boxes and {len(labels)} labels")
        crowd = np.asarray(target.get("iscrowd", np.zeros(len(boxes))), bool).reshape(-1)
        return {"boxes": boxes, "labels": labels, "crowd": crowd}
    rows = np.asarray(target)
    if rows.ndim != 2 or rows.shape[1] != 5 or rows.dtype.kind not in "fiu":
        raise DataError(
            f"{said} {rows.dtype} {list(rows.shape)}: a dict of boxes [n, 4] and labels [n], or rows of x0, y0, x1, y1, class "
            "[n, 5] (class -1: no box) are wanted"
        )
    rows = rows[rows[:, 4] >= 0].astype(np.float64)
    return {"boxes": rows[:, :4], "labels": rows[:, 4].astype(np.int64), "crowd": np.zeros(len(rows), bool)}


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
        DataError: there is no box in the targets, or they are not as many as the detections.
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
    wanted = [target if isinstance(target, dict) and "crowd" in target else _wanted(target) for target in targets]
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


def _corner_and_size(box: Array) -> list[float]:
    x0, y0, x1, y1 = (float(x) for x in box)
    return [x0, y0, max(0.0, x1 - x0), max(0.0, y1 - y0)]


def _area(box: Array) -> dict[str, float]:
    _, _, width, height = _corner_and_size(box)
    return {"area": width * height, "ignore": 0}
