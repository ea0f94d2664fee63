"""The numbers, the layout and the size that a model's images get, stated or found out; and what images cannot feed."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.images import RAW, RED, one_line, pixels_of, spec, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.data import InputSpec, Preprocess, open_calibration
from mrecg_onnx.data.profiles import PROFILES

if TYPE_CHECKING:
    from pathlib import Path


def test_default_numbers_are_imagenets(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (0, 128, 255))
    x = open_calibration(tmp_path, [spec(None, 3, 4, 4)], Preprocess()).load()["x"]
    expected = (np.array([0, 128, 255]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert x.shape == (1, 3, 4, 4)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[0, :, 2, 3], expected, rtol=1e-6)


def test_layout_and_color_place_the_channels(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (1, 2, 3))
    nhwc = open_calibration(tmp_path, [spec(None, 4, 4, 3)], RAW)
    assert nhwc.preprocess is not None
    assert nhwc.preprocess.layout == "nhwc"
    assert nhwc.load()["x"].shape == (1, 4, 4, 3)
    assert nhwc.load()["x"][0, 0, 0].tolist() == [1, 2, 3]
    bgr = Preprocess(mean=(0.0,), std=(1.0,), scale=1.0, color="bgr")
    assert open_calibration(tmp_path, [spec(None, 3, 4, 4)], bgr).load()["x"][0, :, 0, 0].tolist() == [3, 2, 1]


def test_mean_follows_the_models_channels() -> None:
    bgr = Preprocess(color="bgr").resolve(spec(None, 3, 8, 8))
    assert bgr.mean == (0.406, 0.456, 0.485)
    assert bgr.std == (0.225, 0.224, 0.229)
    given_bgr = Preprocess(color="bgr", mean=(0.4, 0.5, 0.6)).resolve(spec(None, 3, 8, 8))
    assert given_bgr.mean == (0.4, 0.5, 0.6)
    assert Preprocess(mean=(0.5,)).resolve(spec(None, 3, 8, 8)).mean == (0.5, 0.5, 0.5)


def test_numbers_are_asked_for_where_the_model_has_not_three_channels() -> None:
    for channels in (1, 4):
        for stated in (Preprocess(), Preprocess(scale=1 / 255), Preprocess(mean=(0.5,)), Preprocess(std=(0.5,))):
            with pytest.raises(
                SettingsError, match=r"--mean and --std .* or --preprocess imagenet\|unit\|raw\|FILE"
            ) as error:
                stated.resolve(spec(None, channels, 8, 8))
            assert f"input 'x' (?, {channels}, 8, 8) float32 has {channels} channel" in one_line(error)
            assert error.value.exit_code == 2
    assert Preprocess().resolve(spec(None, 1, 8, 8, dtype=np.uint8)).mean == (0.0,)  # pixels as they are


def test_grey_model_averages_imagenets_numbers_and_refuses_other_triples() -> None:
    grey = PROFILES["imagenet"].resolve(spec(None, 1, 8, 8))
    assert (grey.color, grey.mean, grey.std) == ("gray", (0.449,), (0.226,))
    assert Preprocess(mean=(0.13,), std=(0.3,)).resolve(spec(None, 1, 8, 8)).mean == (0.13,)
    with pytest.raises(SettingsError, match="mean has 3 values"):
        Preprocess(mean=(0.1, 0.2, 0.3), std=(1.0,)).resolve(spec(None, 1, 8, 8))
    with pytest.raises(SettingsError, match="use --color gray"):
        Preprocess(color="bgr").resolve(spec(None, 1, 8, 8))


def test_four_channels_are_filled_with_alpha(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (10, 20, 30, 40)).save(tmp_path / "a.png")
    Image.new("RGB", (2, 2), (10, 20, 30)).save(tmp_path / "b.png")
    Image.new("LA", (2, 2), (7, 8)).save(tmp_path / "c.png")
    clear = Image.new("P", (2, 2), 1)
    clear.putpalette([0, 0, 0, 1, 2, 3])
    clear.save(tmp_path / "d.png", transparency=1)
    x = open_calibration(tmp_path, [spec(None, 4, 2, 2)], RAW).load()["x"]
    assert x[:, :, 0, 0].tolist() == [[10, 20, 30, 40], [10, 20, 30, 255], [7, 7, 7, 8], [1, 2, 3, 0]]
    last = Preprocess(mean=(1.0, 2.0, 3.0, 4.0), std=(2.0,)).resolve(spec(None, 2, 2, 4))
    assert (last.layout, last.color, last.mean) == ("nhwc", "rgba", (1.0, 2.0, 3.0, 4.0))
    with pytest.raises(SettingsError, match=r"mean has 3 values, .* has 4 channels: give 1 or 4 values"):
        PROFILES["imagenet"].resolve(spec(None, 4, 2, 2))
    with pytest.raises(SettingsError, match="use --color rgba"):
        Preprocess(color="rgb").resolve(spec(None, 4, 2, 2))
    with pytest.raises(SettingsError, match="color rgba needs 4 channels"):
        Preprocess(color="rgba").resolve(spec(None, 3, 2, 2))


def test_gray_for_a_three_channel_model_repeats_the_luma(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", RED, (2, 2))
    gray = Preprocess(mean=(0.0,), std=(1.0,), scale=1.0, color="gray")
    assert pixels_of(path, preprocess=gray)[0, 0].tolist() == [76, 76, 76]  # 0.299 * 255


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_float_inputs_get_their_own_dtype(tmp_path: Path, dtype: type) -> None:
    write(tmp_path / "a.png")
    x = open_calibration(tmp_path, [spec(None, 3, 4, 4, dtype=dtype)], Preprocess()).load()["x"]
    assert x.dtype == dtype


def test_uint8_input_gets_pixels_and_says_so(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (1, 2, 255))
    data = open_calibration(tmp_path, [spec(1, 4, 4, 3, dtype=np.uint8)], Preprocess())
    x = data.load()["x"]
    assert x.dtype == np.uint8
    assert x[0, 0, 0].tolist() == [1, 2, 255]
    assert data.preprocess is not None
    assert "fed as they are, no mean or std" in data.preprocess.describe()
    with pytest.raises(SettingsError, match="leave --scale, --mean and --std out"):
        Preprocess(mean=(0.5,)).resolve(spec(1, 4, 4, 3, dtype=np.uint8))


def test_numbers_beyond_float16_are_refused() -> None:
    with pytest.raises(SettingsError, match="out of the range"):
        Preprocess(scale=1.0, std=(1e-4,)).resolve(spec(None, 3, 4, 4, dtype=np.float16))


@pytest.mark.parametrize(
    "settings",
    [
        {"std": (0.0,)},
        {"std": (0.2, -0.2, 0.2)},
        {"std": (float("nan"),)},
        {"mean": ()},
        {"mean": (0.1, 0.2)},
        {"mean": ("a",)},
        {"mean": True},
        {"scale": 0},
        {"scale": float("inf")},
        {"scale": "1/255"},
        {"resize": 0},
        {"resize": True},
        {"resize": 2.5},
        {"resize": "256"},
        {"resize": (256,)},
        {"resize": (100, 300), "crop": (224, 224)},
        {"interpolation": "cubic"},
        {"crop": (0, 3)},
        {"crop": (3,)},
        {"crop": 224},
        {"layout": "hwc"},
        {"color": "RGB"},
        {"resize": 100, "crop": (224, 224)},
    ],
)
def test_settings_out_of_range_name_themselves(settings: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(settings))) as error:
        Preprocess(**settings)  # type: ignore[arg-type]
    assert one_line(error)
    assert error.value.exit_code == 2


@given(
    mean=st.none() | st.lists(st.floats(-10, 10), min_size=3, max_size=3),
    std=st.lists(st.floats(0.01, 10), min_size=1, max_size=1),
    scale=st.floats(1e-4, 2),
    resize=st.none() | st.integers(32, 512) | st.just((40, 32)) | st.just("off"),
    crop=st.none() | st.just((32, 32)),
    layout=st.sampled_from(["auto", "nchw"]),
    color=st.sampled_from(["auto", "rgb", "bgr", "gray"]),
    interpolation=st.none() | st.sampled_from(["bilinear", "bicubic"]),
)
def test_stored_preprocessing_comes_back_equal_and_resolving_is_final(
    *, mean: list[float] | None, std: list[float], scale: float, resize: object, crop: object, layout: str, color: str,
    interpolation: str | None,
) -> None:  # fmt: skip
    means = None if mean is None else tuple(mean)
    p = Preprocess(means, tuple(std), scale, resize, crop, layout, color, interpolation)  # type: ignore[arg-type]
    assert Preprocess.from_json(json.loads(json.dumps(p.to_json()))) == p
    resolved = p.resolve(spec(None, 3, 32, 32))
    assert Preprocess.from_json(json.loads(json.dumps(resolved.to_json()))).resolve(spec(None, 3, 32, 32)) == resolved
    assert "\n" not in resolved.describe()


@pytest.mark.parametrize("model", [(None, 3, 32, 32), (None, 1, 32, 32), (1, 32, 32, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("color", ["auto", "bgr"])
def test_resolved_defaults_survive_storage(model: tuple[int | None, ...], dtype: type, color: str) -> None:
    if color == "bgr" and model[1] == 1:
        return
    given = Preprocess(color=color)
    if dtype == np.float32 and model[1] == 1:
        given = PROFILES["imagenet"]
    resolved = given.resolve(spec(*model, dtype=dtype))
    assert Preprocess.from_json(resolved.to_json()).resolve(spec(*model, dtype=dtype)) == resolved


@pytest.mark.parametrize("data", [[], {"mean": [0.5]}, {**RAW.to_json(), "gamma": 2}, {**RAW.to_json(), "std": [0]}])
def test_stored_preprocessing_that_is_not_ours_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        Preprocess.from_json(data)


def test_preprocessing_of_files_that_knew_one_filter_is_read() -> None:
    old = {name: value for name, value in RAW.to_json().items() if name != "interpolation"}
    assert Preprocess.from_json(old) == RAW


def test_what_is_stated_goes_over_the_rest() -> None:
    base = Preprocess((0.1,), (0.2,), 1.0, 256, (224, 224), "nchw", "bgr", "bicubic")
    assert Preprocess().over(base) == base
    assert Preprocess(mean=(0.5,), resize="off", color="rgb").over(base) == Preprocess(
        (0.5,), (0.2,), 1.0, "off", (224, 224), "nchw", "rgb", "bicubic"
    )
    assert not Preprocess(mean=(0.5,)).normalizes
    assert Preprocess(mean=(0.5,)).over(base).normalizes


def test_describe_tells_what_happens_to_size() -> None:
    assert "size/0.875" in Preprocess().describe()
    resolved = Preprocess().resolve(spec(None, 3, 224, 224))
    assert resolved.describe() == (
        "rgb nchw; images of 224x224 as they are, others: shorter side to 256, centre crop; "
        "scale 1/255, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    )
    assert "shorter side to 232, centre crop to 224x224" in Preprocess(resize=232, crop=(224, 224)).describe()
    assert "cover 128x256" in Preprocess(crop=(112, 224)).describe()
    assert (
        "resized to 256x256, bicubic, centre crop" in Preprocess(resize=(256, 256), interpolation="bicubic").describe()
    )
    assert "not resized, centre crop to 8x8" in Preprocess(resize="off", crop=(8, 8)).describe()
    assert "mean ImageNet's, std ImageNet's" in Preprocess().describe()


def test_crop_gives_a_free_size_its_size(tmp_path: Path) -> None:
    write(tmp_path / "a.png", size=(9, 9))
    free = spec(None, 3, None, None)
    assert open_calibration(tmp_path, [free], Preprocess(crop=(4, 6))).load()["x"].shape == (1, 3, 4, 6)
    with pytest.raises(DataError, match=r"'x' \(\?, 3, \?, \?\).*--crop"):
        open_calibration(tmp_path, [free], Preprocess())


def test_crop_must_agree_with_a_fixed_size() -> None:
    with pytest.raises(SettingsError, match="crop 4x6 does not fit"):
        Preprocess(crop=(4, 6)).resolve(spec(None, 3, None, 8))
    assert Preprocess(crop=(4, 8)).resolve(spec(None, 3, None, 8)).crop == (4, 8)
    with pytest.raises(SettingsError, match="resize 100 is smaller"):
        Preprocess(resize=100).resolve(spec(None, 3, 224, 224))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (spec(None, 3, 224), "does not have 4 axes"),
        (spec(None, 16), "does not have 4 axes"),
        (spec(None, 5, 8, 8), "neither axis 1 nor axis 3"),
        (spec(None, 3, 8, 8, dtype=np.int64), "only float and uint8"),
        (spec(None, 3, 8, 8, dtype=np.int8), "only float and uint8"),
        (spec(None, 3, 8, 8, dtype=bool), "only float and uint8"),
        (spec(None, None, None, None), "--layout nchw or --layout nhwc"),
    ],
)
def test_input_images_cannot_feed_is_named_with_its_shape(tmp_path: Path, model: InputSpec, says: str) -> None:
    write(tmp_path / "a.png")
    with pytest.raises(DataError, match=re.escape(str(model))) as error:
        open_calibration(tmp_path, [model], Preprocess())
    assert says in one_line(error)
    assert ".npy" in one_line(error) or "--layout" in one_line(error)


def test_layout_given_against_the_model_is_refused() -> None:
    with pytest.raises(DataError, match="8 channels in nhwc"):
        Preprocess(layout="nhwc").resolve(spec(None, 3, 8, 8))


def test_free_channels_follow_color() -> None:
    free = spec(None, None, None, None)
    assert len(Preprocess(layout="nchw", crop=(4, 4)).resolve(free).mean or ()) == 3
    assert len(RAW.over(Preprocess(layout="nchw", crop=(4, 4), color="gray")).resolve(free).mean or ()) == 1
    assert len(RAW.over(Preprocess(layout="nchw", crop=(4, 4), color="rgba")).resolve(free).mean or ()) == 4


def test_one_value_is_one_for_all_channels_and_arrays_are_values() -> None:
    assert Preprocess(mean=0.5, std=np.array([0.25])) == Preprocess(mean=(0.5,), std=(0.25,))  # type: ignore[arg-type]
