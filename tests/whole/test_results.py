"""What a result can do for itself: be written, looked at, and measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.learned import small
from helpers.stages import feeds

import mrecg_onnx
from mrecg_onnx.converters.errors import DataError, ExportError, ModelError, SettingsError

SETTINGS = mrecg_onnx.Settings(method="nearest", equalize="off", threads=1)
X = feeds(small(), 24)["input"]
PAIRS = (X, np.arange(24) % 10)


@pytest.fixture(scope="module")
def made() -> Any:
    return mrecg_onnx.quantize(small(), X, SETTINGS)


def pages() -> None:
    pytest.importorskip("jinja2", reason="the extra report is not installed")
    pytest.importorskip("matplotlib", reason="the extra report is not installed")


def test_a_quantized_model_is_saved_measured_and_looked_at(made: Any, tmp_path: Path) -> None:
    assert made.save(tmp_path / "out.onnx") == tmp_path / "out.onnx"
    assert onnx.load(tmp_path / "out.onnx") == made.model
    found = made.validate(PAIRS, repeats=0, metric=lambda outputs, targets: 0.5)
    again = mrecg_onnx.validate(small(), tmp_path / "out.onnx", PAIRS, repeats=0)
    assert found.quantized.top1 == again.quantized.top1
    assert found.quantized.score == 0.5
    with pytest.raises(ExportError, match="there is no folder"):
        made.save(tmp_path / "nowhere" / "out.onnx")


def test_nothing_of_what_was_given_is_in_what_is_stored(made: Any) -> None:
    assert made.source == small()
    assert made.calib is X
    assert not {"source", "calib"} & set(made.to_json())


def test_what_was_made_is_taken_where_a_model_is(made: Any, tmp_path: Path) -> None:
    """By its file where that is there, by the model in it otherwise; and inspect answers as on the command line."""
    written = replace(made, output=made.save(tmp_path / "out.onnx"))
    packed = mrecg_onnx.convert(written, "packed")
    said = [mrecg_onnx.inspect(one) for one in (written, made, made.model, tmp_path / "out.onnx")]
    assert {type(one) for one in said} == {mrecg_onnx.FinishedFile}
    assert [one.name for one in said] == [
        str(tmp_path / "out.onnx"),
        "the model",
        "the model",
        str(tmp_path / "out.onnx"),
    ]
    assert len({json.dumps(one.to_json() | {"name": ""}) for one in said}) == 1
    assert mrecg_onnx.inspect_result(packed).container == "packed"
    found = [mrecg_onnx.validate(small(), one, PAIRS, repeats=0).sqnr_by_output for one in (written, made, packed)]
    assert found[0] == found[1] == found[2]
    (tmp_path / "out.onnx").unlink()
    assert mrecg_onnx.inspect(written).to_json() == said[1].to_json()
    for call in (mrecg_onnx.quantize, mrecg_onnx.sensitivity, mrecg_onnx.estimate):
        with pytest.raises(ModelError, match="the model in QuantizationResult is quantized already: give the float"):
            call(made, X)
    with pytest.raises(ModelError, match="the model is quantized already"):
        mrecg_onnx.inspect(made, X)
    with pytest.raises(ModelError, match="the FP32 model is a quantized model: give the FP32 model first"):
        mrecg_onnx.validate(made, made, PAIRS)


def test_results_are_written_as_json(made: Any, tmp_path: Path) -> None:
    found = made.validate(PAIRS, repeats=0)
    ranked = mrecg_onnx.sensitivity(small(), X, SETTINGS, data=PAIRS, top=1)
    for result in (found, ranked, mrecg_onnx.inspect(small()), mrecg_onnx.doctor()):
        assert json.loads(result.save(tmp_path / "out.json").read_text()) == json.loads(
            json.dumps(result.to_json()).replace("Infinity", "null").replace("NaN", "null")
        )
    with pytest.raises(ExportError, match="cannot be written"):
        found.save(tmp_path / "nowhere" / "out.json")


@pytest.mark.slow
def test_pages_of_all_of_them(made: Any, tmp_path: Path) -> None:
    pages()
    page = tmp_path / "page.html"
    assert "Quantized model" in made.report(page).read_text()
    assert "Top-1" in made.report(page, data=PAIRS).read_text()
    assert "half" in made.report(page, data=PAIRS, metric=mrecg_onnx.Metric(lambda o, t: 0.5, "half")).read_text()
    found = made.validate(PAIRS, repeats=0, metric=mrecg_onnx.Metric(lambda o, t: 0.25, "quarter"))
    assert "quarter" in found.report(page).read_text()
    ranked = mrecg_onnx.sensitivity(small(), X, SETTINGS, top=1, metric=mrecg_onnx.Metric(lambda o, t: 0.75, "most"))
    assert "most" in ranked.report(page).read_text()
    onnx.save(small(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", input=X, y=PAIRS[1])
    compared = mrecg_onnx.compare(
        tmp_path / "model.onnx", tmp_path / "data.npz", tmp_path / "data.npz", tmp_path / "out", methods=["nearest"],
        bits=["W4A4"], settings=SETTINGS, repeats=0, metric=mrecg_onnx.Metric(lambda o, t: 5.5, "much", lower_is_better=True),
    )  # fmt: skip
    assert "much" in compared.report(page).read_text()
    mrecg_onnx.report(found, page)
    assert "quarter" in page.read_text()


def test_pages_ask_for_what_went_by(made: Any, tmp_path: Path) -> None:
    pages()
    found = made.validate(iter([X]), repeats=0)
    with pytest.raises(DataError, match=r"went by once: give the data again, report\(path, data=\.\.\.\)"):
        found.report(tmp_path / "page.html")
    found.report(tmp_path / "page.html", data=X)
    passed = mrecg_onnx.quantize(small(), iter([X]), SETTINGS)
    assert "went by once and are not kept" in passed.report(tmp_path / "page.html").read_text()
    # What is given to the page itself is kept as long as it is written.
    assert "Top-1" in passed.report(tmp_path / "page.html", data=iter([PAIRS])).read_text()
    many = [(x, y) for _ in range(12) for x, y in zip(*PAIRS, strict=True)]
    again = made.validate(lambda: iter(many), repeats=0)
    assert again.images == len(many) > 256
    assert "Top-1" in again.report(tmp_path / "page.html").read_text()
    with pytest.raises(SettingsError, match="limit says nothing of what validate returned"):
        found.report(tmp_path / "page.html", data=X, limit=3)
    with pytest.raises(SettingsError, match="a metric is measured on images"):
        made.report(tmp_path / "page.html", metric="top-1")


def test_a_result_without_its_model_says_so(made: Any) -> None:
    import dataclasses

    with pytest.raises(SettingsError, match="does not know its float model"):
        dataclasses.replace(made, source=None).validate(X)


@pytest.mark.parametrize(
    "name", ["quantize", "validate", "compare", "sensitivity", "inspect", "benchmark", "convert", "report"]
)
def test_help_says_what_arguments_are(name: str) -> None:
    call = getattr(mrecg_onnx, name)
    told = call.__doc__ or ""
    assert "Args:" in told
    assert "Raises:" in told
    for argument in __import__("inspect").signature(call).parameters:
        assert f"        {argument}: " in told, argument


@pytest.mark.parametrize(
    "name", ["QuantizationResult", "ValidationResult", "Comparison", "Ranking", "Progress", "Metric"]
)
def test_help_says_what_fields_are(name: str) -> None:
    import dataclasses

    kind = getattr(mrecg_onnx, name)
    for field in dataclasses.fields(kind):
        assert f"        {field.name}: " in kind.__doc__, field.name
    assert all(
        getattr(kind, name).__doc__ for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))
    )


def test_dir_shows_the_public_names_and_what_results_can_do() -> None:
    assert {"quantize", "validate", "sensitivity", "Settings", "Metric", "doctor"} <= set(dir(mrecg_onnx))
    assert {"save", "report", "validate", "to_json"} <= set(dir(mrecg_onnx.QuantizationResult))
    assert {"save", "report", "to_json"} <= set(dir(mrecg_onnx.ValidationResult))


def test_every_result_prints_a_few_lines_and_shows_the_first(made: Any) -> None:
    found = {
        "FinishedFile": (mrecg_onnx.inspect(made), "W4A4 by nearest for ort, container int8"),
        "Inspection": (mrecg_onnx.inspect(small(), settings=SETTINGS), "parameters in"),
        "Estimate": (mrecg_onnx.estimate(small(), X, SETTINGS), "W4A4 by nearest"),
        "Environment": (mrecg_onnx.doctor(), "works"),
        "Benchmark": (mrecg_onnx.benchmark([small(), made.model], runs=3), "opened in"),
    }
    for name, (result, said) in found.items():
        lines = str(result).splitlines()
        assert 0 < len(lines) < 60, name
        assert said in lines[0], name
        assert repr(result) == f"<{name}: {lines[0]}>"
