"""Preprocessing by name and from files: transformers' and timm's, our own, and files that anyone may have written."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mrecg_onnx
from mrecg_onnx import Preprocess, Settings
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.data import InputSpec, open_calibration
from mrecg_onnx.data.entries import Entries
from mrecg_onnx.data.profiles import MAX_BYTES, PROFILES, _convert, beside, for_images, profile

if TYPE_CHECKING:
    from pathlib import Path

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
VIT = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor", "resample": 2, "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}  # fmt: skip
CLIP = {
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48, 0.45, 0.40], "image_std": [0.26, 0.27, 0.28],
}  # fmt: skip
CONVNEXT = {
    "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "feature_extractor_type": "ConvNextFeatureExtractor",
    "resample": 3, "size": 224, **IMAGENET,
}  # fmt: skip
TIMM = {
    "architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {
        "tag": "a1_in1k", "input_size": [3, 224, 224], "fixed_input_size": False, "interpolation": "bicubic", "crop_pct": 0.95,
        "crop_mode": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "classifier": "fc",
    },
}  # fmt: skip


def write(folder: Path, data: object, name: str = "preprocessor_config.json") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def numbers(found: Preprocess) -> tuple[Any, ...]:
    return found.resize, found.crop, found.interpolation, found.scale, found.mean, found.std


# ---- names ----------------------------------------------------------------------------------------------------------


def test_names_say_everything() -> None:
    assert profile("unit").table(np.dtype(np.float64))[0].tolist() == pytest.approx((np.arange(256) / 255).tolist())
    assert profile("raw").table(np.dtype(np.float64))[0].tolist() == list(range(256))
    assert profile("imagenet").mean == (0.485, 0.456, 0.406)
    assert all(found.normalizes and not found.beside for found in PROFILES.values())
    with pytest.raises(SettingsError, match="--preprocess units: no such file; names are imagenet, unit, raw"):
        profile("units")


def test_settings_take_a_name_a_file_and_an_object(tmp_path: Path) -> None:
    path = write(tmp_path, VIT)
    assert Settings(preprocess="unit").preprocess == PROFILES["unit"]
    assert Settings(preprocess=path).preprocess.mean == (0.5, 0.5, 0.5)
    settings = Settings(preprocess=Preprocess(mean=(0.1,)), iters=5)
    assert settings.preprocess.mean == (0.1,)
    assert not settings.preprocess.beside
    assert Settings().preprocess.beside
    for same in (
        pickle.loads(pickle.dumps(settings)),
        dataclasses.replace(settings),
        Settings(preprocess=settings.preprocess, iters=5),
    ):
        assert same == settings
    assert settings.to_json()["preprocess"]["mean"] == [0.1]
    with pytest.raises(SettingsError, match="no such file"):
        Settings(preprocess="nothing.json")


# ---- transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (VIT, ((224, 224), (224, 224), "bilinear", 1 / 255, (0.5,) * 3, (0.5,) * 3)),
        (VIT | {"size": 224}, ((224, 224), (224, 224), "bilinear", 1 / 255, (0.5,) * 3, (0.5,) * 3)),
        (VIT | {"do_rescale": False}, ((224, 224), (224, 224), "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)),
        (VIT | {"do_normalize": False}, ((224, 224), (224, 224), "bilinear", 1 / 255, (0.0,), (1.0,))),
        (VIT | {"do_resize": False}, ("off", None, "bilinear", 1 / 255, (0.5,) * 3, (0.5,) * 3)),
        (CLIP, (224, (224, 224), "bicubic", 1 / 255, (0.48, 0.45, 0.40), (0.26, 0.27, 0.28))),
        (
            CLIP | {"size": {"shortest_edge": 256}, "crop_size": {"height": 200, "width": 224}},
            (256, (200, 224), "bicubic", 1 / 255, (0.48, 0.45, 0.40), (0.26, 0.27, 0.28)),
        ),
        (CONVNEXT, (256, (224, 224), "bicubic", 1 / 255, tuple(IMAGENET["image_mean"]), tuple(IMAGENET["image_std"]))),
        (
            CONVNEXT | {"size": {"shortest_edge": 384}, "crop_pct": None},
            ((384, 384), (384, 384), "bicubic", 1 / 255, tuple(IMAGENET["image_mean"]), tuple(IMAGENET["image_std"])),
        ),
        (
            CONVNEXT | {"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 0.9, "crop_size": 224},
            (248, (224, 224), "bicubic", 1 / 255, tuple(IMAGENET["image_mean"]), tuple(IMAGENET["image_std"])),
        ),
        (
            CLIP | {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256},
            ((256, 256), (224, 224), "bicubic", 1 / 255, (0.48, 0.45, 0.40), (0.26, 0.27, 0.28)),
        ),
        ({"do_normalize": True, "image_mean": 0.1, "image_std": 0.3}, (None, None, "bilinear", 1 / 255, (0.1,), (0.3,))),
    ],
)  # fmt: skip
def test_steps_of_transformers(data: dict[str, Any], wanted: tuple[Any, ...], tmp_path: Path) -> None:
    found = profile(write(tmp_path, data))
    assert numbers(found) == wanted
    assert found.source == str(tmp_path / "preprocessor_config.json")
    nested = profile(write(tmp_path, {"image_processor": data, "tokenizer": {}}, "processor_config.json"))
    assert numbers(nested) == wanted


def test_efficientnets_second_division_and_offset(tmp_path: Path) -> None:
    data = VIT | {"include_top": True, "rescale_offset": True, "rescale_factor": 1 / 127.5}
    x = profile(write(tmp_path, data)).table(np.dtype(np.float64))[0]
    np.testing.assert_allclose(x, (np.arange(256) / 127.5 - 1 - 0.5) / 0.5 / 0.5)


def test_reversed_channels(tmp_path: Path) -> None:
    assert profile(write(tmp_path, VIT | {"do_flip_channel_order": True})).color == "bgr"


def test_what_cannot_be_done_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = {
        "do_pad": True,
        "pad_size": None,
        "do_reduce_labels": False,
        "odd\x1b[0m": 1,
        "size": {"shortest_edge": 80, "longest_edge": 9},
    }
    with caplog.at_level(logging.WARNING, "mrecg_onnx"):
        found = profile(write(tmp_path, VIT | odd))
    assert found.resize == 80
    (said,) = [record.getMessage() for record in caplog.records]
    assert "size.longest_edge not applied" in said
    assert r"'odd\x1b[0m', do_pad not applied" in said
    assert "images are not cropped there" in said
    assert "pad_size" not in said
    assert "do_reduce_labels" not in said
    caplog.clear()
    profile(write(tmp_path, VIT))
    profile(write(tmp_path, TIMM, "config.json"))
    assert not caplog.records


# ---- timm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "geometry"),
    [
        ({}, (235, (224, 224), "bicubic")),
        ({"crop_pct": None}, (256, (224, 224), "bicubic")),
        ({"crop_mode": "squash", "crop_pct": 1.0}, ((224, 224), (224, 224), "bicubic")),
        ({"interpolation": "random"}, (235, (224, 224), "bilinear")),
        ({"input_size": [3, 112, 224], "crop_pct": 0.875}, (None, (112, 224), "bicubic")),
        ({"input_size": None}, (None, None, "bicubic")),
    ],
)
def test_evaluation_of_timm(change: dict[str, Any], geometry: tuple[Any, ...], tmp_path: Path) -> None:
    config = TIMM["pretrained_cfg"] | change
    found = profile(write(tmp_path, TIMM | {"pretrained_cfg": config}, "config.json"))
    assert numbers(found) == (*geometry, 1 / 255, tuple(config["mean"]), tuple(config["std"]))
    assert profile(write(tmp_path, config, "data_config.json")) == found


def test_borders_of_timm_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profile(write(tmp_path, TIMM["pretrained_cfg"] | {"crop_mode": "border", "crop_border_pixels": 4}, "c.json"))
    assert "crop_mode 'border' not applied" in caplog.text
    assert "crop_border_pixels not applied" in caplog.text


# ---- our own, and what is none --------------------------------------------------------------------------------------


def test_fields_of_preprocess_are_read(tmp_path: Path) -> None:
    given = Preprocess((0.1,), (0.2,), 1.0, (256, 256), (224, 224), "nchw", "bgr", "bicubic")
    assert profile(write(tmp_path, given.to_json())) == given
    assert profile(write(tmp_path, {"mean": [0.5], "std": [0.5]})) == Preprocess((0.5,), (0.5,))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "is no JSON file"),
        ('{"mean": [NaN], "std": [1]}', "mean must be a finite number"),
        ("[" * 100_000, "is no JSON file"),
        ([1], "holds no object"),
        ({}, "is no preprocessor_config.json of transformers"),
        ({"model_type": "resnet"}, "is no preprocessor_config.json of transformers"),
        (VIT | {"image_mean": "0.5"}, "image_mean is '0.5': a number, or a list of one for each channel is expected"),
        (VIT | {"image_mean": None}, "image_mean is missing"),
        (VIT | {"image_std": [1, 1]}, "image_std is "),
        (VIT | {"image_std": [0, 1, 1]}, "std must be above 0"),
        (VIT | {"do_rescale": "yes"}, "do_rescale is 'yes': true or false is expected"),
        (VIT | {"rescale_factor": 0}, "rescale_factor is 0"),
        (VIT | {"rescale_factor": 10**400}, "rescale_factor is 1000"),
        (VIT | {"resample": 9}, "resample is 9"),
        (VIT | {"size": {"height": 10**9, "width": 1}}, "size is "),
        (VIT | {"size": "224"}, "size is '224'"),
        (VIT | {"size": {"longest_edge": 800}}, "size is "),
        (CLIP | {"crop_size": {"height": 224}}, "crop_size is "),
        (TIMM | {"pretrained_cfg": {"mean": [0.5], "std": [0.5], "input_size": [3, 224, True]}}, "input_size is "),
        (TIMM | {"pretrained_cfg": {"mean": [0.5]}}, "std is missing"),
        ({"mean": [0.5], "std": [0.5], "interpolation": "cubic"}, "interpolation is 'cubic': choose among"),
        ({"mean": [0.5], "std": [0.5], "resize": 10**9}, "resize is 1000000000"),
        ({"mean": "x" * 1000}, "mean is 'xxx"),
        (" " * (MAX_BYTES + 1), "is larger than 4 MB"),
    ],
)
def test_a_file_that_does_not_do_is_named_with_the_key(data: object, says: str, tmp_path: Path) -> None:
    path = write(tmp_path, data)
    with pytest.raises(SettingsError) as error:
        profile(path)
    text = str(error.value)
    assert says in text
    assert str(path) in text
    assert len(text) < 400 + len(str(path))
    assert "\n" not in text


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
json_values = (
    plain | st.lists(plain, max_size=4) | st.dictionaries(st.sampled_from(["height", "width", "shortest_edge"]), plain)
)


@given(
    base=st.sampled_from([VIT, CLIP, CONVNEXT, TIMM["pretrained_cfg"], Preprocess().to_json()]),
    changes=st.dictionaries(
        st.sampled_from(sorted({*VIT, *CLIP, *CONVNEXT, *TIMM["pretrained_cfg"], *Preprocess().to_json()})),
        json_values,
        max_size=3,
    ),
)
def test_whatever_a_file_holds_is_preprocessing_or_one_line(base: dict[str, Any], changes: dict[str, Any]) -> None:
    said, found = "", None
    try:
        found = _convert(Entries(base | changes, "file.json"))
    except SettingsError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1
    assert len(said) < 400
    if found is not None:
        assert Preprocess.from_json(json.loads(json.dumps(found.to_json()))) == found


# ---- beside a model -------------------------------------------------------------------------------------------------


def test_the_file_beside_the_model_fills_what_is_not_stated(tmp_path: Path) -> None:
    model, images = tmp_path / "m.onnx", tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(images / "a.png")
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 8, 8), np.float32))
    anything = Preprocess(beside=True)
    assert beside(model) is None
    assert for_images(anything, model, images) == Preprocess()
    write(tmp_path, TIMM, "config.json")
    found = for_images(Preprocess(std=(0.9,), resize=230, beside=True), model, images)
    assert (found.mean, found.std, found.resize, found.interpolation) == ((0.485, 0.456, 0.406), (0.9,), 230, "bicubic")
    assert not found.beside
    write(tmp_path, VIT)  # goes before config.json
    assert for_images(anything, model, None, "zeroq").mean == (0.5, 0.5, 0.5)
    assert for_images(PROFILES["unit"], model, images).mean == (0.0,)  # a name says everything
    assert for_images(anything, model, tmp_path / "a.npy") == Preprocess()  # arrays are fed as they are
    (tmp_path / "onnx").mkdir()
    assert for_images(anything, tmp_path / "onnx" / "m.onnx", images).mean == (0.5, 0.5, 0.5)
    assert beside(b"model") is None
    write(tmp_path, "{")
    assert for_images(anything, model, tmp_path / "a.npy") == Preprocess()
    with pytest.raises(SettingsError, match=r"is no JSON file .*; --preprocess imagenet\|unit\|raw\|FILE goes before"):
        for_images(anything, model, images)


@pytest.mark.parametrize("text", ["{", "[1]", json.dumps({"model_type": "resnet", "id2label": {"0": "cat"}})])
def test_a_config_of_something_else_is_let_be(text: str, tmp_path: Path) -> None:
    write(tmp_path, text, "config.json")
    assert beside(tmp_path / "m.onnx") is None


def test_a_file_that_does_not_fit_the_model_is_named(tmp_path: Path) -> None:
    write(tmp_path, TIMM, "config.json")
    found = beside(tmp_path / "m.onnx")
    assert found is not None
    with pytest.raises(SettingsError, match=r"config\.json: crop 224x224 does not fit .*--preprocess replaces it"):
        found.resolve(InputSpec("x", (None, 3, 256, 256), np.dtype(np.float32)))
    pixels = found.resolve(InputSpec("x", (None, 3, 224, 224), np.dtype(np.uint8)))  # the model normalizes by itself
    assert (pixels.mean, pixels.resize) == ((0.0,) * 3, 235)


def test_the_pixels_are_those_of_the_steps(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    image.save(tmp_path / "a.png")
    data = CLIP | {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}
    found = profile(write(tmp_path, data))
    x = open_calibration(tmp_path / "a.png", [InputSpec("x", (None, 3, 16, 16), np.dtype(np.float32))], found).load()[
        "x"
    ][0]
    expected = np.asarray(image.resize((30, 20), Image.Resampling.BICUBIC).crop((7, 2, 23, 18)), np.float64) / 255
    expected = (expected - data["image_mean"]) / data["image_std"]
    np.testing.assert_allclose(x, expected.transpose(2, 0, 1), atol=1e-6)
    assert mrecg_onnx.Preprocess is Preprocess


def test_a_description_beside_the_model_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").mkdir()
    with pytest.raises(SettingsError, match=r"preprocessor_config\.json: is no file; --preprocess"):
        beside(tmp_path / "model.onnx")
    (tmp_path / "timm").mkdir()
    write(tmp_path / "timm", {"architecture": "x", "pretrained_cfg": [1]}, "config.json")
    with pytest.raises(SettingsError, match=r"pretrained_cfg is .*an object is expected"):
        beside(tmp_path / "timm" / "model.onnx")
