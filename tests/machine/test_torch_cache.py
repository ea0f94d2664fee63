"""torch's folder for kernels is not left where nothing was compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LEARN = """
import os, torch
from mrecg_onnx.learning.descent import Descent, Group
from mrecg_onnx.machine import ALONE
Descent([Group([torch.zeros(1, requires_grad=True)], 0.1, decays=False)], torch.device("cpu"), ALONE)
assert "torch._dynamo" in __import__("sys").modules
print(os.environ.get("TORCHINDUCTOR_CACHE_DIR"))
"""


def learn(temporary: Path, **more: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    env |= {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [sys.executable, "-c", LEARN], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path) -> None:
    assert learn(tmp_path) == "None"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_the_user_names_stays(tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    assert learn(tmp_path, TORCHINDUCTOR_CACHE_DIR=str(kernels)) == str(kernels)
    assert kernels.is_dir()
