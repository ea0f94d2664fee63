from __future__ import annotations

import json

import onnx
import pytest
from helpers.command_line import FAST, fails, works

from mrecg_onnx import Settings, convert, inspect_result
from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.inspecting import is_result
from mrecg_onnx.validating import source_sha256


@pytest.fixture
def made(here):
    options = ("--preprocess", "unit", "--bits", "conv3=W2A8", "--exclude", "project", "--method", "nearest")
    works("quantize", "model.onnx", "--calib", "images", *options, "-o", "quantized.onnx", *FAST)
    return here


def test_a_result_says_what_it_is(made):
    found = inspect_result("quantized.onnx")
    layers = {layer.name: layer for layer in found.layers}
    assert (layers["conv3"].wbits, layers["conv3"].abits) == (2, 8)
    assert (layers["conv1"].wbits, layers["conv1"].abits) == (4, 4)
    assert (layers["stem"].wbits, layers["project"].wbits) == (8, 32)
    assert layers["project"].in_float == "its weight is in float"
    assert layers["conv1"].in_float == ""
    assert (found.target, found.container, found.widths) == ("ort", "int8", "W4A4")
    assert found.source_sha256 == source_sha256("model.onnx")
    assert found.settings["method"] == "nearest"
    assert found.activations["image"] == 8 if "image" in found.activations else found.activations
    assert {name for unit in found.units for name in unit} == set(layers)
    json.dumps(found.to_json(), allow_nan=False)


def test_form_and_needs_are_those_of_the_file(made):
    convert("quantized.onnx", "packed", output="packed.onnx")
    found = inspect_result("packed.onnx")
    assert found.container == "packed"
    assert [row.package for row in found.needs] == ["onnxruntime"] * len(found.needs)
    assert found.needs
    plain = inspect_result("quantized.onnx")
    assert [(x.name, x.wbits, x.abits) for x in found.layers] == [(x.name, x.wbits, x.abits) for x in plain.layers]


def test_inspect_opens_a_result(made):
    told = works("inspect", "quantized.onnx", "--json", "found.json").stdout
    assert "container      int8" in told
    assert "exclude project" in told
    assert "its weight is in float" in told
    assert json.loads((made / "found.json").read_text())["target"] == "ort"
    asked = works("inspect", "quantized.onnx", "--wbits", 3)
    assert "Warning: --wbits has no effect: quantized.onnx is quantized already" in asked.stderr


def test_only_our_files_are_results(made):
    assert is_result("quantized.onnx")
    assert not is_result("model.onnx")
    assert not is_result("missing.onnx")
    (made / "damaged.onnx").write_bytes(b"\x0a\xff\xff")
    assert not is_result("damaged.onnx")
    with pytest.raises(ModelError, match="was not written by mrecg-onnx quantize"):
        inspect_result("model.onnx")
    fails("inspect", "damaged.onnx")


@pytest.mark.parametrize(
    ("key", "value"),
    [("mrecg_onnx.units", '{"a": 1}'), ("mrecg_onnx.settings", "[" * 100_000), ("mrecg_onnx.protected", "[1]")],
)
def test_metadata_that_make_no_sense_are_named(made, key, value):
    model = onnx.load("quantized.onnx")
    next(entry for entry in model.metadata_props if entry.key == key).value = value
    onnx.save(model, "odd.onnx")
    fails("inspect", "odd.onnx", says=("odd.onnx", "metadata"))


def test_defaults_are_not_shown_as_settings(made):
    told = works("inspect", "quantized.onnx").stdout
    assert f"iters {Settings().iters}" not in told
    assert "equalize" not in told
