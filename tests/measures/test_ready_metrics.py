"""Ready metrics against what others count, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from mrecg_onnx.converters.errors import DataError, MetricError
from mrecg_onnx.measures import MeanIoU, mean_average_precision
from mrecg_onnx.measures.box_forms import detections_of
from mrecg_onnx.measures.ready import READY

RNG = np.random.default_rng(0)


def worth(name: str, outputs: Any, targets: Any) -> float:
    metric: Any = READY[name].make()
    metric.update(outputs, targets)
    return float(metric.compute())


def test_classes_among_the_largest_scores() -> None:
    scores = np.eye(8, dtype=np.float32)[[0, 1, 2, 3]]
    assert worth("top-1", scores, np.array([0, 1, 5, 7])) == 0.5
    assert worth("top-1", scores, np.array([[0.0], [1.0], [5.0], [7.0]])) == 0.5  # as numpy.loadtxt reads them
    assert worth("top-5", {"aux": np.zeros((4, 3, 3)), "scores": scores}, np.array([0, 1, 5, 1])) == 0.75
    for outputs, targets, said in (
        (np.zeros((4, 3, 3)), np.zeros(4, int), "no output is"),
        (scores, np.zeros((4, 2), int), "class indices are wanted"),
        (scores, [0, 1, 2, (3, 4)], "class indices are wanted"),
        (scores, ["a", "b", "c", "d"], "class indices are wanted"),
        (scores, np.array([0, 0.5, 1, 2]), "class indices are wanted"),
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
        (
            {"out": np.zeros((1, 3, 4, 4), np.float32)},
            np.zeros((1, 8, 8), int),
            r"no output \(out \[1, 3, 4, 4\]\) holds",
        ),
        (np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 4, 4)), "whole numbers"),
        (
            np.zeros((1, 3, 4, 4), np.float32),
            [(np.zeros((4, 4)), np.zeros(2))],
            "a target is a tuple of 2: whole numbers",
        ),
        (np.zeros((1, 3, 4, 4), np.float32), [{"masks": 0}], "a target is a dict, as of boxes: whole numbers"),
        (np.zeros((1, 3, 4, 4), np.float32), ["mask.png"], "a target is a str: whole numbers"),
        (np.zeros((1, 3, 4, 4), np.float32), [None], "a target is a NoneType: whole numbers"),
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


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


CENTRES = np.concatenate([(BOXES[..., :2] + BOXES[..., 2:]) / 2, BOXES[..., 2:] - BOXES[..., :2]], 2)
LOGITS = RNG.normal(-1, 2, (2, 2, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (  # YOLO's before NonMaxSuppression: a score for each of two classes
            {"pred": np.concatenate([CENTRES, _sigmoid(LOGITS)], 2)},
            r"output 'pred' \[2, 2, 6\] was taken for x0, y0, x1, y1, score, class, but 0\.\d+ in its last column is no class",
        ),
        (
            {"pred": np.concatenate([BOXES, CLASSES[..., None], SCORES[..., None]], 2)},
            "0.8 in its last column is no class",
        ),
        (np.concatenate([BOXES, SCORES[..., None], CLASSES[..., None] - 1], 2), "-1 in its last column is no class"),
        (np.concatenate([BOXES, LOGITS[..., :1], CLASSES[..., None]], 2), "its fifth column goes from .* as logits do"),
        (
            {"boxes": BOXES, "scores": SCORES, "labels": CLASSES + 0.5},
            r"output 'labels' \[2, 2\] .* but 0.5 in it is no class",
        ),
        ({"boxes": BOXES, "scores": LOGITS[..., 0], "labels": CLASSES}, "output 'scores' goes from .* as logits do"),
        (
            {"boxes": BOXES, "scores": LOGITS},
            r"output 'scores' \[2, 2, 2\] was taken for scores, but it goes from .* as logits do",
        ),
    ],
)
def test_what_has_the_shape_of_detections_and_not_the_values_is_refused(outputs: Any, said: str) -> None:
    """One line that says what to do, of the first model; of a quantized one values may be off."""
    metric: Any = READY["mAP"].make()
    other = copy.deepcopy(metric)
    with pytest.raises(MetricError, match=said) as raised:
        metric.update(outputs, TARGETS)
    assert "a metric of your own that calls mean_average_precision" in str(raised.value)
    assert len(str(raised.value)) < 290
    other.update(outputs, TARGETS)


def test_scores_of_classes_lie_as_the_boxes_do() -> None:
    scores = np.full((2, 5, 2), 0.5)
    with pytest.raises(DataError, match=r"class_scores \[2, 5, 2\]: wanted are boxes"):
        detections_of({"boxes": BOXES, "class_scores": scores})


def test_boxes_that_end_before_they_begin_are_refused() -> None:
    pytest.importorskip("pycocotools", reason="pycocotools, the extra detection, is not installed")
    sized = np.concatenate([BOXES[..., :2] + 50, BOXES[..., 2:] - BOXES[..., :2]], 2)
    with pytest.raises(MetricError, match=r"boxes \[2, 2, 4\], .* but in 100% of them x1 < x0 .* are a size; bring it"):
        worth("mAP", {"boxes": sized, "scores": SCORES, "labels": CLASSES}, TARGETS)
    targets = [{"boxes": boxes[:1], "labels": [0]} for boxes in sized]
    with pytest.raises(DataError, match="in 100% of the boxes of the targets x1 < x0"):
        worth("mAP", {"boxes": BOXES, "scores": SCORES, "labels": CLASSES}, targets)


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
        ({"boxes": np.zeros((1, 4)), "labels": [1], "iscrowd": [0, 0]}, "a dict of 1 boxes and 2 iscrowd"),
        ({"boxes": np.zeros((4, 5)), "labels": np.arange(5)}, r"boxes of a target are float64 \[4, 5\]: \[n, 4\]"),
        ({"boxes": [[0, 0, 1, 1], [0, 0]], "labels": [1, 1]}, "boxes of a target are a list of 2: numbers"),
        ({"boxes": 3, "labels": 1}, r"boxes of a target are int64 \[\]"),
        ({"boxes": [[0, 0, 1, 1]], "labels": ["cat"]}, "labels of a target are a list of 1: numbers"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [0.5]}, "label 0.5 in a target is no class"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [-1]}, "label -1 in a target is no class"),
        ({"boxes": [[0, 0, 1, np.nan]], "labels": [1]}, "a box in a target holds NaN"),
        ((np.zeros((2, 4)), np.zeros(2)), r"a target is a tuple of 2: a dict of boxes \[n, 4\] and labels \[n\]"),
        ([np.zeros((2, 4)), np.zeros(2)], "a target is a list of 2: a dict of boxes"),
        (np.zeros((2, 4)), r"float64 \[2, 4\]: a dict of boxes"),
        ("boxes.json", "a target is a str: a dict of boxes"),
        (None, "a target is a NoneType: a dict of boxes"),
        (7, r"int64 \[\]: a dict of boxes"),
    ],
)
def test_targets_without_boxes_are_refused(target: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        READY["mAP"].make().update({"boxes": BOXES[:1], "scores": SCORES[:1], "labels": CLASSES[:1]}, [target])  # type: ignore[union-attr]


def test_a_target_without_a_box_may_be_empty() -> None:
    pytest.importorskip("pycocotools", reason="pycocotools, the extra detection, is not installed")
    outputs = {"boxes": BOXES, "scores": SCORES, "labels": CLASSES}
    none: dict[str, Any] = {"boxes": [], "labels": []}
    assert worth("mAP", outputs, [TARGETS[0], []]) == worth("mAP", outputs, [TARGETS[0], none]) > 0


@pytest.mark.parametrize("found", [{"boxes": [], "labels": []}, {**TARGETS[0], "scores": [0.5]}, (BOXES[0], SCORES[0])])
def test_detections_of_another_form_are_refused(found: Any) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools, the extra detection, is not installed")
    with pytest.raises(
        DataError, match=r"detections of an image are .*: .*boxes \[n, 4\], scores \[n\] and labels \[n\]"
    ):
        mean_average_precision([found], TARGETS[:1])


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
