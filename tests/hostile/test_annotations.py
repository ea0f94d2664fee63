"""Targets of images in files that are hostile: boxes in COCO's JSON, folders of masks."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.hostile import Arguments, Case, Hostile, float_model, model_and_images, rows
from PIL import Image

NAMES = [f"{n}/{n}.png" for n in range(4)]
SLY = "\x1b[31m\n\u202e"


def validated(labels: str, fill: Callable[[Path], object]) -> Callable[[Path], Arguments]:
    """Harmless images and models, and what ``fill`` makes."""

    def make(folder: Path) -> Arguments:
        model_and_images(folder)
        (folder / "other.onnx").write_bytes(float_model())
        fill(folder)
        return "validate", "model.onnx", "other.onnx", "--data", "images", "--labels", labels, "--metric", "mIoU"

    return make


def boxes(content: object) -> Callable[[Path], Arguments]:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    raw = text.encode() if isinstance(text, str) else text
    return validated("own.json", lambda folder: (folder / "own.json").write_bytes(raw))


def coco(box: object = (1, 1, 4, 4), *, image: Any = 0, category: Any = 1, **more: Any) -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": name, "width": 16, "height": 16} for n, name in enumerate(NAMES)],
        "annotations": [{"image_id": image, "category_id": category, "bbox": box}],
        **more,
    }


def masks(make: Callable[[Path], object]) -> Callable[[Path], Arguments]:
    def fill(folder: Path) -> None:
        for name in NAMES:
            (folder / "masks" / name).parent.mkdir(parents=True)
            Image.new("L", (16, 16), 1).save(folder / "masks" / name)
        make(folder / "masks" / NAMES[2])

    return validated("masks", fill)


def huge_png(path: Path, side: int = 100_000) -> None:
    """A header of so many pixels, and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def sparse(folder: Path) -> None:
    (folder / "own.json").write_bytes(b"{")
    os.truncate(folder / "own.json", 1 << 42)


CASES = [
    Case("boxes, no JSON", boxes("file,label\n0/0.png,1\n"), says=("own.json", "it is no JSON")),
    Case("boxes, cut off", boxes(json.dumps(coco())[:-9]), says=("own.json", "it is no JSON")),
    Case("boxes, not UTF-8", boxes(b'{"images": "\xff"}'), says=("own.json", "it is no JSON")),
    Case("boxes, lists 100,000 deep", boxes("[" * 100_000), says=("own.json", "it is no JSON")),
    Case("boxes, a number of 5,000 digits", boxes(f'{{"images": {"9" * 5000}}}'), says=("own.json", "it is no JSON")),
    Case("boxes, 4 TB of nothing", validated("own.json", sparse), says=("own.json", "are the most that is read here")),
    Case("boxes, a pipe", validated("own.json", lambda folder: os.mkfifo(folder / "own.json")), says=("a named pipe",), code=2),
    Case("boxes, a list", boxes([1, 2]), says=("no file of COCO's",)),
    Case("boxes, of an image that is missing", boxes(coco(image=77)), says=("annotations[0]", "image_id is 77")),
    Case("boxes, of a list in place of an image", boxes(coco(image=[])), says=("annotations[0]", "image_id is []")),
    Case("boxes, no entry for an image", boxes(coco(images=[])), says=("annotations[0]", "image_id is 0")),
    Case("boxes, without images", boxes({"images": [], "annotations": []}), says=("has nothing for 0/0.png",)),
    Case("boxes, NaN", boxes(coco((1, 1, float("nan"), 4))), says=("annotations[0]", "bbox is [1, 1, nan, 4]")),
    Case("boxes, beyond all bounds", boxes(coco((1, 1, 1e308, 10**300))), says=("annotations[0]", "bbox is")),
    Case("boxes, text", boxes(coco("all")), says=("annotations[0]", "bbox is 'all'")),
    Case("boxes, a category below zero", boxes(coco(category=-1)), says=("category_id is -1",)),
    Case("boxes, a category beyond 64 bits", boxes(coco(category=2**70)), says=("category_id is",)),
    Case("boxes, names that a terminal obeys", boxes(coco(images=[{"id": 0, "file_name": SLY}])),
         says=("has nothing for 0/0.png",)),
    Case("boxes, of other sizes", boxes(coco(images=[{"id": n, "file_name": name, "width": 10**9, "height": 1}
         for n, name in enumerate(NAMES)])), says=("0.png has 16x16 pixels", "says 1000000000x1")),
    Case("boxes, 200,000 of other images", boxes(coco(images=[
        {"id": n, "file_name": f"{n}.png"} for n in range(200_000)])), cpu_s=10, says=("metric mIoU: a target is",)),
    Case("masks, one that is missing", masks(lambda path: path.unlink()), says=("masks has nothing for 2/2",)),
    Case("masks, one of 10,000,000,000 pixels", masks(huge_png), says=("2.png cannot be used", "pixels")),
    Case("masks, one of 100,000,000 pixels", masks(lambda path: huge_png(path, 10_000)), says=("it has 10000x10000 pixels",),
         megabytes=80),
    Case("masks, one without pixels", masks(lambda path: huge_png(path, 16)), says=("2.png cannot be used",)),
    Case("masks, an empty one", masks(lambda path: path.write_bytes(b"")), says=("2.png cannot be used: the file is empty",)),
    Case("masks, one of colours", masks(lambda path: Image.new("RGB", (16, 16)).save(path)), says=("its pixels are RGB",)),
    Case("masks, a JPEG by the name of a PNG", masks(lambda path: Image.new("L", (16, 16)).save(path, "JPEG")),
         says=("2.png cannot be used",)),
    Case("masks, a pipe", masks(lambda path: (path.unlink(), os.mkfifo(path))), lines=("Warning: ",),
         says=("masks has nothing for 2/2",)),
    Case("masks, an empty folder", validated("masks", lambda folder: (folder / "masks").mkdir()), says=("is empty",)),
    Case("masks, a link to itself", validated("masks", lambda folder: (folder / "masks").symlink_to("masks")), says=("masks",),
         code=2),
]  # fmt: skip


@rows(CASES)
def test_annotations(case: Case, hostile: Hostile) -> None:
    hostile(case)
