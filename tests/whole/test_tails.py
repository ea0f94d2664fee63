"""Detectors with NonMaxSuppression inside go through every command: cut in front of it, and whole again in the file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.command_line import fails, works
from helpers.detectors import detector, finished_detector, furnish, read
from onnx import numpy_helper

import mrecg_onnx
from mrecg_onnx.running import open_session, run_outputs

QUANTIZE = ("--calib", "scenes", "--threads", "1", "--preprocess", "unit", "--resize", "32x32")
NEAREST = (*QUANTIZE, "--method", "nearest", "--wbits", "8", "--abits", "8")
DATA = ("--data", "scenes", "--labels", "instances.json:order")
#: The share of boxes that are found, of outputs that come as a list or an array.
MODULE = """
import numpy as np

def found(outputs, targets):
    hits = []
    for boxes, labels, target in zip(outputs["found_boxes"], outputs["found_labels"], targets, strict=True):
        for box, label in zip(target["boxes"], target["labels"]):
            near = np.abs(boxes - box).max(1) < 2
            hits.append(bool((near & (labels == label)).any()))
    return np.mean(hits)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return furnish(tmp_path, monkeypatch, MODULE, {"m.onnx": finished_detector()})


def told(node: onnx.NodeProto) -> tuple[Any, ...]:
    """A node without its name: those without one are given one."""
    return node.op_type, list(node.input), list(node.output), [str(attribute) for attribute in node.attribute]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_file_is_the_whole_detector_with_its_tail_untouched(here: Path) -> None:
    said = flat(
        works("quantize", "m.onnx", *QUANTIZE, "--wbits", "4", "--abits", "8", "--iters", "5", "-o", "q.onnx").output
    )
    cut = "at 'boxes', 'by_class': what comes from NonMaxSuppression 'NonMaxSuppression_chosen' on stays as it was, in float"
    assert cut in said
    assert "dB above the noise" in said  # at the tensors where it is cut
    before, after = onnx.load("m.onnx"), onnx.load("q.onnx")
    assert list(map(str, before.graph.input)) == list(map(str, after.graph.input))
    assert list(map(str, before.graph.output)) == list(map(str, after.graph.output))
    behind = [node for node in before.graph.node if node.op_type not in {"Conv", "Relu", "Constant"}][-10:]
    assert [told(node) for node in after.graph.node[-10:]] == [told(node) for node in behind]
    feed = np.full((1, 3, 32, 32), 0.3, np.float32)
    feed[0, 0, :8, :8] = feed[0, 2, 16:24, 8:16] = 0.95
    wanted, found = (run_outputs(open_session(path), {"images": feed}) for path in ("m.onnx", "q.onnx"))
    order = found["found_labels"].argsort(), wanted["found_labels"].argsort()
    assert sorted(found["found_labels"].tolist()) == sorted(wanted["found_labels"].tolist()) == [0, 1]
    assert np.abs(found["found_boxes"][order[0]] - wanted["found_boxes"][order[1]]).max() < 0.5
    for name in ("m.onnx", "q.onnx"):
        assert cut in flat(works("inspect", name).output)
    works("convert", "q.onnx", "--container", "packed", "-o", "p.onnx")
    packed = run_outputs(open_session("p.onnx"), {"images": feed})
    assert all(np.array_equal(packed[name], found[name]) for name in found)


@pytest.mark.slow
def test_what_is_cut_off_may_be_an_output_too_and_the_tail_may_have_an_input_of_its_own(here: Path) -> None:
    model = onnx.load("m.onnx")
    (chosen,) = (node for node in model.graph.node if node.op_type == "NonMaxSuppression")
    least = chosen.input[4]
    kept = [node for node in model.graph.node if least not in node.output]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.input.append(onnx.helper.make_tensor_value_info(least, onnx.TensorProto.FLOAT, [1]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("by_class", onnx.TensorProto.FLOAT, [1, 2, 16]))
    onnx.save(model, "more.onnx")
    works("quantize", "more.onnx", *QUANTIZE, "--method", "nearest", "-o", "q.onnx")
    works("convert", "q.onnx", "--container", "packed", "-o", "p.onnx")
    feeds = {"images": np.full((1, 3, 32, 32), 0.3, np.float32), least: np.array([0.3], np.float32)}
    feeds["images"][0, 0, :8, :8] = 0.95
    wanted, found, packed = (run_outputs(open_session(path), feeds) for path in ("more.onnx", "q.onnx", "p.onnx"))
    assert list(found) == [value.name for value in model.graph.output]
    assert np.abs(found["by_class"] - wanted["by_class"]).max() < 0.1
    assert found["found_labels"].tolist() == wanted["found_labels"].tolist()
    assert all(np.array_equal(packed[name], found[name]) for name in found)
    assert "by_class" in works("inspect", "more.onnx").output


@pytest.mark.slow
def test_one_value_of_a_setting_of_the_tail_is_that_of_all_images(here: Path) -> None:
    """Also where the batch is free: layers are compared image by image then."""
    model = finished_detector("N")
    kept = [node for node in model.graph.node if "least" not in node.output]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.input.append(onnx.helper.make_tensor_value_info("least", onnx.TensorProto.FLOAT, [1]))
    x = np.random.default_rng(0).uniform(0, 0.3, (24, 3, 32, 32)).astype(np.float32)
    x[:, 0, :8, :8] = 0.95
    arrays = {"images": x, "least": np.array([0.3], np.float32)}
    np.savez("data.npz", **arrays)
    result = mrecg_onnx.quantize(model, "data.npz", mrecg_onnx.Settings(method="nearest", wbits=8, abits=8))

    def count(outputs: Any, targets: Any) -> float:
        return float(sum(len(boxes) for boxes in outputs["found_boxes"]))

    if find_spec("jinja2") and find_spec("matplotlib"):
        alone = mrecg_onnx.quantize(model, x, mrecg_onnx.Settings(method="nearest", wbits=8, abits=8))
        said = alone.report("page.html").read_text(encoding="utf-8")
        assert "layers and answers were not measured on the calibration data" in said
        assert "give a dict by input name" in said
    for data in ("data.npz", arrays):
        found = result.validate(data, metric=count, repeats=1, layers=True)
        assert (found.images, found.fp32.score, found.quantized.score) == (24, 24, 24)
        assert found.layers is not None


@pytest.mark.slow
def test_a_metric_counts_what_is_found_and_nothing_else_can(here: Path) -> None:
    works("quantize", "m.onnx", *NEAREST, "-o", "q.onnx")
    said = fails("validate", "m.onnx", "q.onnx", *DATA, code=2)
    assert "m.onnx: output 'found_boxes' has as many rows as are found, not one an image" in said
    assert "--metric" in said
    shown = works(
        "validate", "m.onnx", "q.onnx", *DATA, "--metric", "mine:found", "--layers", "--json", "v.json"
    ).output
    found = read("v.json")
    assert found["images"] == 24
    assert found["fp32"]["score"] > 0.95
    assert found["quantized"]["score"] > 0.9
    assert found["agreement"] is None
    assert found["sqnr_by_output"] == {}
    assert "warnings" not in shown
    assert "layers as written against FP32" in flat(shown)
    works("validate", "m.onnx", "q.onnx", *DATA, "--metric", "mine:found", "--report", "v.html", "--repeats", "3")
    pytest.importorskip("pycocotools", reason="pycocotools (the extra detection) is not installed")
    works("validate", "m.onnx", "q.onnx", *DATA, "--metric", "mAP", "--json", "v.json")
    assert read("v.json")["fp32"]["score"] > 0.9


@pytest.mark.slow
def test_widths_by_drop_and_by_size(here: Path) -> None:
    drop = ("--max-drop", "0.2", "--data", "scenes", "--labels", "instances.json:order")
    said = fails("quantize", "m.onnx", *QUANTIZE, "--method", "nearest", "--abits", "8", *drop, "-o", "d.onnx", code=2)
    assert "has as many rows as are found" in said
    works("quantize", "m.onnx", *QUANTIZE, "--method", "nearest", "--abits", "8", *drop, "--metric", "mine:found", "-o", "d.onnx",
          "--json", "d.json")  # fmt: skip
    assert all(trial["images"] == 24 for trial in read("d.json")["trials"])
    size = ("--size-budget", "13kB", "--container", "packed")
    works("quantize", "m.onnx", *QUANTIZE, "--method", "nearest", "--abits", "8", *size, "-o", "s.onnx")
    assert Path("s.onnx").stat().st_size <= 13_000


@pytest.mark.slow
def test_compare_and_sensitivity(here: Path) -> None:
    compared = ("compare", "m.onnx", *QUANTIZE, *DATA, "--methods", "nearest", "--bits", "W8A8", "-o", "grid")
    assert "has as many rows as are found" in fails(*compared, code=2)
    works(*compared, "--metric", "mine:found")
    assert read("grid/comparison.json")["cells"][0]["score"] > 0.9
    works("sensitivity", "m.onnx", *NEAREST)
    said = fails("sensitivity", "m.onnx", *NEAREST, *DATA, "--metric", "mine:found", code=2)
    assert "metric found counts what the whole gives" in said
    works("quantize", "m.onnx", *NEAREST, "-o", "q.onnx")
    works("benchmark", "m.onnx", "q.onnx")


def test_several_images_at_once_cannot_be_told_apart(here: Path) -> None:
    model = finished_detector("N")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("chosen", onnx.TensorProto.INT64, ["K", 3]))
    names = {"NonMaxSuppression", *(node.op_type for node in model.graph.node[:14])} | {"Constant"}
    for node in [
        node for node in model.graph.node if node.op_type not in names or node.output[0] in {"which_box", "flat_boxes"}
    ]:
        model.graph.node.remove(node)
    onnx.save(model, "two.onnx")
    said = fails(
        "validate", "two.onnx", "two.onnx", *DATA, "--metric", "mine:found", "--preprocess", "unit", "--resize", "32x32"
    )
    assert "two.onnx takes 2 images at once, and does not say whose its outputs are: export it" in said
    said = works("quantize", "two.onnx", *NEAREST).stdout
    assert "nothing here does, as the model takes 2 images at once" in flat(said)
    told_next = next(line for line in said.splitlines() if line.startswith("Next: "))
    assert told_next == "Next: mrecg-onnx benchmark two.onnx two_nearest_w8a8.onnx"


@pytest.mark.slow
def test_in_python_a_result_says_where_it_is_cut(here: Path) -> None:
    unit = mrecg_onnx.Preprocess((0.0,), (1.0,), resize=(32, 32))
    settings = mrecg_onnx.Settings(method="nearest", wbits=8, abits=8, preprocess=unit)
    result = mrecg_onnx.quantize(finished_detector("N"), "scenes", settings)
    assert result.cut.startswith("at 'boxes', 'by_class': what comes from NonMaxSuppression")
    assert f"cut: {result.cut}" in str(result)
    assert result.to_json()["cut"] == mrecg_onnx.inspect("m.onnx").to_json()["cut"] == result.cut

    class Counts:
        """Told of one image after the other."""

        def __init__(self) -> None:
            self.boxes = self.images = 0

        def update(self, outputs: Any, targets: Any) -> None:
            assert outputs["found_boxes"].ndim == 3
            self.boxes, self.images = self.boxes + outputs["found_boxes"].shape[1], self.images + 1

        def compute(self) -> float:
            return self.boxes / self.images

    found = result.validate("scenes", labels="none", metric=Counts)
    assert found.fp32.score == pytest.approx(3, abs=0.3)


@pytest.mark.slow
def test_layers_behind_the_cut_stay_in_float(here: Path) -> None:
    """A layer that looks at what was found, as the second stage of two does."""
    model = finished_detector()
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "refining"))
    gather = next(node for node in model.graph.node if node.op_type == "Gather")
    gather.output[0] = "first_boxes"
    model.graph.node.append(
        onnx.helper.make_node("MatMul", ["first_boxes", "refining"], ["found_boxes"], name="refine")
    )
    onnx.save(model, "m.onnx")
    works("quantize", "m.onnx", *NEAREST, "-o", "q.onnx")
    written = onnx.load("q.onnx")
    assert told(written.graph.node[-1]) == told(model.graph.node[-1])
    assert next(tensor for tensor in written.graph.initializer if tensor.name == "refining").data_type == 1
    onnx.save(detector(), "front.onnx")
    works("inspect", "m.onnx", "--json", "whole.json")
    works("inspect", "front.onnx", "--json", "front.json")
    whole, front = read("whole.json"), read("front.json")
    assert [value["name"] for value in whole["source"]["outputs"]] == [value.name for value in model.graph.output]
    assert whole["source"]["parameters"] - front["source"]["parameters"] >= weight.size
    line = fails("quantize", "m.onnx", *NEAREST, "--exclude", "^refine$", "-o", "never.onnx", code=2)
    assert "--exclude '^refine$' matches no node; names look like " in line
    assert "(the model is cut at 'boxes', 'by_class': what comes from NonMaxSuppression" in line
