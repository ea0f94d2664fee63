"""Files, names and messages from outside: nothing is started, waited for or sent to the terminal as it is."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import numpy as np
import pytest
from command_line import fails, works
from PIL import EpsImagePlugin, Image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAST = ("--method", "nearest", "--threads", "1")


# --- what is no file -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Whoever opens a pipe that nobody writes to waits for ever: that is a failure, not a hang."""

    def stop(*_: object) -> None:
        raise TimeoutError("something was waited for")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


COMMANDS = {
    "quantize": ("quantize", "PIPE", "--calib", "images"),
    "quantize --calib": ("quantize", "model.onnx", "--calib", "PIPE"),
    "quantize --data": ("quantize", "model.onnx", "--calib", "images", "--max-drop", "1", "--data", "PIPE"),
    "quantize -o": ("quantize", "model.onnx", "--calib", "images", "-o", "PIPE"),
    "quantize --json": ("quantize", "model.onnx", "--calib", "images", "--json", "PIPE"),
    "quantize --target": ("quantize", "model.onnx", "--calib", "images", "--target", "PIPE"),
    "quantize --scheme": ("quantize", "model.onnx", "--calib", "images", "--scheme", "PIPE"),
    "inspect": ("inspect", "PIPE"),
    "sensitivity": ("sensitivity", "PIPE", "--calib", "images"),
    "validate, first": ("validate", "PIPE", "model.onnx", "--data", "images"),
    "validate, second": ("validate", "model.onnx", "PIPE", "--data", "images"),
    "validate --data": ("validate", "model.onnx", "model.onnx", "--data", "PIPE"),
    "validate --labels": ("validate", "model.onnx", "model.onnx", "--data", "images", "--labels", "PIPE"),
    "compare": ("compare", "PIPE", "--calib", "images", "--data", "images", "-o", "out"),
    "compare --calib": ("compare", "model.onnx", "--calib", "PIPE", "--data", "images", "-o", "out"),
    "compare --labels": (
        "compare", "model.onnx", "--calib", "images", "--data", "images", "--labels", "PIPE", "-o", "out",
    ),
    "convert": ("convert", "PIPE"),
    "benchmark": ("benchmark", "model.onnx", "PIPE"),
}  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_pipe_in_place_of_a_file_is_refused_without_opening_it(here: Path, arguments: tuple[str, ...]) -> None:
    os.mkfifo(here / "pipe.onnx")
    code = 2 if {"--target", "--scheme"} & set(arguments) else 1
    line = fails(*("pipe.onnx" if word == "PIPE" else word for word in arguments), code=code, says=("pipe.onnx",))
    assert code == 2 or "a named pipe" in line


def test_a_device_is_no_model(here: Path) -> None:
    fails("inspect", "/dev/zero", says=("/dev/zero", "a device"))


@pytest.mark.parametrize("name", ["run.json", "reconstruct-0000.pt"])
def test_a_pipe_among_the_checkpoints_is_refused(here: Path, name: str) -> None:
    options = ("--calib", "images", "--method", "brecq", "--iters", "1", "--samples", "8", "--checkpoint", "kept")
    works("quantize", "model.onnx", *options)
    (here / "kept" / name).unlink()
    os.mkfifo(here / "kept" / name)
    fails("quantize", "model.onnx", *options, code=2 if name == "run.json" else 1, says=(name, "a named pipe"))


def test_what_is_no_file_in_a_folder_of_images_is_skipped_by_name(here: Path) -> None:
    os.mkfifo(here / "images" / "0" / "a.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("images/0/b.png")
        (here / "images" / "1" / "c.png").symlink_to("/dev/zero")
        result = works("quantize", "model.onnx", "--calib", "images", *FAST)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Warning")]
    for text in ("a.png (a named pipe)", "b.png (a socket)", "c.png (a device)"):
        assert text in line
    assert "24 calibration images" in result.stdout


def test_a_folder_with_nothing_but_pipes_has_no_images(here: Path) -> None:
    (here / "arrays").mkdir()
    os.mkfifo(here / "arrays" / "a.npy")
    fails("quantize", "model.onnx", "--calib", "arrays", *FAST, says=("no images in arrays",))


# --- images ----------------------------------------------------------------------------------------------------------


def test_only_the_formats_that_are_named_are_decoded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow goes by content: a PostScript file with another name would be given to Ghostscript, a program."""
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a))
    (here / "images" / "0" / "page.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n%%EOF\n"
    )
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(here / "images" / "0" / "b.jpg", format="PPM")
    for n in range(40):  # two of so many may be lost
        Image.fromarray(np.full((16, 16), n, np.uint8)).save(here / "images" / "0" / f"more{n}.bmp")
    result = works("quantize", "model.onnx", "--calib", "images", *FAST)
    for text in ("page.png (not an image", "b.jpg (not an image"):
        assert text in " ".join(result.stdout.split())
    assert not started


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"])
def test_all_the_formats_that_are_named_are_read(here: Path, suffix: str) -> None:
    folder = here / "kind"
    folder.mkdir()
    for n in range(2):
        Image.fromarray(np.full((16, 16, 3), n, np.uint8)).save(folder / f"{n}{suffix}")
    works("quantize", "model.onnx", "--calib", "kind", *FAST)
