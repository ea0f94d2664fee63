"""Images and arrays on disk become the model's inputs: pixels, geometry, numbers, labels, and what cannot be read."""

from __future__ import annotations

import json
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mrecg_onnx.converters.errors import DataError, MrecgError, SettingsError
from mrecg_onnx.data import InputSpec, Preprocess, open_calibration, open_validation, pad_batch
from mrecg_onnx.data.images import IMAGE_SUFFIXES, _pick, labels_for
from mrecg_onnx.data.preprocess import INTERPOLATIONS, cover
from mrecg_onnx.data.profiles import PROFILES

if TYPE_CHECKING:
    from pathlib import Path

    from mrecg_onnx.data import Dataset

RAW = Preprocess(mean=(0.0,), std=(1.0,), scale=1.0)  # what comes out are the pixels
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def spec(*shape: int | None, dtype: object = np.float32, name: str = "x") -> InputSpec:
    return InputSpec(name, shape, np.dtype(dtype))  # type: ignore[call-overload]


def pixels_of(
    path: Path, *, channels: int = 3, size: tuple[int, int] = (2, 2), preprocess: Preprocess = RAW
) -> np.ndarray:
    """The image at ``path`` as (height, width, channels)."""
    x = open_calibration(path, [spec(None, channels, *size)], preprocess).batch([0])["x"]
    return x[0].transpose(1, 2, 0)


def write(path: Path, color: object = (10, 20, 30), size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)  # type: ignore[arg-type]
    return path


def numbered(folder: Path, count: int) -> list[Path]:
    """Images whose red value is their place in the sorted order."""
    return [write(folder / f"{i:03d}.png", (i, 0, 0)) for i in range(count)]


def first_red(x: np.ndarray) -> list[int]:
    return x[:, 0, 0, 0].astype(int).tolist()


def one_line(error: pytest.ExceptionInfo[MrecgError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- numbers --------------------------------------------------------------------------------------------------------


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
        {"mean": 0.5},
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


# ---- geometry -------------------------------------------------------------------------------------------------------


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def test_image_of_the_models_size_is_used_as_it_is(tmp_path: Path) -> None:
    image = noise(6, 8)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png", size=(6, 8)), image)


def torchvision_resize_and_crop(image: Image.Image, shorter: int, crop: int) -> np.ndarray:
    """``CenterCrop(crop)(Resize(shorter)(image))``: torchvision's formulas for images no smaller than the crop."""
    short, long = sorted(image.size)
    longer = int(shorter * long / short)
    size = (shorter, longer) if image.width <= image.height else (longer, shorter)
    image = image.resize(size, Image.Resampling.BILINEAR)
    top, left = round((image.height - crop) / 2.0), round((image.width - crop) / 2.0)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@pytest.mark.parametrize(("height", "width"), [(60, 47), (47, 60), (33, 33), (20, 31), (32, 40), (100, 37)])
@pytest.mark.parametrize("resize", [None, 32, 35])
def test_other_sizes_follow_torchvision(tmp_path: Path, height: int, width: int, resize: int | None) -> None:
    image = Image.fromarray(noise(height, width))
    image.save(tmp_path / "a.png")
    side = 37 if resize is None else resize  # round(32 / 0.875) = 37
    expected = torchvision_resize_and_crop(image, side, 32)
    got = pixels_of(tmp_path / "a.png", size=(32, 32), preprocess=Preprocess((0.0,), (1.0,), 1.0, resize))
    np.testing.assert_array_equal(got, expected)


def test_both_sides_may_be_said_whatever_the_proportions(tmp_path: Path) -> None:
    image = Image.fromarray(noise(30, 50))
    image.save(tmp_path / "a.png")
    squashed = Preprocess((0.0,), (1.0,), 1.0, resize=(10, 12), crop=(8, 8), interpolation="bicubic")
    expected = image.resize((12, 10), Image.Resampling.BICUBIC).crop((2, 1, 10, 9))
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png", size=(8, 8), preprocess=squashed), np.asarray(expected))


@pytest.mark.parametrize("name", list(INTERPOLATIONS))
def test_filters_are_pillows(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(noise(30, 30))
    image.save(tmp_path / "a.png")
    by = Preprocess((0.0,), (1.0,), 1.0, resize=10, interpolation=name)
    expected = image.resize((10, 10), INTERPOLATIONS[name]).crop((1, 1, 9, 9))
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png", size=(8, 8), preprocess=by), np.asarray(expected))


def test_without_resizing_the_centre_is_cut_and_what_is_missing_is_black(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (9, 9, 9), (2, 6))
    off = Preprocess((0.0,), (1.0,), 1.0, resize="off")
    x = pixels_of(tmp_path / "a.png", size=(4, 4), preprocess=off)[:, :, 0]
    np.testing.assert_array_equal(x, np.tile([0, 9, 9, 0], (4, 1)))


def test_oblong_crop_is_covered_even_where_the_shorter_side_is_too_short(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (9, 9, 9), (20, 20))
    preprocess = Preprocess((0.0,), (1.0,), 1.0, resize=8)
    x = pixels_of(tmp_path / "a.png", size=(8, 16), preprocess=preprocess)
    assert (x == 9).all()  # padding would be black


@given(*[st.integers(1, 400)] * 4)
def test_cover_is_the_smallest_that_covers(width: int, height: int, box_width: int, box_height: int) -> None:
    w, h = cover(width, height, box_width, box_height)
    assert w >= box_width
    assert h >= box_height
    assert w == box_width or h == box_height
    if w == box_width:
        assert h == max(box_height, box_width * height // width)


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


def test_thin_strip_is_named_not_blown_up(tmp_path: Path) -> None:
    Image.new("L", (20000, 1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png \(too long and thin"):
        open_calibration(tmp_path, [spec(None, 3, 224, 224)], Preprocess()).load()


# ---- kinds of image -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".JPG", ".Tiff"])
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a{suffix}", (100, 150, 200), (16, 16))
    x = open_calibration(tmp_path, [spec(None, 3, 16, 16)], RAW).load()["x"]
    np.testing.assert_allclose(x[0, :, 8, 8], [100, 150, 200], atol=4)  # lossy formats


# What a 2x2 image with these corners shows, row by row, in a viewer that honours EXIF tag 274.
CORNERS = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]]
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    corners = np.array(CORNERS, np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(corners).save(tmp_path / f"a{suffix}", exif=exif)
    np.testing.assert_array_equal(pixels_of(tmp_path / f"a{suffix}"), UPRIGHT[orientation](corners))


def test_exif_orientation_comes_before_the_size_is_compared(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    image = noise(4, 6)
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png", size=(6, 4)), np.rot90(image, -1))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str, orientation: int) -> None:
    wide = np.array([[0, 257], [65535, 128 * 257 + 100]], np.uint16)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(wide).save(tmp_path / f"a{suffix}", exif=exif)
    expected = UPRIGHT[orientation](np.array([[[0], [1]], [[255], [128]]]))
    np.testing.assert_array_equal(pixels_of(tmp_path / f"a{suffix}", channels=1), expected)
    np.testing.assert_array_equal(pixels_of(tmp_path / f"a{suffix}"), np.repeat(expected, 3, axis=2))


def test_big_endian_sixteen_bits(tmp_path: Path) -> None:
    wide = np.array([[0, 257], [65535, 514]], ">u2")
    Image.frombytes("I;16B", (2, 2), wide.tobytes()).save(tmp_path / "a.tif")
    assert pixels_of(tmp_path / "a.tif", channels=1)[:, :, 0].tolist() == [[0, 1], [255, 2]]


def test_integer_tiff_is_taken_as_sixteen_bits_or_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257], [65535, 514]], np.int32)).save(tmp_path / "a.tif")
    assert pixels_of(tmp_path / "a.tif", channels=1)[:, :, 0].tolist() == [[0, 1], [255, 2]]
    Image.fromarray(np.array([[0, 257], [65536, 514]], np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match="from 0 to 65536 do not fit 16 bits"):
        pixels_of(tmp_path / "b.tif")


def test_float_tiff_is_refused_with_the_reason(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif \(floating-point pixels have no agreed range"):
        pixels_of(tmp_path / "a.tif")


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)  # no cyan: red
    np.testing.assert_allclose(pixels_of(tmp_path / "a.jpg")[0, 0], RED, atol=3)
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    np.testing.assert_allclose(pixels_of(tmp_path / "a.tif")[0, 0], RED, atol=1)


@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_alpha_is_dropped(tmp_path: Path, alpha: int) -> None:
    Image.new("RGBA", (2, 2), (10, 20, 30, alpha)).save(tmp_path / "a.png")
    assert pixels_of(tmp_path / "a.png")[1, 1].tolist() == [10, 20, 30]
    Image.new("LA", (2, 2), (40, alpha)).save(tmp_path / "b.png")
    assert pixels_of(tmp_path / "b.png")[1, 1].tolist() == [40, 40, 40]
    assert pixels_of(tmp_path / "b.png", channels=1)[1, 1].tolist() == [40]


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80"])
def test_palette_gives_its_colours_without_warnings(tmp_path: Path, transparency: object) -> None:
    image = Image.new("P", (2, 2))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 1, 1, 0])
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = pixels_of(tmp_path / "a.png")
    assert got.tolist() == [[[*RED], [*BLUE]], [[*BLUE], [*RED]]]


def test_grey_and_one_bit_feed_colour_models_and_colour_feeds_grey(tmp_path: Path) -> None:
    Image.new("L", (2, 2), 77).save(tmp_path / "grey.png")
    assert pixels_of(tmp_path / "grey.png")[0, 0].tolist() == [77, 77, 77]
    Image.fromarray(np.array([[True, False], [False, True]])).save(tmp_path / "bits.png")
    assert pixels_of(tmp_path / "bits.png", channels=1)[:, :, 0].tolist() == [[255, 0], [0, 255]]
    write(tmp_path / "colour.png", GREEN, (2, 2))
    assert pixels_of(tmp_path / "colour.png", channels=1)[0, 0].tolist() == [150]  # 0.587 * 255


@pytest.mark.parametrize("suffix", [".gif", ".tiff", ".webp"])
def test_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    frames = [Image.new("RGB", (2, 2), color) for color in (RED, BLUE)]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert pixels_of(path)[0, 0].tolist() == [*RED]  # a .gif named by itself is read, too


# ---- what images cannot feed ----------------------------------------------------------------------------------------


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


def test_images_do_not_feed_two_inputs(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    two = [spec(None, 3, 4, 4, name="left"), spec(None, 3, 4, 4, name="right")]
    with pytest.raises(DataError, match=r"has 2 \('left', 'right'\).*\.npz"):
        open_calibration(tmp_path, two, Preprocess())


# ---- finding and choosing -------------------------------------------------------------------------------------------


def test_folder_is_searched_recursively_sorted_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/10.png", "a/deep/er/1.PNG", "c.png", ".hidden/x.png", "a/._10.png"):
        if "_" in name:
            (tmp_path / name).write_bytes(b"resource fork")
        else:
            write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    data = open_calibration(str(tmp_path), [spec(None, 3, 4, 4)], Preprocess())
    assert data.files is not None
    assert [file.relative_to(tmp_path).as_posix() for file in data.files] == [
        "a/10.png",
        "a/deep/er/1.PNG",
        "b/2.png",
        "c.png",
    ]
    assert len(data.load()["x"]) == 4


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set").mkdir()
    try:
        (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "set" / "loop").symlink_to(tmp_path / "set", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    data = open_calibration(tmp_path / "set", [spec(None, 3, 4, 4)], Preprocess())
    assert data.files == [tmp_path / "set" / "cat" / "1.png"]


def test_nothing_to_read_says_what_was_looked_for(tmp_path: Path) -> None:
    model = [spec(None, 3, 4, 4)]
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    for path, says in (
        ("gone", "no such file or folder: .*gone"),
        ("empty", "empty is empty"),
        ("texts", r"1 other files\): looked for \.jpg \.jpeg \.png \.webp \.bmp \.tif \.tiff \.npy \.npz"),
    ):
        with pytest.raises(DataError, match=says) as error:
            open_calibration(tmp_path / path, model, Preprocess())
        assert one_line(error)
        assert error.value.exit_code == 1


def test_images_and_arrays_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"both images \(1\) and arrays \(1, first b\.npy\)"):
        open_calibration(tmp_path, [spec(None, 3, 4, 4)], Preprocess())


def test_no_inputs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no inputs"):
        open_calibration(tmp_path, [], Preprocess())


def test_samples_are_spread_seeded_and_sorted(tmp_path: Path) -> None:
    numbered(tmp_path, 40)
    model = [spec(None, 3, 4, 4)]

    def chosen(samples: int, seed: int) -> list[int]:
        return first_red(open_calibration(tmp_path, model, RAW, samples=samples, seed=seed).load()["x"])

    assert chosen(8, 0) == chosen(8, 0)
    assert chosen(8, 0) != chosen(8, 1)
    assert [number // 5 for number in chosen(8, 3)] == list(range(8))  # one of each stretch of five
    assert chosen(100, 0) == list(range(40))
    for bad in (0, -1):
        with pytest.raises(SettingsError, match="1 or more"):
            open_calibration(tmp_path, model, RAW, samples=bad)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 5))
def test_pick_draws_distinct_positions_in_order(total: int, samples: int, seed: int) -> None:
    picked = _pick(total, samples, seed)
    assert len(picked) == min(total, samples)
    assert (np.diff(picked) > 0).all()
    assert picked.min() >= 0
    assert picked.max() < total


def test_opening_decodes_nothing(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"junk")
    assert len(open_calibration(tmp_path, [spec(None, 3, 4, 4)], Preprocess())) == 3


def test_batch_batches_and_load_agree(tmp_path: Path) -> None:
    numbered(tmp_path, 10)
    data = open_calibration(tmp_path, [spec(None, 3, 4, 4)], RAW)
    assert len(data) == 10
    assert first_red(data.batch([7, 2, 2])["x"]) == [7, 2, 2]
    assert first_red(data.batch(np.array([0, 9]))["x"]) == [0, 9]
    parts = list(data.batches(4))
    assert [indices.tolist() for _, indices in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    np.testing.assert_array_equal(np.concatenate([x["x"] for x, _ in parts]), data.load()["x"])
    assert first_red(data.load(limit=2)["x"]) == [2, 7]  # spread, not the first two
    assert data.labels is None
    with pytest.raises(IndexError):
        data.batch([10])
    with pytest.raises(SettingsError):
        next(data.batches(0))
    with pytest.raises(SettingsError):
        data.load(limit=0)


# ---- corrupt images -------------------------------------------------------------------------------------------------


def damaged(tmp_path: Path, total: int, bad: list[int]) -> Dataset:
    files = numbered(tmp_path, total)
    for number in bad:
        files[number].write_bytes(files[number].read_bytes()[:40] if number % 2 else b"")
    return open_calibration(tmp_path, [spec(None, 3, 4, 4)], RAW)


def test_two_percent_corrupt_are_skipped_and_named(tmp_path: Path) -> None:
    data = damaged(tmp_path, 100, [10, 33])
    x = data.load()["x"]
    assert first_red(x) == [i for i in range(100) if i not in (10, 33)]
    assert [file.name for file, _ in data.skipped] == ["010.png", "033.png"]
    assert data.skipped[0][1] == "the file is empty"
    assert data.skipped[1][1]
    data.load()
    assert len(data.skipped) == 2  # a second pass counts nothing twice


def test_batches_stay_full_around_corrupt_files(tmp_path: Path) -> None:
    data = damaged(tmp_path, 40, [3, 39])
    parts = list(data.batches(10))
    assert [len(indices) for _, indices in parts] == [10, 10, 10, 8]
    assert parts[0][1].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    for x, indices in parts:
        assert first_red(x["x"]) == indices.tolist()


def test_twenty_percent_corrupt_are_an_error_naming_the_first(tmp_path: Path) -> None:
    data = damaged(tmp_path, 50, list(range(0, 50, 5)))
    with pytest.raises(DataError, match=r"more than 5% of 50 images cannot be read \(3 so far\): .*000\.png") as error:
        data.load()
    assert "010.png" in one_line(error)
    with pytest.raises(DataError, match="more than 5%"):
        list(damaged(tmp_path, 50, list(range(0, 50, 5))).batches(8))


def test_exactly_five_percent_are_still_skipped(tmp_path: Path) -> None:
    assert len(damaged(tmp_path, 20, [19]).load()["x"]) == 19


def test_batch_skips_nothing(tmp_path: Path) -> None:
    data = damaged(tmp_path, 40, [4])
    for _ in range(2):  # found just now, and known already
        with pytest.raises(DataError, match=r"cannot read .*004\.png \(the file is empty\)"):
            data.batch([3, 4])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_give_a_reason_whatever_the_format(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise(40, 40)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match="cannot read") as error:
        open_calibration(path, [spec(None, 3, 40, 40)], Preprocess()).load()
    assert path.name in one_line(error)


def test_single_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"nope")
    with pytest.raises(DataError, match=r"cannot read .*a\.onnx \(not an image \(JPEG, PNG, WEBP, BMP, TIFF, GIF\)\)"):
        open_calibration(tmp_path / "a.onnx", [spec(None, 3, 4, 4)], Preprocess()).load()


def test_unreachable_sample_of_a_large_set(tmp_path: Path) -> None:
    data = damaged(tmp_path, 40, [20])
    with pytest.raises(DataError, match="none of the 1 files"):
        data.load(limit=1)


# ---- arrays ---------------------------------------------------------------------------------------------------------


def rows(count: int, start: int = 0) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + count, dtype=np.float32)[:, None, None, None], (count, 3, 4, 4))


@pytest.mark.parametrize("name", [None, "x", "images"])
def test_one_array_feeds_one_input_as_it_is(tmp_path: Path, name: str | None) -> None:
    if name is None:
        np.save(tmp_path / "a.npy", rows(5))
        path = tmp_path / "a.npy"
    else:
        path = tmp_path / "a.npz"
        np.savez(path, **{name: rows(5)})
    data = open_calibration(path, [spec(None, 3, 4, 4)], Preprocess())
    np.testing.assert_array_equal(data.load()["x"], rows(5))
    assert (len(data), data.files, data.preprocess, data.labels, data.skipped) == (5, None, None, None, [])
    assert first_red(data.batch([4, 1])["x"]) == [4, 1]


def test_unnamed_array_in_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", rows(2))
    assert len(open_calibration(tmp_path / "a.npz", [spec(None, 3, 4, 4)], Preprocess())) == 2


def test_npz_feeds_several_inputs_by_name(tmp_path: Path) -> None:
    ids = np.arange(6, dtype=np.int32).reshape(3, 2)
    np.savez_compressed(tmp_path / "a.npz", image=rows(3).astype(np.float64), ids=ids, spare=np.zeros(1))
    two = [spec(None, 3, 4, 4, name="image"), spec(None, None, dtype=np.int64, name="ids")]
    loaded = open_calibration(tmp_path / "a.npz", two, Preprocess()).load()
    assert {name: array.dtype for name, array in loaded.items()} == {"image": np.float32, "ids": np.int64}
    np.testing.assert_array_equal(loaded["ids"], ids)
    with pytest.raises(DataError, match=r"no array for input 'mask' in .*a\.npz: it holds image, ids, spare"):
        open_calibration(tmp_path / "a.npz", [*two, spec(None, 1, name="mask")], Preprocess())
    np.save(tmp_path / "b.npy", rows(3))
    with pytest.raises(DataError, match=r"the model has 2 inputs \('image', 'ids'\): give an \.npz"):
        open_calibration(tmp_path / "b.npy", two, Preprocess())


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_folder_of_arrays_is_one_long_batch(tmp_path: Path, suffix: str) -> None:
    for number, (count, start) in enumerate([(4, 0), (1, 4), (7, 5)]):
        path = tmp_path / f"{number}{suffix}"
        np.save(path, rows(count, start)) if suffix == ".npy" else np.savez(path, x=rows(count, start))
    data = open_calibration(tmp_path, [spec(None, 3, 4, 4)], Preprocess())
    assert first_red(data.load()["x"]) == list(range(12))
    assert first_red(data.batch([11, 0, 4, 5, 0])["x"]) == [11, 0, 4, 5, 0]
    assert [indices.tolist() for _, indices in data.batches(5)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    few = open_calibration(tmp_path, [spec(None, 3, 4, 4)], Preprocess(), samples=4)
    assert [number // 3 for number in first_red(few.load()["x"])] == [0, 1, 2, 3]


def test_array_of_another_shape_shows_both(tmp_path: Path) -> None:
    for shape in ((2, 3, 5, 4), (3, 4, 4), ()):
        np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
        with pytest.raises(DataError, match=r"a\.npy does not fit input 'x' \(\?, 3, 4, 4\) float32") as error:
            open_calibration(tmp_path / "a.npy", [spec(None, 3, 4, 4)], Preprocess())
        assert f"({', '.join(map(str, shape))})" in one_line(error)


def test_arrays_that_do_not_join(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4, 4), np.float32))
    np.save(tmp_path / "b.npy", np.zeros((2, 3, 4, 5), np.float32))
    with pytest.raises(DataError, match=r"differ: \(2, 3, 4, 5\) in .*b\.npy, \(2, 3, 4, 4\) in .*a\.npy"):
        open_calibration(tmp_path, [spec(None, 3, None, None)], Preprocess())
    np.savez(tmp_path / "c.npz", x=rows(2), y=np.zeros((3, 1), np.float32))
    with pytest.raises(DataError, match="different numbers of rows: 'x' 2, 'y' 3"):
        open_calibration(tmp_path / "c.npz", [spec(None, 3, 4, 4), spec(None, 1, name="y")], Preprocess())


@pytest.mark.parametrize(
    ("have", "model", "fits"),
    [
        (np.float64, np.float32, True),
        (np.float32, np.float16, True),
        (np.uint8, np.uint8, True),
        (np.int32, np.int64, True),
        (np.uint8, np.float32, False),  # raw pixels where normalized input is expected
        (np.float32, np.uint8, False),
        (np.int64, bool, False),
    ],
)
def test_arrays_must_be_of_the_inputs_kind(tmp_path: Path, have: type, model: type, fits: bool) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3, 4, 4), have))
    inputs = [spec(None, 3, 4, 4, dtype=model)]
    if fits:
        assert open_calibration(tmp_path, inputs, Preprocess()).load()["x"].dtype == model
    else:
        with pytest.raises(DataError, match=f"holds {np.dtype(have)}"):
            open_calibration(tmp_path, inputs, Preprocess())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float, suffix: str) -> None:
    array = np.zeros((4, 3, 4, 4))
    array[2, 1, 0, 3] = value
    path = tmp_path / f"a{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, x=array)
    data = open_calibration(path, [spec(None, 3, 4, 4)], Preprocess())
    with pytest.raises(DataError, match=rf"NaN, Inf .* in row 2 for input 'x' in .*a\{suffix}"):
        data.load()
    with pytest.raises(DataError, match="row 2"):
        data.batch([3, 2])
    data.batch([3, 1])


def test_integers_out_of_range_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1], [300]]))
    with pytest.raises(DataError, match="out of the range of uint8 in row 1"):
        open_calibration(tmp_path, [spec(None, 1, dtype=np.uint8)], Preprocess()).load()


def test_unreadable_arrays(tmp_path: Path) -> None:
    model = [spec(None, 3, 4, 4)]
    np.save(tmp_path / "object.npy", np.array([None, {}], object), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.zeros((4, 3, 4, 4), np.float32))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:200])
    np.savez(tmp_path / "cut.npz", x=rows(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:200])
    np.savez(tmp_path / "flipped.npz", x=rows(3))
    raw = bytearray((tmp_path / "flipped.npz").read_bytes())
    raw[300] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(raw)
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npz").write_text("hello")
    for name in ("object.npy", "cut.npy", "cut.npz", "flipped.npz", "empty.npy", "text.npz"):
        with pytest.raises(DataError, match=f"cannot read .*{name}: ") as error:
            open_calibration(tmp_path / name, model, Preprocess())
        assert one_line(error)
    np.save(tmp_path / "none.npy", np.zeros((0, 3, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"\(0, 3, 4, 4\) .* is empty"):
        open_calibration(tmp_path / "none.npy", model, Preprocess())


def test_pad_batch_repeats_the_last_row() -> None:
    assert pad_batch(np.array([[1], [2]]), 4).tolist() == [[1], [2], [2], [2]]
    assert pad_batch(np.array([1, 2]), 2).tolist() == [1, 2]
    for rows_, size in ((3, 2), (0, 2)):
        with pytest.raises(ValueError, match="cannot pad"):
            pad_batch(np.zeros(rows_), size)


# ---- labels ---------------------------------------------------------------------------------------------------------


def labels_of(root: Path, *names: str, csv: Path | None = None) -> list[int] | None:
    labels = labels_for([root / name for name in names], root, csv)
    assert labels is None or labels.dtype == np.int64
    return None if labels is None else labels.tolist()


def test_numeric_folders_are_the_class_index(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "0012/a.png", "7/b.png", "7/more/c.png", "430/d.png") == [12, 7, 7, 430]


def test_named_folders_are_sorted_and_numbered_counting_empty_ones(tmp_path: Path) -> None:
    for name in ("ape", "bee", "cat", "3", ".git"):
        (tmp_path / name).mkdir()
    assert labels_of(tmp_path, "cat/a.png", "ape/b.png", "cat/c/d.png", "3/e.png") == [3, 1, 3, 0]


def test_images_without_folders_have_no_labels(tmp_path: Path) -> None:
    assert labels_of(tmp_path, "a.png", "b.png") is None
    with pytest.raises(DataError, match=r"1 of 2 images lie in .* \(first a\.png\).*--labels"):
        labels_of(tmp_path, "a.png", "cat/b.png")


def test_folder_number_beyond_int64(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class index"):
        labels_of(tmp_path, f"{10**20}/a.png")


@pytest.mark.parametrize(
    "text",
    [
        "a.png,5\nd/b.png,6\n",
        "file,label\na.png,5\nd/b.png,6\n",
        "Label, File\n5, a.png\n6, d/b.png\n",
        "\ufeffname,class\r\na.png,5\r\n\r\nd\\b.png,6\r\n",
        "b.png,6,extra\n./a.png,5\nelsewhere.png,7\na.png,5\n",
    ],
)
def test_labels_from_csv(tmp_path: Path, text: str) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text(text, encoding="utf-8")
    assert labels_of(tmp_path, "a.png", "d/b.png", csv=csv) == [5, 6]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.png,5\n", r"no label for d/b\.png in .*labels\.csv"),
        ("", r"no label for a\.png"),
        ("a.png,5\nd/b.png,cat\n", r"line 2: expected file,label with an integer label, got 'd/b\.png,cat'"),
        ("a.png,5\nd/b.png,-1\n", "line 2"),
        ("a.png,5\nd/b.png\n", "line 2"),
        ("a.png,5\na.png,6\n", r"line 2: two labels for a\.png: 5 and 6"),
    ],
)
def test_bad_labels_csv_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text(text)
    with pytest.raises(DataError, match=says) as error:
        labels_of(tmp_path, "a.png", "d/b.png", csv=csv)
    assert one_line(error)


def test_unreadable_labels_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read labels .*gone\.csv: No such file"):
        labels_of(tmp_path, "a.png", csv=tmp_path / "gone.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x81,1\n")
    with pytest.raises(DataError, match=r"cannot read labels .*bytes\.csv: not a CSV"):
        labels_of(tmp_path, "a.png", csv=tmp_path / "bytes.csv")


def test_bare_name_that_two_images_share(tmp_path: Path) -> None:
    csv = tmp_path / "labels.csv"
    csv.write_text("a.png,1\n")
    with pytest.raises(DataError, match="a name 2 images share"):
        labels_of(tmp_path, "x/a.png", "y/a.png", csv=csv)


def test_validation_labels_stay_with_their_images(tmp_path: Path) -> None:
    """Red is the place in the sorted order, ten to a class; one file is corrupt; a subset numbers classes the same."""
    root = tmp_path / "val"
    for number in range(40):
        write(root / "abcd"[number // 10] / f"{number:02d}.png", (number, 0, 0))
    (root / "b" / "13.png").write_bytes(b"broken")
    model = [spec(None, 3, 4, 4)]
    data = open_validation(root, model, RAW)
    assert data.labels is not None
    seen = []
    for x, indices in data.batches(16):
        assert [red // 10 for red in first_red(x["x"])] == data.labels[indices].tolist()
        seen += indices.tolist()
    assert len(seen) == 39
    few = open_validation(root, model, RAW, limit=2)
    assert few.labels is not None
    assert few.files is not None
    assert few.labels.tolist() == ["abcd".index(file.parent.name) for file in few.files]
    assert few.files == open_validation(root, model, RAW, limit=2).files


def test_validation_with_csv_and_without_any_labels(tmp_path: Path) -> None:
    numbered(tmp_path, 3)
    (tmp_path / "labels.csv").write_text("000.png,9\n001.png,8\n002.png,7\n")
    model = [spec(None, 3, 4, 4)]
    assert open_validation(tmp_path, model, RAW).labels is None
    labelled = open_validation(tmp_path, model, RAW, labels=tmp_path / "labels.csv")
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [9, 8, 7]
    single = open_validation(tmp_path / "001.png", model, RAW, labels=tmp_path / "labels.csv")
    assert single.labels is not None
    assert single.labels.tolist() == [8]


def test_arrays_validate_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", rows(6))
    data = open_validation(tmp_path / "a.npy", [spec(None, 3, 4, 4)], Preprocess(), limit=3)
    assert (len(data), data.labels) == (3, None)


# ---- labels of arrays -----------------------------------------------------------------------------------------------


def labels_in(path: Path, labels: object = None, **options: object) -> list[int] | None:
    data = open_validation(path, [spec(None, 3, 4, 4)], Preprocess(), labels, **options)  # type: ignore[arg-type]
    assert data.labels is None or (data.labels.dtype == np.int64 and len(data.labels) == len(data))
    return None if data.labels is None else data.labels.tolist()


@pytest.mark.parametrize("name", ["y", "labels", "label"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_labels_beside_the_inputs(tmp_path: Path, name: str, dtype: type) -> None:
    classes = np.array([3, 1, 4, 1, 5], dtype)
    np.savez(tmp_path / "a.npz", images=rows(5), **{name: classes})
    assert labels_in(tmp_path / "a.npz") == [3, 1, 4, 1, 5]
    assert labels_in(tmp_path / "a.npz", limit=2) is not None
    assert labels_in(tmp_path / "a.npz", "none") is None
    np.savez(tmp_path / "a.npz", images=rows(5), **{name: classes[:, None]})
    assert labels_in(tmp_path / "a.npz") == [3, 1, 4, 1, 5]
    calibration = open_calibration(tmp_path / "a.npz", [spec(None, 3, 4, 4)], Preprocess())
    assert (len(calibration), calibration.labels) == (5, None)


def test_an_input_called_y_is_no_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", y=rows(5))
    assert labels_in(tmp_path / "a.npz") is None
    np.savez(tmp_path / "b.npz", y=rows(2), labels=np.array([7, 8]))
    data = open_validation(tmp_path / "b.npz", [spec(None, 3, 4, 4, name="y")], Preprocess())
    assert data.labels is not None
    assert data.labels.tolist() == [7, 8]


def test_labels_of_rows_stay_with_their_rows(tmp_path: Path) -> None:
    """Every value of a row is its place, and so is its label, over files, subsets and shares."""
    for number, (count, start) in enumerate([(4, 0), (1, 4), (7, 5)]):
        np.savez(tmp_path / f"{number}.npz", x=rows(count, start), y=np.arange(start, start + count))
    np.save(tmp_path.parent / "all.npy", np.arange(12, dtype=np.int32)[::-1])
    for file, sign in ((None, 1), (tmp_path.parent / "all.npy", -1)):
        for limit in (None, 5):
            data = open_validation(tmp_path, [spec(None, 3, 4, 4)], Preprocess(), file, limit)
            parts = [data, data.shard(0, 2), data.shard(1, 2)]
            for part in parts:
                assert part.labels is not None
                places = [int(red) if sign == 1 else 11 - int(red) for red in first_red(part.load()["x"])]
                assert part.labels.tolist() == places
    np.savez(tmp_path / "3.npz", x=rows(2))
    with pytest.raises(DataError, match=r"'y' in .*0\.npz are labels, and .*3\.npz has none"):
        labels_in(tmp_path)
    assert labels_in(tmp_path, "none") is None


def test_labels_of_their_own_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(3))
    np.save(tmp_path / "y.npy", np.array([2, 0, 1]))
    np.savez(tmp_path / "one.npz", whatever=np.array([2, 0, 1]))
    np.savez(tmp_path / "more.npz", other=np.zeros(3), labels=np.array([2, 0, 1]))
    for name in ("y.npy", "one.npz", "more.npz"):
        assert labels_in(tmp_path / "x.npy", tmp_path / name) == [2, 0, 1]
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(DataError, match=r"two\.npz holds a, b: call the labels y"):
        labels_in(tmp_path / "x.npy", tmp_path / "two.npz")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.zeros(3), r"are float64 \(3\): one whole number a row is expected"),
        (np.eye(3, dtype=np.int64), r"are int64 \(3, 3\)"),
        (np.zeros(3, bool), r"are bool \(3\)"),
        (np.array(["a", "b", "c"]), r"are <U1 \(3\)"),
        (np.array([0, 1]), "are 2 for 3 rows"),
        (np.array([0, -1, 2]), "label -1 .* is no class"),
        (np.array([0, 1, 2**63], np.uint64), "label 9223372036854775808 .* is no class index"),
        (np.array([{}, {}, {}]), "cannot read labels"),
    ],
)
def test_arrays_that_are_no_labels_are_named(tmp_path: Path, values: np.ndarray, says: str) -> None:
    np.savez(tmp_path / "a.npz", x=rows(3), y=values)
    np.save(tmp_path / "y.npy", values)
    np.save(tmp_path / "x.npy", rows(3))
    for path, file in ((tmp_path / "a.npz", None), (tmp_path / "x.npy", tmp_path / "y.npy")):
        with pytest.raises(DataError, match=says) as error:
            labels_in(path, file)
        assert str(file or path) in one_line(error)


def test_labels_of_images_and_of_arrays_are_not_confused(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.png")
    np.save(tmp_path / "x.npy", rows(1))
    np.save(tmp_path / "y.npy", np.array([0]))
    with pytest.raises(DataError, match=r"y\.npy labels rows of arrays, .* holds images: give a CSV"):
        labels_in(tmp_path / "images", tmp_path / "y.npy")
    with pytest.raises(DataError, match=r"no file names for .*l\.csv to label: give the labels as \.npy"):
        labels_in(tmp_path / "x.npy", tmp_path / "l.csv")
    with pytest.raises(DataError, match=r"cannot read labels .*gone\.npy: No such file"):
        labels_in(tmp_path / "x.npy", tmp_path / "gone.npy")


def test_none_leaves_folders_unread(tmp_path: Path) -> None:
    write(tmp_path / "2023" / "a.png")
    write(tmp_path / "b.png")
    assert labels_in(tmp_path, "none") is None
