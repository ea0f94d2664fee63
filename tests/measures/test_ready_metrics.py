"""Ready metrics against what others count, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.measures import MeanIoU, mean_average_precision
from mrecg_onnx.measures.detection import detections_of
from mrecg_onnx.measures.ready import READY

RNG = np.random.default_rng(0)


def worth(name: str, outputs: Any, targets: Any) -> float:
    metric: Any = READY[name].make()
    metric.update(outputs, targets)
    return float(metric.compute())


def test_classes_among_the_largest_scores() -> None:
    scores = np.eye(8, dtype=np.float32)[[0, 1, 2, 3]]
    assert worth("top-1", scores, np.array([0, 1, 5, 7])) == 0.5
    assert worth("top-5", {"aux": np.zeros((4, 3, 3)), "scores": scores}, np.array([0, 1, 5, 1])) == 0.75
    for outputs, targets, said in (
        (np.zeros((4, 3, 3)), np.zeros(4, int), "no output is"),
        (scores, np.zeros((4, 2), int), "class indices are wanted"),
        (scores, np.array([0, 1, 2, 8]), "labels 0 to 8 for 8 classes"),
    ):
        with pytest.raises(DataError, match=said):
            worth("top-1", outputs, targets)


@pytest.mark.parametrize("form", ["NCHW", "NHWC", "classes"])
def test_mean_iou_is_that_of_scikit_learn(form: str) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    masks = RNG.integers(0, 4, (3, 6, 5))
    guesses = np.where(RNG.random(masks.shape) < 0.6, masks, RNG.integers(0, 4, masks.shape))
    masks[0, 0] = 255
    scores = np.eye(6, dtype=np.float32)[guesses]  # two classes more, which nothing holds
    outputs = {"NHWC": scores, "NCHW": np.moveaxis(scores, 3, 1), "classes": guesses[:, None]}[form]
    counts = masks != 255
    wanted = sklearn.jaccard_score(masks[counts], guesses[counts], average="macro")
    metric = MeanIoU()
    for i in range(3):
        metric.update(outputs[i : i + 1], masks[i : i + 1])
    assert metric.compute() == pytest.approx(wanted)
    assert worth("mIoU", {"other": np.zeros((3, 7)), "out": outputs}, masks) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("outputs", "targets", "said"),
    [
        (
            np.zeros((1, 3, 4, 4), np.float32),
            np.zeros((1, 8, 8), int),
            r"no output \(\[1, 3, 4, 4\]\) holds classes .* of 8x8",
        ),
        (np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 4, 4)), "whole numbers"),
        (np.zeros((1, 3, 4, 4), np.float32), np.full((1, 4, 4), 3), "class 3 in a mask is beyond the 3 classes"),
        (np.zeros((1, 4, 4), int), np.full((1, 4, 4), 5000), "more than 4096"),
        (np.zeros((1, 4, 4), int), np.full((1, 4, 4), 255), "no pixel of the masks counts"),
    ],
)
def test_masks_that_do_not_fit_are_refused(outputs: Any, targets: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        worth("mIoU", outputs, targets)


BOXES = np.array([[[0, 0, 10, 10], [20, 20, 40, 40]], [[5, 5, 15, 15], [0, 0, 0, 0]]], np.float32)
SCORES = np.array([[0.9, 0.8], [0.7, 0.0]], np.float32)
CLASSES = np.array([[0, 1], [1, 0]])
TARGETS = [
    {"boxes": [[0, 0, 10, 10], [20, 20, 40, 30]], "labels": [0, 1]},
    {"boxes": [[5, 5, 15, 15]], "labels": [1]},
]


def test_forms_of_detections_say_the_same() -> None:
    wide = np.zeros((2, 2, 2), np.float32)
    np.put_along_axis(wide, CLASSES[..., None], SCORES[..., None], 2)
    forms = [
        {"boxes": BOXES, "scores": SCORES, "labels": CLASSES},
        {"pred_boxes": BOXES, "class_scores": wide},
        np.concatenate([BOXES, SCORES[..., None], CLASSES[..., None]], 2),
    ]
    for form in forms:
        found = detections_of(form)
        assert [one["labels"].tolist() for one in found] == [[0, 1], [1]]
        assert found[0]["boxes"].tolist() == BOXES[0].tolist()
    for form, said in (
        (np.zeros((2, 84, 100)), r"\[2, 84, 100\]: \[N, M, 6\]"),
        (
            {"boxes": BOXES, "scores": SCORES, "kinds": CLASSES},
            r"kinds \[2, 2\]: whether one of them holds classes",
        ),
        (
            {"boxes": BOXES, "scores": SCORES, "labels": CLASSES[:, :1]},
            r"labels \[2, 1\]: whether one of them holds classes",
        ),
        ({"boxes": BOXES, "scores": SCORES[:, :1]}, r"scores \[2, 1\]: wanted are boxes"),
        ({"a": BOXES, "b": SCORES}, r"outputs are a \[2, 2, 4\], b \[2, 2\]"),
    ):
        with pytest.raises(DataError, match=said):
            detections_of(form)


@pytest.mark.parametrize("one_class", [0, 17])
def test_outputs_without_classes_are_of_the_one_class_that_the_targets_have(one_class: int) -> None:
    """As a detector of one thing gives them, and what is found behind NonMaxSuppression, image by image."""
    pytest.importorskip("pycocotools", reason="pycocotools, the extra detection, is not installed")
    targets = [{"boxes": one["boxes"], "labels": [one_class] * len(one["boxes"])} for one in TARGETS]
    named = worth("mAP", {"boxes": BOXES, "scores": SCORES, "labels": np.full((2, 2), one_class)}, targets)
    assert 0 < named < 1
    for name, scores in (("scores", SCORES[..., None]), ("class_scores", SCORES[..., None]), ("box_scores", SCORES)):
        assert worth("mAP", {name: scores, "boxes": BOXES}, targets) == named
    metric = READY["mAP"].make()
    for i, found in enumerate((2, 1)):
        metric.update(
            {"det_boxes": BOXES[i : i + 1, :found], "det_scores": SCORES[i : i + 1, :found]}, targets[i : i + 1]
        )  # type: ignore[union-attr]
    assert metric.compute() == named  # type: ignore[union-attr]
    nothing = {"boxes": np.zeros((2, 0, 4)), "scores": np.zeros((2, 0))}
    assert worth("mAP", nothing, targets) == 0.0


def test_outputs_without_classes_are_refused_where_targets_have_several() -> None:
    for scores in (SCORES, SCORES[..., None]):
        said = rf"boxes \[2, 2, 4\], scores \[2, 2{', 1' if scores.ndim == 3 else ''}\]: no classes .* targets have 2 \(0, 1\)"
        with pytest.raises(DataError, match=said):
            READY["mAP"].make().update({"boxes": BOXES, "scores": scores}, TARGETS)  # type: ignore[union-attr]


def test_mean_average_precision_counts_as_by_hand() -> None:
    pytest.importorskip("pycocotools", reason="pycocotools, the extra detection, is not installed")
    # Class 0 is found at every overlap. Of class 1 the surer box overlaps by a half: it counts at .50 alone, and above that
    # stands before the one that is right, precision 1/2 up to a recall of 1/2 (51 of 101 points).
    above = 0.5 * 51 / 101
    outputs = {"boxes": BOXES, "scores": SCORES, "labels": CLASSES}
    assert worth("mAP50", outputs, TARGETS) == pytest.approx(1.0)
    assert worth("mAP", outputs, TARGETS) == pytest.approx((1 + (1 + 9 * above) / 10) / 2)
    rows = np.array([[[0, 0, 10, 10, 0], [20, 20, 40, 30, 1]], [[5, 5, 15, 15, 1], [0, 0, 0, 0, -1]]])
    assert worth("mAP", outputs, rows) == worth("mAP", outputs, TARGETS)


def test_what_was_not_found_and_what_is_not_there_count() -> None:
    pytest.importorskip("pycocotools", reason="pycocotools, the extra detection, is not installed")
    nothing: dict[str, Any] = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0)}
    assert mean_average_precision([nothing, nothing], TARGETS) == 0.0
    right = detections_of({"boxes": BOXES[1:], "scores": SCORES[1:], "labels": CLASSES[1:]})
    assert mean_average_precision([nothing, *right], TARGETS, iou=0.5) == pytest.approx((0 + 51 / 101) / 2)
    with pytest.raises(DataError, match="no target holds a box"):
        mean_average_precision([nothing], [{"boxes": np.zeros((0, 4)), "labels": []}])
    with pytest.raises(DataError, match="2 images with detections, 1 with targets"):
        mean_average_precision([nothing, nothing], TARGETS[:1])


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"bbox": []}, "a dict of bbox: boxes"),
        ({"boxes": np.zeros((2, 4)), "labels": [1]}, "a dict of 2 boxes and 1 labels"),
        (np.zeros((2, 4)), r"float64 \[2, 4\]: a dict of boxes"),
    ],
)
def test_targets_without_boxes_are_refused(target: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        READY["mAP"].make().update({"boxes": BOXES[:1], "scores": SCORES[:1], "labels": CLASSES[:1]}, [target])  # type: ignore[union-attr]


@pytest.mark.parametrize(("found", "wanted", "warned"), [(0, 1, True), (0, 0, False), (1, 1, False)])
def test_classes_that_are_counted_from_another_number_are_told(
    found: int, wanted: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A background at 0 that is found among classes counted alike is none of these."""
    pytest.importorskip("pycocotools", reason="pycocotools (the extra detection) is not installed")
    background = [[[60, 60, 70, 70]]] * 2, [[0.1]] * 2, [[0]] * 2
    outputs = {
        name: np.concatenate([own, np.array(more, own.dtype)], 1)
        for name, own, more in zip(
            ("boxes", "scores", "labels"), (BOXES, SCORES, CLASSES + found), background, strict=True
        )
    }
    targets = [{**one, "labels": [label + wanted for label in one["labels"]]} for one in TARGETS]
    metric: Any = READY["mAP"].make()
    for one in (metric, copy.deepcopy(metric)):  # of two models the first says it
        one.update(outputs, targets)
        one.compute()
    said = [record.getMessage() for record in caplog.records if "FILE.json:order" in record.getMessage()]
    assert len(said) == int(warned)
