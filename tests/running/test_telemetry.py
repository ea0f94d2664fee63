"""What the libraries beneath would tell their makers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: What keeps ONNX Runtime from reporting besides our own word: it is silent in continuous integration.
SILENT = {"CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS"}


@pytest.mark.skipif(sys.platform != "linux", reason="the folders are those of Linux")
def test_importing_onnx_runtime_leaves_no_identifier_and_no_reports(tmp_path: Path) -> None:
    """1.29 and later make both at once, in the home folder and the one for temporary files."""
    environment = {name: value for name, value in os.environ.items() if name not in SILENT}
    program = "import mrecg_onnx.running, onnxruntime; onnxruntime.get_available_providers()"
    places = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", program], env={**environment, **places}, check=True)
    assert list(tmp_path.rglob("*")) == []
