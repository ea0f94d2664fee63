"""Image files that are hostile, or only large or rare: read as they are, skipped with a reason, or refused in one line."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.hostile import Arguments, Case, Hostile, float_model, rows
from PIL import Image, PngImagePlugin

QUANTIZE = "quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--threads", "1"
WRITTEN = "model_nearest_w4a4.*"
SIZE = 40, 30


def picture(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    found = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(found[:, :, 0].astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(found[:, :, 0].astype(np.float32))
    return Image.fromarray(found).convert(mode)


def encoded(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = SIZE, **options: object) -> bytes:
    written = io.BytesIO()
    picture(mode, size).save(written, kind, **options)
    return written.getvalue()


def made(name: str | bytes, content: Callable[[], bytes], good: int = 0) -> Callable[[Path], Arguments]:
    """A model and a folder with one image ``name``, and ``good`` others."""

    def make(folder: Path) -> Arguments:
        (folder / "model.onnx").write_bytes(float_model())
        images = folder / "images"
        images.mkdir()
        for number in range(good):
            (images / f"good{number:03}.png").write_bytes(encoded())
        (images / os.fsdecode(name)).write_bytes(content())
        return QUANTIZE

    return make


def bad(title: str, name: str | bytes, content: Callable[[], bytes], *says: str, **more: object) -> Case:
    return Case(title, made(name, content), says=("cannot read", *says), **more)  # type: ignore[arg-type]


def good(title: str, name: str | bytes, content: Callable[[], bytes], **more: object) -> Case:
    return Case(title, made(name, content, good=3), code=0, lines=("",), writes=(WRITTEN,), **more)  # type: ignore[arg-type]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, *, before: bytes = b"", depth: int = 8, colour: int = 2, data: bytes | None = None
) -> bytes:
    """A PNG whose header says so; ``before`` are chunks in front of its pixels."""
    packed = zlib.compress(data if data is not None else bytes((width * 3 + 1) * height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def text_bomb(kind: str) -> bytes:
    """100 MB of text in a chunk of 100 KB."""
    text = zlib.compress(bytes(100 * 2**20), 9)
    content = {"zTXt": b"Comment\0\0" + text, "iTXt": b"Comment\0\1\0\0\0" + text, "iCCP": b"profile\0\0" + text}
    return png(*SIZE, before=chunk(kind.encode(), content[kind]))


def many_texts() -> bytes:
    """100 MB in texts of a MB each."""
    text = zlib.compress(b"a" * (2**20 - 10), 9)
    return png(*SIZE, before=b"".join(chunk(b"zTXt", b"Comment%d\0\0" % i + text) for i in range(100)))


def exif(orientation: object = 6, *, raw: bytes | None = None) -> dict[str, object]:
    if raw is not None:
        return {"exif": raw}
    tags = Image.Exif()
    tags[0x0112] = orientation
    return {"exif": tags}


def tiff_of_strange_tags() -> bytes:
    """A directory of itself, and sizes of 4 GB."""
    entries = [(256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1), (273, 4, 2**30, 8), (330, 4, 1, 8)]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + struct.pack("<I", 8)


def apng() -> bytes:
    written = io.BytesIO()
    picture().save(written, "PNG", save_all=True, append_images=[picture(size=SIZE)] * 50)
    return written.getvalue()


def frames(kind: str, count: int = 50) -> bytes:
    written = io.BytesIO()
    many = [Image.fromarray(np.full((30, 40, 3), number, np.uint8)) for number in range(count)]
    many[0].save(written, kind, save_all=True, append_images=many[1:])
    return written.getvalue()


def with_text() -> bytes:
    written, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("Software", "\x1b[31m red \x1b[0m\nand more", zip=True)
    picture().save(written, "PNG", pnginfo=info)
    return written.getvalue()


def huge(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel, all white."""
    written = io.BytesIO()
    Image.new("1", (width, height), 1).save(written, "PNG")
    return written.getvalue()


READ = [
    good("a JPEG turned by EXIF", "a.jpg", lambda: encoded("JPEG", **exif(6))),
    good("a progressive JPEG", "a.jpg", lambda: encoded("JPEG", progressive=True)),
    good("a JPEG of four inks", "a.jpg", lambda: encoded("JPEG", "CMYK")),
    good("EXIF that says an orientation of 99", "a.jpg", lambda: encoded("JPEG", **exif(99))),
    good("EXIF that is none", "a.jpg", lambda: encoded("JPEG", **exif(raw=b"Exif\0\0" + bytes(range(200))))),
    good("a colour profile that is none", "a.jpg", lambda: encoded("JPEG", icc_profile=bytes(range(256)) * 40)),
    good("a PNG of 16 bits", "a.png", lambda: encoded("PNG", "I;16")),
    good("a PNG with a palette", "a.png", lambda: encoded("PNG", "P")),
    good("a PNG with alpha", "a.png", lambda: encoded("PNG", "RGBA")),
    good("a PNG of one bit", "a.png", lambda: encoded("PNG", "1")),
    good("a PNG with control characters in its text", "a.png", with_text),
    good("an animated PNG", "a.png", apng),
    good("an animated WebP", "a.webp", lambda: frames("WEBP")),
    good("a TIFF of many pages", "a.tif", lambda: frames("TIFF")),
    good("a TIFF by its content, a JPEG by its name", "a.jpg", lambda: encoded("TIFF")),
    good("a BMP", "a.bmp", lambda: encoded("BMP")),
    good("a name that is not UTF-8", b"\xff\xfe.png", encoded),
    good("a name of control characters", "\x1b[31mred\n\x07.png", encoded),
    good("a name of 250 characters", "n" * 246 + ".png", encoded),
    good("a name that looks like an option", "--help.png", encoded),
    good("a PNG of 36 million pixels", "a.png", lambda: huge(6000, 6000), megabytes=350),
    good("a strip of one pixel by 20,000", "a.png", lambda: encoded("PNG", size=(1, 2000))),
]
REFUSED = [
    bad("an empty file", "a.png", lambda: b"", "the file is empty"),
    bad("text", "a.png", lambda: b"hello", "not an image"),
    bad("zeros", "a.jpg", lambda: bytes(100_000), "not an image"),
    bad("a PNG cut in its pixels", "a.png", lambda: encoded()[:900]),
    bad("a PNG of nothing but its header", "a.png", lambda: encoded()[:40]),
    bad("a JPEG cut in its pixels", "a.jpg", lambda: encoded("JPEG")[:400]),
    bad("a WebP cut in its pixels", "a.webp", lambda: encoded("WEBP")[:200]),
    bad("a TIFF cut in its pixels", "a.tif", lambda: encoded("TIFF")[:300]),
    bad("a PNG with a wrong checksum", "a.png", lambda: encoded().replace(b"IHDR", b"IHDQ")),
    bad("a PNG of no pixels", "a.png", lambda: png(0, 0)),
    bad("a PNG of 2 billion by 2 billion", "a.png", lambda: png(2**31 - 1, 2**31 - 1, data=b""), "make it smaller"),
    bad(
        "a PNG of 20,000 by 20,000",
        "a.png",
        lambda: png(20_000, 20_000, data=b""),
        "400,000,000 pixels",
        "make it smaller",
    ),
    bad("a PNG whose header promises what is not there", "a.png", lambda: png(3000, 3000, data=b""), megabytes=100),
    bad("a PNG with 100 MB of packed text (zTXt)", "a.png", lambda: text_bomb("zTXt"), megabytes=100),
    bad("a PNG with 100 MB of packed text (iTXt)", "a.png", lambda: text_bomb("iTXt"), megabytes=100),
    bad("a PNG with 100 texts of a MB", "a.png", many_texts, megabytes=150),
    bad("a TIFF whose directory holds itself", "a.tif", tiff_of_strange_tags),
    bad("pixels in floating point", "a.tif", lambda: encoded("TIFF", "F"), "no agreed range"),
    bad("PostScript, which would start a program", "a.png", lambda: encoded("EPS"), "not an image"),
    bad("an icon", "a.png", lambda: encoded("ICO"), "not an image"),
    bad("a PNG too long and thin", "a.png", lambda: huge(1, 600_000), "too long and thin"),
    bad("a name of control characters that is no image", "\x1b[31mred\n\x07.png", lambda: b"no", "red"),
    bad("a name that is not UTF-8 and no image", b"\xff\xfe.png", lambda: b"no", r"\udcff"),
]


def one_in_forty(folder: Path) -> Arguments:
    made(b"\xff\x1b[31m\n.png", lambda: b"no image", good=39)(folder)
    return *QUANTIZE, "--json", "report.json"


def one_file(folder: Path) -> Arguments:
    made("a.gif", lambda: frames("GIF", 3))(folder)
    return "quantize", "model.onnx", "--calib", "images/a.gif", "--method", "nearest"


def images_for_a_memory(memory: str) -> Callable[[Path], Arguments]:
    def make(folder: Path) -> Arguments:
        made("wide.png", lambda: png(9000, 9000, data=b""), good=40)(folder)
        return *QUANTIZE, "--memory", memory

    return make


OTHERS = [
    Case("a skipped image whose name no report can hold", one_in_forty, code=0, lines=("",), writes=(WRITTEN, "report.json")),
    Case("one GIF, which is one image", one_file, says=("at least two images",)),
    Case(
        "an image that the memory asked for does not hold", images_for_a_memory("600MB"), code=2,
        says=("--memory 600 MB cannot be kept", "least that works is", "wide.png of 9000x9000 pixels"), megabytes=100,
    ),
    Case("a memory that holds nothing", images_for_a_memory("1MB"), code=2, says=("--memory 1.00 MB cannot be kept",)),
]  # fmt: skip


@rows(READ + REFUSED + OTHERS)
def test_images(case: Case, hostile: Hostile) -> None:
    hostile(case)


@pytest.mark.parametrize("memory", ["0", "-1GB", "much", "1e400GB", "9" * 400 + "TB"])
def test_sizes_of_memory_that_are_none(memory: str, hostile: Hostile) -> None:
    hostile(
        Case(
            memory[:10], lambda folder: (*made("a.png", encoded)(folder), "--memory", memory), code=2, says=("memory",)
        )
    )
