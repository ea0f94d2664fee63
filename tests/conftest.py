"""Settings that every test shares."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

pytest.register_assert_rewrite("helpers.command_line")


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread of torch: sums in one order on every machine, and no fight for the cores of a small one."""
    torch.set_num_threads(1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty but for ``model.onnx`` and ``images/``."""
    from helpers.command_line import classifier, write_images

    monkeypatch.chdir(tmp_path)
    onnx.save(classifier(), tmp_path / "model.onnx")
    write_images(tmp_path / "images", 24)
    return tmp_path
