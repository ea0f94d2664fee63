"""A metric of the user's own through validate, sensitivity, max_drop and compare, in Python and on the command line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from helpers.command_line import fails, works
from helpers.learned import small
from helpers.stages import feeds
from onnx import numpy_helper

from mrecg_onnx.comparing import compare
from mrecg_onnx.conversion import convert
from mrecg_onnx.converters.errors import DataError, MetricError, SettingsError
from mrecg_onnx.inspecting import inspect_result, sensitivity
from mrecg_onnx.measures import Metric
from mrecg_onnx.quantization import quantize
from mrecg_onnx.running import open_session
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import validate

NEAREST = {"method": "nearest", "equalize": "off", "abits": 4, "threads": 1}
#: A module of the user's.
MODULE = """
import numpy as np

def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).mean()

def wrong(outputs, targets):
    return (outputs.argmax(1) != targets).sum()

def broken(outputs, targets):
    return outputs["boxes"]

def nothing(outputs, targets):
    pass
"""


def coarse(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stands in for a quantized file."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    for tensor in rounded.graph.initializer:
        w = numpy_helper.to_array(tensor)
        if w.ndim > 1:
            step = np.abs(w).max() / 2
            tensor.CopyFrom(
                numpy_helper.from_array(np.round(w / step).astype(np.float32) * np.float32(step), tensor.name)
            )
    return rounded


def logits(model: onnx.ModelProto, x: dict[str, Any]) -> npt.NDArray[np.float32]:
    return np.asarray(open_session(model).run(None, x)[0])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, labelled inputs and a module of metrics in the current folder."""
    x = feeds(small(), 40)
    np.savez(tmp_path / "calib.npz", **x)
    np.savez(tmp_path / "data.npz", **x, y=logits(small(), x).argmax(1))
    onnx.save(small(), tmp_path / "model.onnx")
    onnx.save(coarse(small()), tmp_path / "coarse.onnx")
    (tmp_path / "mymetrics.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mymetrics", raising=False)
    return tmp_path


def accuracy(outputs: Any, targets: Any) -> float:
    return float((outputs.argmax(1) == targets).mean())


def test_validate_says_what_both_models_are_worth(here: Path) -> None:
    seen: list[int] = []

    def mine(outputs: Any, targets: Any) -> float:
        seen.append(len(outputs))
        return accuracy(outputs, targets)

    found = validate("model.onnx", "coarse.onnx", "data.npz", metric=mine, batch_size=7, repeats=0)
    assert seen == [40, 40]
    assert found.fp32.top1 is not None
    assert found.quantized.top1 is not None
    assert (found.fp32.score, found.quantized.score) == (1.0, pytest.approx(found.quantized.top1.value))
    assert found.score_drop == pytest.approx(found.drop)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))["metric"]
    assert told == {
        "name": "mine", "lower_is_better": False, "percent": False, "fp32": 1.0, "quantized": found.quantized.score,
        "drop": found.score_drop,
    }  # fmt: skip
    ready = validate("model.onnx", "coarse.onnx", "data.npz", metric="top-5", batch_size=7, repeats=0)
    assert ready.quantized.top5 is not None
    assert ready.quantized.score == pytest.approx(ready.quantized.top5.value)
    errors = validate(
        "model.onnx", "coarse.onnx", "data.npz", metric=Metric(lambda o, t: 1 - accuracy(o, t), "err", True), repeats=0
    )
    assert errors.score_drop == pytest.approx(found.score_drop)


def test_what_fails_says_on_which_model(here: Path) -> None:
    with pytest.raises(MetricError, match=r"metric nothing of model\.onnx is no number but a NoneType"):
        validate("model.onnx", "coarse.onnx", "data.npz", metric="mymetrics:nothing", repeats=0)
    with pytest.raises(DataError, match="metric mIoU holds outputs against targets, and the data have none"):
        validate("model.onnx", "coarse.onnx", "calib.npz", metric="mIoU", repeats=0)
    with pytest.raises(SettingsError, match="an int is no metric"):
        validate("model.onnx", "coarse.onnx", "data.npz", metric=3, repeats=0)  # type: ignore[arg-type]


def test_the_command_line_imports_from_this_folder(here: Path) -> None:
    command = ("validate", "model.onnx", "coarse.onnx", "--data", "data.npz", "--repeats", "0")
    shown = works(*command, "--metric", "mymetrics:accuracy", "--json", "out.json").stdout
    assert re.search(r"accuracy +1\.000 +0\.\d{4} +-0\.\d{3,}", shown)
    found = json.loads((here / "out.json").read_text())["metric"]
    assert (found["name"], found["fp32"]) == ("accuracy", 1.0)
    shown = works(*command, "--metric", "mymetrics.py:wrong", "--lower-is-better").stdout
    assert re.search(r"wrong \(less is better\) +0 +\d+ +\+\d+", shown)
    assert re.search(r"top-1 +100\.00%.*", works(*command, "--metric", "top-1").stdout)


@pytest.mark.parametrize(
    ("metric", "code", "says"),
    [
        ("mymetrics:broken", 1, ("metric broken fails on model.onnx: IndexError", "(mymetrics.py, line 11)")),
        ("mymetrics:nothing", 1, ("is no number but a NoneType: return one",)),
        ("mymetrics:acuracy", 2, ("did you mean accuracy",)),
        ("nomodule:score", 2, ("there is no module 'nomodule'",)),
        ("kappa", 2, ("there are top-1, top-5, mAP", "module:function")),
    ],
)
def test_a_metric_that_fails_is_a_line(here: Path, metric: str, code: int, says: tuple[str, ...]) -> None:
    command = ("validate", "model.onnx", "coarse.onnx", "--data", "data.npz", "--repeats", "0")
    fails(*command, "--metric", metric, code=code, says=says)


def test_less_is_better_only_of_a_metric(here: Path) -> None:
    command = ("validate", "model.onnx", "coarse.onnx", "--data", "data.npz")
    fails(*command, "--lower-is-better", code=2, says=("--lower-is-better", "--metric"))


def test_sensitivity_orders_suggestions_by_the_metric(here: Path) -> None:
    settings = Settings(**NEAREST, wbits=2)
    plain = sensitivity("model.onnx", "calib.npz", settings, data="data.npz", top=2)
    found = sensitivity("model.onnx", "calib.npz", settings, data="data.npz", top=2, metric=accuracy)
    assert found.quality.score == pytest.approx(plain.quality.top1)
    assert found.float_quality.score == 1.0
    assert [s.quality.score for s in found.suggestions] == sorted(
        (s.quality.score for s in found.suggestions), reverse=True
    )  # type: ignore[type-var]
    wrong = sensitivity("model.onnx", "calib.npz", settings, data="data.npz", top=2, metric="mymetrics:wrong")
    errors = Metric(lambda o, t: 1 - accuracy(o, t), "errors", lower_is_better=True)
    found = sensitivity("model.onnx", "calib.npz", settings, data="data.npz", top=2, metric=errors)
    assert [s.quality.score for s in found.suggestions] == sorted(s.quality.score for s in found.suggestions)  # type: ignore[type-var]
    assert json.loads(json.dumps(wrong.to_json()))["metric"]["name"] == "wrong"
    shown = works(
        "sensitivity", "model.onnx", "--calib", "calib.npz", "--data", "data.npz", "--method", "nearest", "--top", "1",
        "--metric", "mymetrics:accuracy",
    ).stdout  # fmt: skip
    assert "rounded to nearest: accuracy" in shown
    with pytest.raises(DataError, match="metric mIoU holds outputs against targets"):
        sensitivity("model.onnx", "calib.npz", settings, metric="mIoU")


def test_targets_come_with_the_inputs_and_may_be_anything(here: Path) -> None:
    x = feeds(small(), 40)["input"]
    said = logits(small(), {"input": x}).argmax(1)

    def mine(outputs: Any, targets: Any) -> float:
        assert isinstance(targets, list)
        return float(np.mean([y == t["class"] for y, t in zip(outputs.argmax(1), targets, strict=True)]))

    def batches() -> Any:
        for start in range(0, 40, 16):
            yield x[start : start + 16], [{"class": int(c)} for c in said[start : start + 16]]

    pairs = [(x[i], {"class": int(said[i])}) for i in range(40)]
    for data in (pairs, batches(), batches):
        found = validate("model.onnx", "coarse.onnx", data, metric=mine, batch_size=7, repeats=0)
        assert found.fp32.score == 1.0
        assert found.fp32.top1 is None
        assert found.warnings == ("coarse.onnx quantizes nothing: what is measured is how two float models differ",)
        ranked = sensitivity(
            "model.onnx",
            "calib.npz",
            Settings(**NEAREST),
            data=data if data is pairs else batches(),
            metric=mine,
            top=1,
        )
        assert ranked.float_quality.score == 1.0
    settings = Settings(**NEAREST, max_drop=0.3)
    result = quantize("model.onnx", "calib.npz", settings, data=batches(), metric=mine)
    assert min(t.drop for t in result.trials) <= 0.3


def test_targets_in_files_are_any_numbers_for_a_metric(here: Path) -> None:
    """Masks or boxes beside the inputs, or in a file of their own; without a metric they are no labels."""
    x = feeds(small(), 40)["input"]
    wanted = logits(small(), {"input": x})
    np.savez("masks.npz", input=x, y=wanted)
    np.savez("plain.npz", input=x)
    np.save("y.npy", wanted)

    def error(outputs: Any, targets: Any) -> float:
        assert targets.shape == outputs.shape
        return float(np.abs(outputs - targets).mean())

    metric = Metric(error, lower_is_better=True)
    for data, labels in (("masks.npz", None), ("plain.npz", "y.npy")):
        found = validate("model.onnx", "coarse.onnx", data, labels=labels, metric=metric, repeats=0)
        assert found.fp32.score == pytest.approx(0, abs=1e-6)
        assert found.score_drop is not None
        assert found.score_drop > 0
        with pytest.raises(DataError, match=r"float32 \(40, \d+\): one whole number a row"):
            validate("model.onnx", "coarse.onnx", data, labels=labels, repeats=0)
    np.save("few.npy", wanted[:7])
    with pytest.raises(DataError, match="are 7 for 40 rows"):
        validate("model.onnx", "coarse.onnx", "plain.npz", labels="few.npy", metric=metric, repeats=0)
    given: dict[str, Any] = {
        "methods": ["nearest"],
        "bits": ["W4A4"],
        "settings": Settings(samples=16, threads=1),
        "repeats": 0,
    }
    compared = compare("model.onnx", "calib.npz", "masks.npz", "out", metric=metric, **given)
    assert compared.cells[0].error is None
    assert compared.fp32_score == pytest.approx(0, abs=1e-6)


def test_a_float_model_that_is_worth_nothing_is_told(here: Path) -> None:
    """Wherever it counts: of nothing nothing is lost, and a drop of 0 would look like a good file."""
    said = "the FP32 model itself has nothing 0.00% here, so that nothing is compared: its outputs, the labels"
    metric = Metric(lambda outputs, targets: 0.00004, "nothing", percent=True)
    found = validate("model.onnx", "coarse.onnx", "data.npz", metric=metric, repeats=0)
    assert [w for w in found.warnings if said in w] == [w for w in found.to_json()["warnings"] if said in w] != []
    assert f"warning: {said}" in str(found)
    settings = Settings(**NEAREST)
    ranked = sensitivity("model.onnx", "calib.npz", settings, data="data.npz", metric=metric, top=1)
    assert [said in w for w in ranked.warnings] == [said in w for w in ranked.to_json()["warnings"]] == [True]
    assert f"warning: {said}" in str(ranked)
    ranked.report("page.html")
    assert said in Path("page.html").read_text(encoding="utf-8")
    with pytest.raises(SettingsError, match=f"--max-drop 1: {said}"):
        quantize("model.onnx", "calib.npz", Settings(**NEAREST, max_drop=1), data="data.npz", metric=metric)
    for other in (Metric(metric.score, "bare"), Metric(metric.score, "errors", lower_is_better=True, percent=True)):
        found = validate("model.onnx", "coarse.onnx", "data.npz", metric=other, repeats=0)
        assert not any("itself" in warning for warning in found.warnings)
    data = np.load("data.npz")
    wrong = (data["y"] + 1) % (data["y"].max() + 1)
    guessed = sensitivity("model.onnx", "calib.npz", settings, data=data["input"], labels=wrong, top=0)
    assert any("no better than chance" in warning for warning in guessed.warnings)


def test_labels_that_are_no_classes_are_in_the_result(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, whatever they come in; one-hot ones are told as what they are."""
    x = feeds(small(), 40)["input"]
    names = [f"class {i % 3}" for i in range(40)]
    pairs = list(zip(x, names, strict=True))
    said = "are no classes (whole numbers from 0), such as 'class 0': there is no accuracy; a metric counts them"
    for data, labels in ((x, names), (pairs, None), (iter(pairs), None), ((x, names), None)):
        found = validate("model.onnx", "coarse.onnx", data, labels=labels, repeats=0)
        assert sum(said in warning for warning in found.warnings) == 1
        assert str(found).count(said) == 1
    ranked = sensitivity("model.onnx", "calib.npz", Settings(**NEAREST), data=pairs, top=0)
    assert [said in warning for warning in ranked.warnings] == [True]
    hot = validate("model.onnx", "coarse.onnx", (x, np.eye(3)[[i % 3 for i in range(40)]]), repeats=0)
    assert [w for w in hot.warnings if "labels are one-hot" in w or "no classes" in w] == [hot.warnings[0]]
    assert "no classes" not in caplog.text


def test_the_largest_drop_is_counted_by_the_metric(here: Path) -> None:
    settings = Settings(**NEAREST, max_drop=0.3)
    result = quantize("model.onnx", "calib.npz", settings, data="data.npz", metric=accuracy)
    chosen = min((t for t in result.trials if t.drop <= 0.3), key=lambda t: t.average)
    assert {t.metric for t in result.trials} == {"accuracy"}
    again = validate("model.onnx", result.model, "data.npz", metric=accuracy, repeats=0)
    assert again.score_drop == pytest.approx(chosen.drop)
    with pytest.raises(
        SettingsError, match="--max-drop 30 counts accuracy here, of which the FP32 model has 1: everything"
    ):
        quantize("model.onnx", "calib.npz", Settings(**NEAREST, max_drop=30), data="data.npz", metric=accuracy)
    points = quantize("model.onnx", "calib.npz", Settings(**NEAREST, max_drop=30), data="data.npz", metric="top-1")
    assert [t.average for t in points.trials] == [t.average for t in result.trials]
    assert points.trials[0].drop == pytest.approx(100 * result.trials[0].drop)


def test_a_file_says_what_its_widths_were_searched_by(here: Path) -> None:
    settings = Settings(**NEAREST, max_drop=0.3)
    result = quantize("model.onnx", "calib.npz", settings, data="data.npz", metric=accuracy, output="q.onnx")
    found = inspect_result("q.onnx")
    score = validate("model.onnx", "q.onnx", "data.npz", metric=accuracy, repeats=0).quantized.score
    assert found.judged == {
        "name": "accuracy", "lower_is_better": False, "percent": False, "fp32": 1.0, "quantized": score, "images": 40,
    }  # fmt: skip
    said = f"accuracy {score:.4f}, FP32 1.000 on 40 images, by which the widths were searched"
    assert said == found.worth
    assert said in " ".join(works("inspect", "q.onnx").output.split())
    convert("q.onnx", "packed", output="packed.onnx")
    assert inspect_result("packed.onnx").judged == found.judged
    works("report", "q.onnx", "-o", "page.html")
    assert said in Path("page.html").read_text(encoding="utf-8")
    assert result.model == onnx.load("q.onnx")
    points = {**NEAREST, "max_drop": 30}
    quantize("model.onnx", "calib.npz", Settings(**points), data="data.npz", output="points.onnx")
    assert inspect_result("points.onnx").worth.startswith("top-1 ")
    quantize("model.onnx", "calib.npz", Settings(**points), data="data.npz", labels="none", output="same.onnx")
    assert inspect_result("same.onnx").worth.startswith("agreement ")


@pytest.mark.parametrize(
    "entry",
    [
        '{"fp32": 1e999, "quantized": 1}',
        '{"fp32": "a", "quantized": 1}',
        f'{{"fp32": {"9" * 400}, "quantized": 1}}',
        "{}",
    ],
)
def test_what_says_no_sense_of_it_is_not_shown(here: Path, entry: str) -> None:
    quantize("model.onnx", "calib.npz", Settings(**NEAREST), output="q.onnx")
    model = onnx.load("q.onnx")
    model.metadata_props.add(key="mrecg_onnx.judged", value=entry)
    onnx.save(model, "odd.onnx")
    assert inspect_result("odd.onnx").worth == ""
    works("inspect", "odd.onnx")


@pytest.mark.slow
def test_a_comparison_has_a_column_of_it(here: Path) -> None:
    settings = Settings(samples=16, threads=1, equalize="off")
    given: dict[str, Any] = {"methods": ["nearest"], "bits": ["W4A4"], "settings": settings, "repeats": 0}
    called: list[str] = []

    def mine(outputs: Any, targets: Any) -> float:
        called.append("here")
        return accuracy(outputs, targets)

    found = compare("model.onnx", "calib.npz", "data.npz", "out", metric=mine, **given)
    cell = found.cells[0]
    assert cell.top1 is not None
    assert (found.fp32_score, cell.score) == (1.0, pytest.approx(cell.top1.value))
    assert cell.score_drop == pytest.approx(1 - cell.top1.value)
    assert called == ["here"] * 2
    assert "| mine | mine change |" in (here / "out" / "comparison.md").read_text()
    assert json.loads((here / "out" / "comparison.json").read_text())["metric"]["name"] == "mine"
    # A metric with a name is asked in the cell's own process, and kept as long as its file is the same.
    for kept in (False, True):
        named = compare("model.onnx", "calib.npz", "data.npz", "out", metric="mymetrics:accuracy", **given)
        assert (named.cells[0].kept, named.cells[0].score) == (kept, cell.score)
    (here / "mymetrics.py").write_text(MODULE.replace("== targets).mean()", "== targets).mean() / 2"))
    sys.modules.pop("mymetrics")
    named = compare("model.onnx", "calib.npz", "data.npz", "out", metric="mymetrics:accuracy", **given)
    assert cell.score is not None
    assert (named.cells[0].kept, named.cells[0].score) == (False, pytest.approx(cell.score / 2))
    failing = compare("model.onnx", "calib.npz", "data.npz", "out", metric="mymetrics:broken", **given)
    assert "metric broken fails on model.onnx: IndexError" in str(failing.cells[0].error)
