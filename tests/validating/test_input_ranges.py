"""Inputs that are not what a model was calibrated on are said: other units, other preprocessing, whatever the file's form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers.architectures import Graph
from helpers.cells import CellHere
from helpers.command_line import classifier, works
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from mrecg_onnx import Preprocess, Settings, convert, quantize, validate
from mrecg_onnx.comparing import running
from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.metadata_keys import INPUT_RANGES_KEY
from mrecg_onnx.machine.parallel import ALONE
from mrecg_onnx.validating.input_ranges import Range, Watch, calibrated_ranges, ranges_entry

if TYPE_CHECKING:
    from pathlib import Path

UNIT = {"low": 0.0, "high": 1.0}


def stored(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def rows(low: float, high: float, count: int = 8, size: int = 16) -> np.ndarray:
    x = np.random.default_rng(0).uniform(low, high, (count, 3, size, size)).astype(np.float32)
    x.flat[:2] = low, high
    return x


def warned(calibrated: tuple[float, float], seen: np.ndarray) -> tuple[str, ...]:
    watch = Watch({"x": Range(*calibrated)})
    for part in np.array_split(seen, 3):
        watch.add({"x": part, "other": part})
    watch.join(ALONE)
    return watch.warnings(images=True)


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_values_outside_and_values_in_a_corner_are_said() -> None:
    assert warned((0, 1), rows(0, 1)) == ()
    assert warned((0, 1), rows(-0.01, 1.01)) == ()  # next to nothing is clipped
    (outside,) = warned((-1, 1), rows(-2.1, 2.6))
    assert outside.startswith(
        "input 'x': 56% of its values, -2.1 to 2.6, lie outside -1 to 1, what it was calibrated on"
    )
    assert "--preprocess, --mean, --std and --scale" in outside
    (corner,) = warned((0, 255), rows(0, 1))
    assert "its values, 0 to 1, use only 0% of 0 to 255" in corner
    assert warned((-2.1, 2.6), rows(-1, 1)) == ()
    assert warned((0, 0), rows(0, 0)) == ()
    few = rows(0, 1)
    few[:, 0, :1, :1] = 9.0  # outliers of single pixels are no other preprocessing
    assert warned((0, 1), few) == ()


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.floats(1.5, 100))
def test_the_same_data_are_never_doubted_and_other_units_always(low: float, span: float, factor: float) -> None:
    x = rows(low, low + span, 4, 4)
    calibrated = float(x.min()), float(x.max())
    assert warned(calibrated, x) == ()
    assert warned(calibrated, x + np.float32(3 * span))
    centre = np.float32(sum(calibrated) / 2)
    assert bool(warned(calibrated, (x - centre) / np.float32(4 * factor) + centre)) or factor < 1.01


# ---- what is known --------------------------------------------------------------------------------------------------


def test_ranges_are_kept_of_numbers_that_have_one() -> None:
    data = {"x": rows(-1, 2), "pixels": np.arange(5, dtype=np.uint8), "ids": np.arange(5), "mask": np.ones(3, bool)}
    entry = ranges_entry(data)
    assert json.loads(entry) == {"x": [-1.0, 2.0], "pixels": [0.0, 4.0]}
    assert calibrated_ranges({INPUT_RANGES_KEY: entry}, b"", "m") == {"x": (-1, 2), "pixels": (0, 4)}


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"x": 1}', '{"x": [2, 1]}', '{"x": [0, NaN]}', '{"x": ["a", 1]}', "[" * 99999]
)
def test_metadata_that_are_no_ranges_are_named(text: str) -> None:
    with pytest.raises(ModelError, match=f"m.onnx: metadata {INPUT_RANGES_KEY} cannot be used"):
        calibrated_ranges({INPUT_RANGES_KEY: text}, b"", "m.onnx")


def foreign(zero: np.generic | None = None, *, clip: bool = False, behind: str = "") -> onnx.ModelProto:
    """A quantizer behind the input: scale 0.1."""
    g = Graph()
    x = g.input(3, 8)
    if behind:
        x = g.op("Transpose", [x], behind, perm=[0, 2, 3, 1])
    scale = g.constant("scale", np.float32(0.1))
    points = [] if zero is None else [g.constant("zero", zero)]
    q = g.op("QuantizeLinear", [x, scale, *points], "q")
    if clip:
        q = g.op("Clip", [q, g.constant("low", np.uint8(0)), g.constant("high", np.uint8(15))], "clip")
    g.op("DequantizeLinear", [q, scale, *points], "dq", "output")
    return g.model()


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (foreign(np.uint8(10)), (-1.0, 24.5)),
        (foreign(np.int8(0)), (-12.8, 12.7)),
        (foreign(), (0.0, 25.5)),
        (foreign(np.uint8(10), clip=True), (-1.0, 0.5)),
        (foreign(np.uint8(10), behind="nhwc"), (-1.0, 24.5)),
    ],
)
def test_files_without_metadata_are_known_by_their_quantizer(
    model: onnx.ModelProto, wanted: tuple[float, float], tmp_path: Path
) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    for form in (model, model.SerializeToString(), tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        assert calibrated_ranges({}, form, "m")["input"] == pytest.approx(wanted, rel=1e-5)


def test_a_float_input_without_metadata_is_not_judged() -> None:
    assert calibrated_ranges({}, classifier(), "m") == {}


# ---- quantize, convert, validate, compare ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, arrays in 0..1, arrays of pixels, and images."""
    folder = tmp_path_factory.mktemp("ranges")
    onnx.save(classifier(), folder / "model.onnx")
    np.save(folder / "unit.npy", rows(0, 1))
    np.save(folder / "pixels.npy", rows(0, 255))
    return folder


@pytest.mark.parametrize(
    ("choices", "container"),
    [
        ({}, None),
        ({"abits": 32}, None),
        ({"target": "tensorrt", "wbits": 8, "abits": 8}, None),
        ({"target": "portable"}, None),
        ({"exclude": ("stem",)}, None),
        ({}, "packed"),
    ],
)
def test_every_form_of_file_knows_its_inputs(files: Path, choices: dict, container: str | None, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    quantize(
        files / "model.onnx", files / "unit.npy", Settings(method="nearest", equalize="off", **choices), output=out
    )
    if container is not None:
        convert(out, container=container, output=tmp_path / "c.onnx")
        out = tmp_path / "c.onnx"
    assert json.loads(stored(onnx.load(out))[INPUT_RANGES_KEY]) == {"input": [0.0, 1.0]}
    fine = validate(files / "model.onnx", out, files / "unit.npy", repeats=0)
    wrong = validate(files / "model.onnx", out, files / "pixels.npy", repeats=0)
    assert not any("calibrated on" in warning for warning in fine.warnings)
    (said,) = [warning for warning in wrong.warnings if "calibrated on" in warning]
    assert "lie outside 0 to 1" in said
    assert "arrays are prepared in another way" in said


def test_images_prepared_in_another_way_are_said_on_the_command_line(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CellProcess", CellHere)
    np.save("unit.npy", rows(0, 1))
    common = ("--method", "nearest", "--equalize", "off", "--threads", "1")
    works("quantize", "model.onnx", "--calib", "unit.npy", *common, "-o", "q.onnx")
    wrong = works("validate", "model.onnx", "q.onnx", "--data", "images", "--preprocess", "imagenet", "--repeats", "0")
    assert "lie outside 0 to 1, what it was calibrated on: images are prepared in another way" in wrong.stdout
    right = works("validate", "model.onnx", "q.onnx", "--data", "images", "--preprocess", "unit", "--repeats", "0")
    assert "calibrated on" not in right.stdout
    assert "scale 1/255, mean 0 0 0, std 1 1 1" in right.stdout
    table = works(
        "compare", "model.onnx", "--calib", "unit.npy", "--data", "images", "--preprocess", "imagenet", "--methods", "nearest",
        "-o", "out", "--repeats", "0", "--equalize", "off", "--threads", "1",
    )  # fmt: skip
    assert "lie outside 0 to 1" in table.stderr


def test_what_replaces_the_stored_preprocessing_is_checked_too(here: Path) -> None:
    settings = Settings(method="nearest", equalize="off", samples=16)
    made = quantize("model.onnx", "images", settings, output="q.onnx")
    assert stored(made.model)[INPUT_RANGES_KEY]
    raw = Preprocess((0.0,), (1.0,), 1.0)
    assert not any("calibrated on" in w for w in validate("model.onnx", "q.onnx", "images", repeats=0).warnings)
    assert any(
        "lie outside" in w for w in validate("model.onnx", "q.onnx", "images", preprocess=raw, repeats=0).warnings
    )


def test_files_of_earlier_versions_are_known_by_their_quantizer(here: Path) -> None:
    quantize("model.onnx", "images", Settings(method="nearest", equalize="off", samples=16), output="q.onnx")
    old = onnx.load("q.onnx")
    helper.set_model_props(old, {key: value for key, value in stored(old).items() if key != INPUT_RANGES_KEY})
    onnx.save(old, "q.onnx")
    low, high = calibrated_ranges({}, "q.onnx", "q.onnx")["input"]
    assert -2.5 < low < -1.5
    assert 1.5 < high < 3.0
