"""Folders of images that are hostile, or only large or odd."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from helpers.hostile import Arguments, Case, Hostile, model_and_images, rows

QUANTIZE = "quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--threads", "1"
WRITTEN = "model_nearest_w4a4.*"


def with_more(add: Callable[[Path], object], *more: str) -> Callable[[Path], Arguments]:
    """Harmless images, and what ``add`` puts among them."""

    def make(folder: Path) -> Arguments:
        model_and_images(folder)
        add(folder / "images")
        return *QUANTIZE, *more

    return make


def only(make: Callable[[Path], object], calib: str = "images") -> Callable[[Path], Arguments]:
    """Nothing but what is made at ``images``."""

    def made(folder: Path) -> Arguments:
        model_and_images(folder)
        (folder / "images").rename(folder / "others")
        make(folder / "images")
        return "quantize", "model.onnx", "--calib", calib, "--method", "nearest"

    return made


def good(title: str, add: Callable[[Path], object], *more: str, **others: object) -> Case:
    return Case(title, with_more(add, *more), code=0, lines=("",), writes=(WRITTEN,), **others)  # type: ignore[arg-type]


def many(images: Path, folders: int = 100, each: int = 1000) -> None:
    """So many names of one file a folder: file systems bound the names of one."""
    first = next(images.rglob("*.png")).read_bytes()
    for folder in range(folders):
        (images / f"f{folder}").mkdir()
        (images / f"f{folder}" / "0.png").write_bytes(first)
        for number in range(1, each):
            (images / f"f{folder}" / f"{number}.png").hardlink_to(images / f"f{folder}" / "0.png")


def deep(images: Path) -> None:
    here = os.open(images, os.O_RDONLY)
    for _ in range(120):
        os.mkdir("d" * 10, dir_fd=here)
        there = os.open("d" * 10, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)


def loops(images: Path) -> None:
    (images / "up").symlink_to("..")
    (images / "again").symlink_to(".")
    (images / "a").mkdir()
    (images / "a" / "b").symlink_to("..")


def odd_names(images: Path) -> None:
    for name in (b"\xff\xfe", b"\x1b[31m", b"new\nline", b" ", b"-rf", "ä".encode("latin-1")):
        folder = images / os.fsdecode(name)
        folder.mkdir()
        first = next(path for path in images.rglob("*.png"))
        (folder / "a.png").write_bytes(first.read_bytes())


CASES = [
    good("links that lead in circles", loops),
    good("folders whose names are not UTF-8 or hold control characters", odd_names),
    good("a pipe that is called like an image", lambda images: os.mkfifo(images / "a.png")),
    good("a folder that is called like an image", lambda images: (images / "a.png").mkdir()),
    good("hidden files that are no images", lambda images: (images / "._a.png").write_bytes(b"no")),
    good("120 folders inside each other", deep),
    good("100,000 images", many, "--samples", "16", cpu_s=30, slow=True),
    good("1,000 images", lambda images: many(images, 10, 100), "--samples", "16"),
    Case("a link to itself called like an image", with_more(lambda images: (images / "a.png").symlink_to("a.png")),
         says=("cannot be read", "a.png", "symbolic links")),
    Case("a link to nothing called like an image", with_more(lambda images: (images / "a.png").symlink_to("gone")),
         says=("cannot be read", "a.png", "No such file")),
    Case("no folder", only(lambda images: None), says=("images: no such file or folder",), code=2),
    Case("an empty folder", only(lambda images: images.mkdir()), says=("is empty",)),
    Case("a folder without images", only(lambda images: (images.mkdir(), (images / "a.txt").write_text("no"))),
         says=("no images in",)),
    Case("a link to itself", only(lambda images: images.symlink_to("images")), says=("images",), code=2),
    Case("a pipe", only(os.mkfifo), says=("a named pipe",), code=2),
    Case("a device", only(lambda images: None, "/dev/zero"), says=("a device",), code=2),
    Case("a text file", only(lambda images: images.write_bytes(b"hello")), says=("not an image",)),
    Case("images and arrays together", with_more(lambda images: (images / "a.npy").write_bytes(b"")),
         says=("both images", "arrays")),
    Case("a name longer than names may be", only(lambda images: None, "n" * 300), says=("File name too long",)),
]  # fmt: skip


@rows(CASES)
def test_folders(case: Case, hostile: Hostile) -> None:
    hostile(case)
