"""Boxes in a detector's outputs and in targets: the forms that are taken, and what tells that they are of another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mrecg_onnx.converters.errors import DataError, MetricError
from mrecg_onnx.converters.text import quoted
from mrecg_onnx.measures.given import as_numbers, told

__all__ = [
    "ADVICE",
    "MOST",
    "UNNAMED",
    "WANTED",
    "boxes_in",
    "check_scored_classes",
    "detections_of",
    "named_detections",
    "outputs_told",
    "turned",
]

Array = npt.NDArray[Any]
#: How outputs are called that hold boxes, scores and classes, in lower case; the first that fits counts.
_NAMES = {"boxes": ("box", "bbox"), "scores": ("score", "conf"), "labels": ("label", "class", "cls")}
WANTED = "wanted are boxes [N, M, 4] and scores [N, M, classes], or scores [N, M] and an output called labels or classes [N, M]"
_OTHERS = "for other forms give a metric of your own that calls mean_average_precision"
ADVICE = "bring it into a form of docs/metrics.md, or give a metric of your own that calls mean_average_precision"
_COLUMNS = "x0, y0, x1, y1, score, class"
#: Detections of an image that count, the surest first, as COCO has it.
MOST = 100
#: The label of boxes whose outputs name no class: they are of the one class that the targets have.
UNNAMED = -(2**62)
#: Classes in half precision are whole numbers but for so much.
_WHOLE = 1e-3
#: From this share of boxes on whose second corner lies before the first, none of them are corners.
_TURNED = 0.5


def outputs_told(outputs: Any) -> str:
    """Outputs with their shapes, for messages."""
    if not isinstance(outputs, Mapping):
        return f"the output is {list(np.asarray(outputs).shape)}"
    each = ", ".join(f"{name} {list(np.asarray(x).shape)}" for name, x in outputs.items())
    return f"{'outputs are' if len(outputs) > 1 else 'the output is'} {each}"


def check_scored_classes(outputs: Any, wanted: Sequence[Mapping[str, Array]]) -> None:
    """Refuse targets of classes beyond those that outputs have scores for.

    Raises:
        DataError: there are some.
    """
    if not isinstance(outputs, Mapping) or len(outputs) == 1:
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


def detections_of(outputs: Any, *, look: bool = True) -> list[dict[str, Array]]:
    """The detections of each image in a detector's outputs.

    Args:
        outputs: a dict with boxes ``[N, M, 4]``, scores ``[N, M]`` and classes ``[N, M]``, or scores ``[N, M, classes]`` in place
            of the last two, in outputs whose names hold these words; or one array ``[N, M, 6]`` of corners, score and class,
            alone or in a dict. Corners are ``x0, y0, x1, y1``. Boxes with scores ``[N, M]`` or ``[N, M, 1]`` and no classes are
            of one class.
        look: refuse values that are no classes or scores, whatever the shape. Of a quantized model they may be off.

    Returns:
        For each image boxes ``[n, 4]``, scores ``[n]`` and labels ``[n]``, :data:`UNNAMED` where all are of one class; those with
        a score of 0 or less, which fill up a row, are left out.

    Raises:
        DataError: they are in none of these forms.
        MetricError: they have the shape of one, and values that are not of it.
    """
    if not isinstance(outputs, Mapping) or len(outputs) == 1:
        name, rows = next(iter(outputs.items())) if isinstance(outputs, Mapping) else (None, outputs)
        rows = np.asarray(rows)
        if rows.ndim != 3 or rows.shape[2] != 6:
            raise DataError(
                f"metric mAP: {outputs_told(outputs)}: [N, M, 6] ({_COLUMNS}) is wanted, or boxes, scores and classes in outputs "
                f"of these names; {_OTHERS}"
            )
        if look:
            where = f"output{f' {quoted(name)}' if name is not None else ''} {list(rows.shape)}"
            _check_values(
                rows[..., 4],
                rows[..., 5],
                f"{where} was taken for {_COLUMNS}",
                "in its last column",
                "its fifth column",
            )
        return [_kept(one[:, :4], one[:, 4], one[:, 5]) for one in rows]
    left = {name: np.asarray(x) for name, x in outputs.items()}
    (_, boxes), (scored, scores), (classed, labels) = (_taken(left, kind) for kind in _NAMES)
    said = f"metric mAP: {outputs_told(outputs)}"
    if boxes is None or scores is None or boxes.ndim != 3 or boxes.shape[2] != 4:
        raise DataError(f"{said}: {WANTED}; {_OTHERS}")
    if scores.ndim == 3 and scores.shape[2] == 1:
        scores = scores[..., 0]
    where = f"output {quoted(scored)} {list(scores.shape)} was taken for scores"
    if scores.shape[:2] != boxes.shape[:2] or scores.ndim > 3:
        raise DataError(f"{said}: {WANTED}")
    if scores.ndim == 3:  # every class of every box
        if look:
            _check_scores(scores, where, "it")
        count, each = scores.shape[1:]
        wide = np.repeat(np.arange(count), each)
        classes = np.tile(np.arange(each), count)
        return [_kept(b[wide], s.reshape(-1), classes) for b, s in zip(boxes, scores, strict=True)]
    if labels is None and not any(x.shape == scores.shape and x.shape[1] > 1 for x in left.values()):
        labels = np.full(scores.shape, UNNAMED)
    elif labels is not None and labels.size == scores.size and look:
        of = f"output {quoted(classed)} {list(labels.shape)} was taken for classes"
        _check_values(scores, labels.reshape(scores.shape), of, "in it", f"output {quoted(scored)}")
    elif look:
        _check_scores(scores, where, "it")
    if labels is None or labels.size != scores.size:  # classes may be there, under another name or in another shape
        raise DataError(
            f"{said}: whether one of them holds classes cannot be told; {WANTED} (--outputs boxes --outputs scores leaves others "
            "out)"
        )
    return [_kept(b, s, c.reshape(-1)) for b, s, c in zip(boxes, scores, labels, strict=True)]


def _check_values(scores: Array, labels: Array, said: str, place: str, scored: str) -> None:
    """Refuse what can be no classes of boxes with ``scores``, of the same shape.

    Raises:
        MetricError: one is no whole number from 0, or scores are none.
    """
    counted = labels[scores > 0].astype(np.float64)
    odd = counted[~((np.abs(counted - np.rint(counted)) <= _WHOLE) & (counted > -0.5))]
    if odd.size:
        raise MetricError(f"metric mAP: {said}, but {odd[0]:.4g} {place} is no class (a whole number from 0); {ADVICE}")
    _check_scores(scores, said, scored)


def _check_scores(scores: Array, said: str, called: str) -> None:
    """Refuse logits: those below 0 would be taken for what fills up a row.

    Raises:
        MetricError: some are below 0, and not all of these the same.
    """
    below = scores[scores < 0]
    if below.size and below.min() < below.max():
        raise MetricError(
            f"metric mAP: {said}, but {called} goes from {scores.min():.4g} to {scores.max():.4g}, as logits do, and one of 0 or "
            f"less does not count; {ADVICE}"
        )


def _taken(left: dict[str, Array], kind: str) -> tuple[str, Array | None]:
    """The first output that is called so, which is none of the other kinds then: class_scores are scores."""
    names = [name for name in left if _is_called(name, kind)]
    if kind == "boxes":  # of box_scores and boxes the latter
        names.sort(key=lambda name: left[name].shape[-1:] != (4,))
    return (names[0], left.pop(names[0])) if names else ("", None)


def _kept(boxes: Array, scores: Array, labels: Array) -> dict[str, Array]:
    some = np.flatnonzero(scores > 0)
    some = some[np.argsort(-scores[some], kind="stable")][: 10 * MOST]
    return {"boxes": boxes[some], "scores": scores[some], "labels": np.rint(labels[some]).astype(np.int64)}


def boxes_in(target: Any) -> dict[str, Array]:
    """The boxes of a target: ``boxes`` [n, 4], ``labels`` [n] and ``crowd`` [n].

    Raises:
        DataError: it holds none.
    """
    said = f"metric mAP: a target is {told(target)}"
    if isinstance(target, Mapping):
        if not {"boxes", "labels"} <= set(target):
            raise DataError(f"{said}: boxes [n, 4] and labels [n] are wanted")
        boxes, labels, crowd = (_part(target, name) for name in ("boxes", "labels", "iscrowd"))
        if boxes.ndim not in {1, 2} or (boxes.size and boxes.shape[-1] != 4):
            raise DataError(f"metric mAP: boxes of a target are {told(boxes)}: [n, 4], x0, y0, x1, y1, are wanted")
        boxes, labels = boxes.astype(np.float64).reshape(-1, 4), labels.reshape(-1)
        if len(boxes) != len(labels):
            raise DataError(f"metric mAP: a target is a dict of {len(boxes)} boxes and {len(labels)} labels")
        crowd = crowd.astype(bool).reshape(-1) if "iscrowd" in target else np.zeros(len(boxes), bool)
        if len(crowd) != len(boxes):
            raise DataError(f"metric mAP: a target is a dict of {len(boxes)} boxes and {len(crowd)} iscrowd")
        return _sound({"boxes": boxes, "labels": labels, "crowd": crowd})
    rows = as_numbers(target)
    if rows is not None and not rows.size:
        rows = np.zeros((0, 5))
    if rows is None or rows.ndim != 2 or rows.shape[1] != 5:
        raise DataError(
            f"{said}: a dict of boxes [n, 4] and labels [n], or rows of x0, y0, x1, y1, class [n, 5] (class -1: no box) are "
            "wanted; --labels takes these, or COCO's JSON for images"
        )
    rows = rows[~(rows[:, 4] < 0)].astype(np.float64)
    return _sound({"boxes": rows[:, :4], "labels": rows[:, 4], "crowd": np.zeros(len(rows), bool)})


def _part(target: Mapping[str, Any], name: str) -> Array:
    """An entry of a target as numbers.

    Raises:
        DataError: it is none.
    """
    found = as_numbers(target.get(name, ()))
    if found is None:
        raise DataError(f"metric mAP: {name} of a target are {told(target[name])}: numbers are wanted")
    return found


def _sound(target: dict[str, Array]) -> dict[str, Array]:
    """``target`` with its classes as integers.

    Raises:
        DataError: one is no class, or a box is nowhere.
    """
    boxes, labels = target["boxes"], target["labels"].astype(np.float64)
    odd = labels[~((labels == np.floor(labels)) & (labels >= 0) & (labels < np.iinfo(np.int64).max))]
    if odd.size:
        raise DataError(f"metric mAP: label {odd[0]:g} in a target is no class: whole numbers from 0 are wanted")
    if not np.isfinite(boxes).all():
        raise DataError("metric mAP: a box in a target holds NaN or Inf")
    return {**target, "labels": labels.astype(np.int64)}


def turned(found: Sequence[Mapping[str, Array]]) -> float | None:
    """The share of boxes ``[n, 4]`` of all images that end before they begin; None where they are corners but for a few."""
    boxes = np.concatenate([one["boxes"] for one in found]) if found else np.zeros((0, 4))
    share = float((boxes[:, 2:] < boxes[:, :2]).any(1).mean()) if len(boxes) else 0.0
    return share if share > _TURNED else None
