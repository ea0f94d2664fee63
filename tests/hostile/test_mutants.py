"""The quick part of the fuzzer: mutants of a fixed seed end in a result or in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_mutants_are_refused_or_work(count: int, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(FUZZER),
        "--quick",
        "--mutants",
        str(count),
        "--seed",
        "1",
        "--seeds",
        str(tmp_path / "seeds"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} mutants: " in done.stdout
