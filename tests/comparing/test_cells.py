"""A cell's process: what it answers, how it ends, and that it does not outlive its parent."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from helpers.command_line import classifier, write_images

from mrecg_onnx import Settings
from mrecg_onnx.comparing.cells import CellError, CellProcess, Job, pack, unpack

SETTINGS = Settings(iters=8, samples=24, batch_size=8, threads=1, equalize="off", range="mse", range_samples=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and images."""
    onnx.save(classifier(), tmp_path / "model.onnx")
    write_images(tmp_path / "images", 40)
    return tmp_path


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_flags_survive_packing(count: int) -> None:
    flags = np.random.default_rng(count).random(count) < 0.5
    assert len(pack(flags)) == 2 * -(-count // 8)
    assert (unpack(pack(flags), count) == flags).all()


def test_a_process_that_dies_is_a_failed_cell(folder: Path) -> None:
    settings = dataclasses.replace(SETTINGS, method="nearest")
    images = str(folder / "images")
    job = Job("model.onnx", images, images, str(folder / "x.onnx"), str(folder / "x.units"), settings)
    with CellProcess("quantize", job) as process:
        process._process.kill()
        with pytest.raises(CellError, match=r"SIGKILL .*memory"):
            process.result()
    with CellProcess("no such stage", job) as process, pytest.raises(CellError, match="KeyError: 'no such stage'"):
        process.result()


@pytest.mark.slow
def test_a_child_ends_with_its_parent(folder: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, method="brecq", iters=100000)
    model, images = str(folder / "model.onnx"), str(folder / "images")
    job = Job(model, images, images, str(tmp_path / "x.onnx"), str(tmp_path / "x.units"), settings)
    process = CellProcess("quantize", job)

    def leave(_: object) -> None:
        raise EOFError

    with pytest.raises(EOFError):
        process.result(leave)
    child = psutil.Process(process._process.pid)
    assert process._process.stdin is not None
    process._process.stdin.close()  # all that a parent's death looks like from the child
    assert process._process.wait(30) != 0
    assert not child.is_running()
    assert not (tmp_path / "x.onnx").exists()
