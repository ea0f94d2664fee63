"""The page on reliability is what the results of the scripts say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_on_reliability_is_what_the_results_say() -> None:
    script = [sys.executable, "benchmarks/reliability.py", "--check"]
    ended = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    if "not measured yet" in ended.stderr:
        pytest.skip(ended.stderr.strip())
    assert ended.returncode == 0, ended.stderr
