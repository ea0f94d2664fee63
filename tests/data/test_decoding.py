"""Large images: what decoding takes is known from the header, stays within its room, and is done once."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.images import RAW, noise, one_line, pixels_of, spec, write
from PIL import Image, ImageOps

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.data import Preprocess, decoding, images, kept_pixels, open_calibration, pixels
from mrecg_onnx.data.decoding import Room, decoding_bytes
from mrecg_onnx.data.kept_pixels import KeptPixels

TO_32 = Preprocess((0.0,), (1.0,), 1.0, 32)


def saved(
    folder: Path, mode: str, suffix: str, orientation: int | None = None, size: tuple[int, int] = (70, 50)
) -> Path:
    """An image of noise of height and width ``size``."""
    image, exif = Image.fromarray(noise(*size)), Image.Exif()
    if orientation is not None:
        exif[decoding.ORIENTATION] = orientation
    made = (
        Image.fromarray(np.asarray(image)[:, :, 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    )
    path = folder / f"{mode.replace(';', '')}{suffix}"
    made.save(path, exif=exif)
    return path


def as_pillow_does(path: Path) -> np.ndarray:
    """Transposed, in 8 bits, of three channels, resized and cropped, one call of Pillow's after the other on a copy each."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) // 257).astype(np.uint8))
    image = image.convert("RGB")
    size = pixels.cover(image.width, image.height, 32, 32)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((image.width - 32) / 2), round((image.height - 32) / 2)
    return np.asarray(image.crop((left, top, left + 32, top + 32)))


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, ".png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        ("RGB", ".jpg"),
        ("L", ".jpg"),
        ("CMYK", ".jpg"),
    ],
)
def test_fewer_copies_make_the_same_pixels(tmp_path: Path, mode: str, suffix: str, orientation: int | None) -> None:
    path = saved(tmp_path, mode, suffix, orientation)
    np.testing.assert_array_equal(pixels_of(path, size=(32, 32), preprocess=TO_32), as_pillow_does(path))


def test_bands_of_sixteen_bits_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "BAND_PIXELS", 130)  # two and a half rows
    path = saved(tmp_path, "I;16", ".png")
    np.testing.assert_array_equal(pixels_of(path, size=(32, 32), preprocess=TO_32), as_pillow_does(path))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_huge_jpeg_is_decoded_at_a_part_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    """At twice the size wanted or more, which changes it by little; smaller ones keep every bit."""
    wave = np.sin(np.arange(900) / 60)
    image = Image.fromarray(((np.add.outer(wave[:700], wave) + 2) * 63).astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    whole = pixels_of(tmp_path / "a.jpg", size=(32, 32), preprocess=TO_32)
    np.testing.assert_array_equal(whole, as_pillow_does(tmp_path / "a.jpg"))
    decoded = []
    monkeypatch.setattr(pixels, "DRAFTED_PIXELS", 700 * 900 - 1)
    monkeypatch.setattr(pixels, "decoding_bytes", lambda image, **_: decoded.append(image.size) or 0)
    drafted = pixels_of(tmp_path / "a.jpg", size=(32, 32), preprocess=TO_32)
    assert decoded == [(113, 88)]  # an eighth: 64 pixels of the shorter side are wanted
    assert 0 < np.abs(drafted - whole).max() < 8
    decoded.clear()
    pixels_of(tmp_path / "a.jpg", size=(32, 32), preprocess=Preprocess((0.0,), (1.0,), 1.0, "off"))
    assert decoded == [(900, 700)]  # pixels are cut out as they are


@pytest.mark.parametrize(
    ("mode", "suffix", "orientation", "bytes_a_pixel"),
    [
        ("L", ".png", None, 1),
        ("RGB", ".png", None, 4),
        ("RGB", ".png", 6, 8),
        ("RGBA", ".png", None, 8),
        ("P", ".png", None, 5),
        ("I;16", ".png", None, 4),
        ("RGB", ".bmp", None, 4),
        ("RGB", ".webp", None, 16),
    ],
)  # measured at 36 million pixels: benchmarks/memory_limits.py
def test_headers_say_what_decoding_takes(
    tmp_path: Path, mode: str, suffix: str, orientation: int | None, bytes_a_pixel: int
) -> None:
    path = saved(tmp_path, mode, suffix, orientation)
    with Image.open(path) as opened:
        assert (decoding_bytes(opened) - decoding_bytes(Image.new("L", (0, 0)))) / (70 * 50) == bytes_a_pixel


def test_a_progressive_jpeg_keeps_its_coefficients(tmp_path: Path) -> None:
    for progressive in (False, True):
        Image.fromarray(noise(70, 50)).save(tmp_path / f"{progressive}.jpg", progressive=progressive)
    with Image.open(tmp_path / "False.jpg") as plain, Image.open(tmp_path / "True.jpg") as kept:
        assert decoding_bytes(kept, full=(100, 70)) - decoding_bytes(plain) == 100 * 70 * 6


def test_what_a_strip_is_resized_to_counts(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1000)).save(tmp_path / "a.png")
    needed, _ = pixels.needed_bytes(tmp_path / "a.png", TO_32.resolve(spec(None, 3, 32, 32)))
    assert needed > 4 * 32 * 32_000


def test_more_pixels_than_pillow_decodes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000_000)
    Image.new("1", (11_000, 11_000)).save(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"a\.png \(121,000,000 pixels, more than the .* that are decoded: make it"
    ) as error:
        pixels_of(tmp_path / "a.png")
    one_line(error)


def test_what_the_largest_image_takes_is_known_before_any_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.png", size=(10, 10))
    write(tmp_path / "b.png", size=(200, 100))
    (tmp_path / "c.png").write_bytes(b"no image")
    data = open_calibration(tmp_path, [spec(None, 3, 4, 4)], RAW)
    monkeypatch.setattr(images, "read_pixels", None)
    needed, name = data.decode_within(1 << 30)
    assert needed == decoding_bytes(Image.new("RGB", (200, 100)), resized=(10, 5))
    assert name.endswith("b.png of 200x100 pixels")


def test_images_that_do_not_fit_together_wait_for_each_other() -> None:
    room, together, most = Room(10), [0], [0]
    lock = threading.Lock()

    def decode(size: int) -> None:
        with room.take(size):
            with lock:
                together[0] += size
                most[0] = max(most[0], together[0])
            time.sleep(0.02)
            with lock:
                together[0] -= size

    threads = [threading.Thread(target=decode, args=(size,)) for size in (4, 4, 4, 50, 4, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most[0] == 50  # alone, what is larger than the room
    assert together == [0]


def test_room_is_given_back_by_what_fails(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(saved(tmp_path, "RGB", ".png").read_bytes()[:200])
    room = Room(1)
    for _ in range(2):
        with pytest.raises(pixels.UnreadableError):
            pixels.read_pixels(tmp_path / "cut.png", RAW.resolve(spec(None, 3, 4, 4)), room)
    with room.take(1):
        pass


def test_calibration_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        Image.fromarray(noise(20, 20 + number)).save(tmp_path / f"{number}.png")
    (tmp_path / "none.png").mkdir()
    decoded: list[str] = []
    plain = pixels.read_pixels
    monkeypatch.setattr(images, "read_pixels", lambda path, *rest: decoded.append(path.name) or plain(path, *rest))
    data = open_calibration(tmp_path, [spec(None, 3, 4, 4)], RAW)
    whole = data.load()["x"]
    assert sorted(decoded) == [f"{number}.png" for number in range(6)]
    np.testing.assert_array_equal(data.load()["x"], whole)
    np.testing.assert_array_equal(data.shard(1, 2).load()["x"], whole[1::2])
    np.testing.assert_array_equal(next(iter(data.spread(2, 2)))["x"], whole[[1, 4]])
    assert len(decoded) == 6


def test_images_are_decoded_again_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    write(tmp_path / "a.png", (1, 2, 3))
    monkeypatch.setattr(kept_pixels.tempfile, "TemporaryFile", full)
    data = open_calibration(tmp_path, [spec(None, 3, 4, 4)], RAW)
    np.testing.assert_array_equal(data.load()["x"], data.load()["x"])


def test_no_more_is_kept_than_the_file_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_pixels, "MOST", 30)
    kept, some = KeptPixels(), np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    for name in "abc":
        kept.put(Path(name), some)
    np.testing.assert_array_equal(kept.get(Path("b")), some)
    assert kept.get(Path("c")) is None


def test_memory_that_is_short_is_said_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    write(tmp_path / "a.png")
    monkeypatch.setattr(images, "read_pixels", short)
    with pytest.raises(DataError, match=r"a\.png: memory does not hold the image while it is decoded: make it smaller"):
        pixels_of(tmp_path / "a.png")


@pytest.mark.parametrize("where", ["good", "bad"])
def test_names_that_are_not_utf8_are_files_like_others(tmp_path: Path, where: str) -> None:
    for number in range(40):
        write(tmp_path / f"{number}.png")
    odd = Path(str(tmp_path), b"\xff\x1b[31m.png".decode("utf-8", "surrogateescape"))
    if where == "good":
        write(odd)
    else:
        odd.write_bytes(b"no image")
    data = open_calibration(tmp_path, [spec(None, 3, 4, 4)], RAW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load()
        assert len(data.fingerprint()) == 64
    assert [path for path, _ in data.skipped] == ([] if where == "good" else [odd])
