"""The examples of docs/python.md: the page shows the files of docs/examples, and they run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mrecg_onnx

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
FILES = {file.stem: file for file in sorted((ROOT / "docs" / "examples").glob("*.py"))}
#: What the end of each says.
SAYS = {
    "detector": r"(mAP50|overlap): FP32 0\.[4-9]\d\d, quantized 0\.[4-9]\d\d$",
    "no_data": r"top-1 0\.99\d -> 0\.9\d\d$",
    "own_metric": r"worst class \d\d\.\d% -> \d\d\.\d%\n(.*\n)+\[\((\d\.\d, -?\d+\.\d\)(, \()?)+\]$",
    "targets_in_files": r"mIoU: FP32 1\.000, quantized (0\.9\d\d|1\.000)(\nmAP: FP32 1\.000, quantized (0\.[89]\d\d|1\.000))?$",
    "torch_to_w4a8": r"\ntop-1 (0\.9\d\d|1\.000), FP32 1\.000\n\[\d\]$",
}
#: The one that plain pytest runs.
QUICK = "torch_to_w4a8"


def test_the_page_shows_all_files_as_they_are() -> None:
    assert set(FILES) == set(SAYS)
    assert [name for name, file in FILES.items() if file.read_text(encoding="utf-8") not in SHOWN] == []
    assert len(FILES["torch_to_w4a8"].read_text(encoding="utf-8").splitlines()) <= 30


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == QUICK else pytest.mark.slow) for name in SAYS])
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    source = FILES[name].read_text(encoding="utf-8")
    if "torch.onnx.export" in source:
        pytest.importorskip("onnxscript", reason="onnxscript, which torch exports with, is not installed")
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    code = f"import sys; sys.path[:] = {sys.path!r}; exec(compile(sys.stdin.read(), {name!r}, 'exec'))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=source, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[name], done.stdout.strip()), done.stdout


def test_the_function_of_the_page_takes_every_event(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [shown for shown in SHOWN if shown.startswith("def bar")]
    room: dict[str, object] = {}
    exec(code, room)
    room["bar"](mrecg_onnx.Progress("load"))  # type: ignore[operator]
    room["bar"](mrecg_onnx.Progress("validate", done=3, total=9, of="images"))  # type: ignore[operator]
    assert capsys.readouterr().out == "\rvalidate        3/9 images"
