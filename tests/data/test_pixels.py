"""Image files of every kind become pixels of the model's size, or say why they do not."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.images import BLUE, GREEN, RAW, RED, noise, one_line, pixels_of, spec, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import INTERPOLATIONS, Preprocess, open_calibration
from mrecg_onnx.data.folders import IMAGE_SUFFIXES
from mrecg_onnx.data.pixels import cover, fit

if TYPE_CHECKING:
    from pathlib import Path


def test_image_of_the_models_size_is_used_as_it_is(tmp_path: Path) -> None:
    image = noise(6, 8)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png", size=(6, 8)), image)


@pytest.fixture(scope="module")
def torchvision() -> Any:
    """torchvision's transforms; of another build than torch it does not load."""
    try:
        return importlib.import_module("torchvision.transforms.v2")
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchvision does not load beside this torch: {str(error).splitlines()[0]}")


SIZES = [(60, 47), (47, 60), (33, 33), (20, 31), (32, 40), (100, 37), (31, 200), (9, 10)]


@pytest.mark.parametrize("interpolation", list(INTERPOLATIONS))
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_pixels_are_torchvisions(torchvision: Any, mode: str, interpolation: str) -> None:
    """``Resize`` and ``CenterCrop`` on images of Pillow, bit for bit."""
    by = torchvision.InterpolationMode[interpolation.upper()]
    colours = {"RGB": "rgb", "L": "gray", "RGBA": "rgba"}[mode]
    for height, width in SIZES:
        image = Image.fromarray(noise(height, width)).convert(mode)
        for resize in (32, 35, (36, 50), (32, 45), (32, 32)):
            shorter = list(resize) if isinstance(resize, tuple) else resize
            expected = torchvision.CenterCrop(32)(torchvision.Resize(shorter, by)(image))
            asked = Preprocess(resize=resize, crop=(32, 32), interpolation=interpolation, color=colours)
            np.testing.assert_array_equal(np.asarray(fit(image, asked)), np.asarray(expected), f"{image.size} {resize}")


@pytest.mark.parametrize("crop", [(32, 32), (24, 41), (50, 60)])
def test_without_resizing_pixels_are_those_of_torchvisions_centre_crop(torchvision: Any, crop: tuple[int, int]) -> None:
    for height, width in SIZES:
        image = Image.fromarray(noise(height, width))
        expected = torchvision.CenterCrop(crop)(image)
        asked = Preprocess(resize="off", crop=crop)
        np.testing.assert_array_equal(np.asarray(fit(image, asked)), np.asarray(expected), f"{image.size}")


@pytest.mark.parametrize(
    ("side", "crop", "before"), [(9, 4, 2), (7, 4, 2), (5, 5, 0), (1, 2, 0), (1, 4, -1), (3, 8, -2), (1, 8, -3)]
)
def test_what_is_missing_is_black_in_front_and_one_more_behind(side: int, crop: int, before: int) -> None:
    """Of an odd number of rows or columns that are missing, one more lies behind, as in torchvision's CenterCrop."""
    image = Image.new("L", (side, 1), 9)
    row = np.asarray(fit(image, Preprocess(resize="off", crop=(1, crop))))[0]
    expected = [9 if 0 <= i + before < side else 0 for i in range(crop)]
    assert row.tolist() == expected


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


def test_thin_strip_is_named_not_blown_up(tmp_path: Path) -> None:
    Image.new("L", (20000, 1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png \(too long and thin"):
        open_calibration(tmp_path, [spec(None, 3, 224, 224)], Preprocess()).load()


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
