"""A metric of the user's own: what it is given, what may come of it, and how it is named."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mrecg_onnx.converters.errors import MetricError, SettingsError
from mrecg_onnx.measures import Metric, Scorer, metric_key, metric_of
from mrecg_onnx.measures.ready import READY

SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
LABELS = np.array([0, 1, 1])


def accuracy(outputs: Any, targets: Any) -> float:
    return float((outputs.argmax(1) == targets).mean())


def scored(metric: Any, outputs: Any = SCORES, targets: Any = LABELS, *, batch: int = 2, held: bool = False) -> float:
    """What ``metric`` says of outputs that come in batches."""
    outputs = outputs if isinstance(outputs, dict) else {"y": outputs}
    count = len(next(iter(outputs.values())))
    scorer = Scorer(metric_of(metric), "the FP32 model", count, held=held)  # type: ignore[arg-type]
    for start in range(0, count, batch):
        rows = slice(start, start + batch)
        wanted = None if targets is None else list(targets[rows])
        scorer.add(np.arange(count)[rows], {n: x[rows] for n, x in outputs.items()}, wanted)
    return scorer.value()


class Counted:
    """A metric as torchmetrics has them."""

    def __init__(self) -> None:
        self.right = self.images = self.batches = 0

    def update(self, outputs: Any, targets: Any) -> None:
        self.right += int((outputs.argmax(1) == targets).sum())
        self.images += len(targets)
        self.batches += 1

    def compute(self) -> float:
        return self.right / self.images


def test_a_function_is_called_once_with_all_outputs() -> None:
    seen = []

    def metric(outputs: Any, targets: Any) -> float:
        seen.append((outputs.shape, targets.tolist()))
        return accuracy(outputs, targets)

    assert scored(metric) == pytest.approx(2 / 3)
    assert seen == [((3, 2), [0, 1, 1])]


@pytest.mark.parametrize("given", [Counted, Counted()], ids=["class", "object"])
def test_an_object_is_told_of_every_batch_and_stays_as_it_was(given: Any) -> None:
    assert scored(given) == pytest.approx(2 / 3)
    assert isinstance(given, type) or given.batches == 0
    assert scored(given, held=True) == pytest.approx(2 / 3)


def test_several_outputs_come_by_their_names() -> None:
    outputs = {"scores": SCORES, "boxes": np.zeros((3, 5, 4))}
    assert scored(lambda outputs, targets: outputs["boxes"].shape[1] + 0.5, outputs) == 5.5


def test_targets_of_one_shape_are_an_array_and_others_a_list() -> None:
    masks = [np.full((2, 2), i) for i in range(3)]
    assert scored(lambda outputs, targets: targets.sum(), targets=masks) == 12
    boxes = [{"boxes": np.zeros((i, 4))} for i in range(3)]
    assert scored(lambda outputs, targets: sum(len(t["boxes"]) for t in targets), targets=boxes) == 3
    ragged = [np.zeros(i) for i in range(3)]
    assert scored(lambda outputs, targets: len(targets[2]), targets=ragged) == 2
    assert scored(lambda outputs, targets: int(targets is None), targets=None) == 1


def test_a_module_of_torch_is_given_tensors() -> None:
    class Module(torch.nn.Module):
        higher_is_better = False

        def __init__(self) -> None:
            super().__init__()
            self.wrong = torch.tensor(0)

        def reset(self) -> None:
            self.wrong = torch.tensor(0)

        def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
            self.wrong = self.wrong + (outputs.argmax(1) != targets).sum()

        def compute(self) -> torch.Tensor:
            return self.wrong

    assert scored(Module()) == 1
    assert metric_of(Module()).lower_is_better is True  # type: ignore[union-attr]


def test_an_entry_of_a_dict_is_named() -> None:
    def several(outputs: Any, targets: Any) -> dict[str, float]:
        return {"map": 0.5, "map_50": 0.75}

    assert scored(Metric(several, key="map_50")) == 0.75
    with pytest.raises(MetricError, match=r"metric several of the FP32 model is a dict of map, map_50: name the entry"):
        scored(several)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "is no number but a NoneType: return one"),
        ("0.5", "is no number but a str"),
        (np.zeros(3), r"is no number but an ndarray \[3\]"),
        (True, "is no number but a bool"),
        (float("nan"), "is nan: it has to be a finite number"),
        (np.float32("inf"), "is inf: it has to be a finite number"),
    ],
)
def test_what_is_no_number_is_refused(value: Any, said: str) -> None:
    def mine(outputs: Any, targets: Any) -> Any:
        return value

    with pytest.raises(MetricError, match=f"^metric mine of the FP32 model {said}"):
        scored(mine)


@pytest.mark.parametrize("value", [1, np.float64(1), np.ones((1, 1)), torch.tensor([1.0]), np.int8(1)])
def test_what_is_a_number(value: Any) -> None:
    assert scored(lambda outputs, targets: value) == 1.0


def test_what_a_metric_raises_is_one_line_with_its_place() -> None:
    def mine(outputs: Any, targets: Any) -> float:
        return float(outputs["boxes"])

    with pytest.raises(
        MetricError, match=r"metric mine fails on the FP32 model: IndexError: .* \(test_metric.py, line \d+\)"
    ) as e:
        scored(mine)
    assert isinstance(e.value.__cause__, IndexError)
    with pytest.raises(MetricError, match="the data have no targets"):
        scored(lambda outputs, targets: len(targets), targets=None)


def test_outputs_that_memory_cannot_hold_ask_for_an_object() -> None:
    scorer = Scorer(Metric(accuracy), "the FP32 model", 10**12)
    with pytest.raises(
        MetricError, match=r"function of all outputs, .* give an object with update\(\) and compute\(\)"
    ):
        scorer.add(np.arange(3), {"y": SCORES}, list(LABELS))
    Scorer(Metric(Counted), "the FP32 model", 10**12).add(np.arange(3), {"y": SCORES}, list(LABELS))


@pytest.mark.parametrize("given", [3, object(), [accuracy]])
def test_what_is_no_metric_is_refused(given: Any) -> None:
    with pytest.raises(SettingsError, match=r"is no metric: give a function \(outputs, targets\) -> number"):
        metric_of(given)


def test_errors_count_the_other_way_round() -> None:
    better, worse = Metric(accuracy), Metric(accuracy, lower_is_better=True)
    assert (better.loss(0.9, 0.8), worse.loss(0.9, 0.8)) == (pytest.approx(0.1), pytest.approx(-0.1))
    assert Metric(accuracy, percent=True).drop(0.9, 0.8) == pytest.approx(10)
    assert metric_of(better, lower_is_better=True).loss(0.9, 0.8) == pytest.approx(-0.1)  # type: ignore[union-attr]


def test_names_of_metrics() -> None:
    assert [Metric(accuracy).name, Metric(Counted()).name, Metric(lambda o, t: 0.0).name] == [
        "accuracy",
        "Counted",
        "metric",
    ]
    assert Metric(functools.partial(accuracy)).name == "accuracy"


def test_ready_ones_are_named_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    assert metric_of("MIOU").name == "mIoU"  # type: ignore[union-attr]
    said = "metric 'top1' is unknown: there are top-1, top-5, mAP, mAP50, mIoU; your own is module:function"
    with pytest.raises(SettingsError, match=said):
        metric_of("top1")
    monkeypatch.setitem(READY, "x", READY["mIoU"].__class__("x", Counted, "", ("no_such_package",), "detection"))
    with pytest.raises(SettingsError, match=r"metric x needs no_such_package: pip install 'mrecg-onnx\[detection\]'"):
        metric_of("x")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("named_metric")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_modules_of_the_folder_are_found_with_what_they_import(here: Path) -> None:
    (here / "named_metric_help.py").write_text("WORTH = 0.25\n")
    (here / "named_metric.py").write_text("import named_metric_help\ndef score(o, t): return named_metric_help.WORTH\n")
    metric = metric_of("named_metric:score")
    assert metric is not None
    assert (metric.name, metric.spec, scored(metric)) == ("score", "named_metric:score", 0.25)
    assert scored("named_metric.py:score") == 0.25
    (here / "named_metric_box").mkdir()
    (here / "named_metric_box" / "inner.py").write_text(
        "class Held:\n    @staticmethod\n    def score(o, t): return 0.5\n"
    )
    assert scored("named_metric_box.inner:Held.score") == 0.5


def test_nothing_of_the_folder_stands_before_a_package(here: Path) -> None:
    (here / "named_metric.py").write_text("import json\ndef score(o, t): return float(json.loads('0.5'))\n")
    (here / "json.py").write_text("raise RuntimeError\n")
    assert scored("named_metric:score") == 0.5
    with pytest.raises(SettingsError, match="'json' has no 'score'"):
        metric_of("json:score")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("named_metric_no:score", "there is no module 'named_metric_no' in the current folder or the environment"),
        ("named_metric:scor", "'named_metric' has no 'scor': did you mean score"),
        ("named_metric:os", "is a module: name a function in it"),
        ("named_metric:NUMBER", "an int is no metric"),
        (
            "named_metric_bad:score",
            r"'named_metric_bad' cannot be imported: ZeroDivisionError: division by zero \(.*line 1\)",
        ),
        ("named_metric_lacks:score", "'named_metric_lacks' cannot be imported: No module named 'no_such_package'"),
        ("no.py:score", "metric no.py: no such file"),
        ("a b:score", "expected module:function"),
        ("named_metric:", "has no ''"),
        (":score", "expected module:function"),
    ],
)
def test_what_cannot_be_imported_is_said_in_a_line(here: Path, text: str, said: str) -> None:
    (here / "named_metric.py").write_text("import os\nNUMBER = 3\ndef score(o, t): return 0.25\n")
    (here / "named_metric_bad.py").write_text("1 / 0\n")
    (here / "named_metric_lacks.py").write_text("import no_such_package\n")
    with pytest.raises(SettingsError, match=said):
        metric_of(text)


def test_what_is_kept_of_a_metric_changes_with_its_file(here: Path) -> None:
    file = here / "named_metric.py"
    file.write_text("def score(o, t): return 0.25\n")
    first = metric_key(metric_of("named_metric.py:score"))
    assert metric_key(metric_of("named_metric.py:score")) == first
    file.write_text("def score(o, t): return 0.5\n")
    assert metric_key(metric_of("named_metric.py:score")) != first
    assert metric_key(metric_of("mIoU")) == metric_key(metric_of("mIoU"))
    assert metric_key(Metric(Counted())) != metric_key(Metric(Counted()))
    assert metric_key(None) is None


def test_a_lambda_is_told_by_its_place() -> None:
    with pytest.raises(
        MetricError, match=r"^metric <lambda> \(test_metric\.py:\d+\) fails on the FP32 model: ZeroDivision"
    ):
        scored(lambda outputs, targets: 1 / 0)
    assert Metric(lambda outputs, targets: 1, "mine").called == "metric mine"
