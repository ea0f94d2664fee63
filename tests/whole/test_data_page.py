"""The examples of docs/data.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
from helpers.command_line import classifier, write_images

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BEGINNING, *EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.splitlines()[0] for example in EXAMPLES])
def test_an_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "load_dataset" in example:
        pytest.importorskip("datasets")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    onnx.save(classifier(), tmp_path / "model.onnx")
    write_images(tmp_path / "images", 24)
    monkeypatch.chdir(tmp_path)
    exec(compile(BEGINNING + example, str(PAGE), "exec"), {"__name__": "example"})


def test_the_page_has_an_example_of_each_form() -> None:
    assert len(EXAMPLES) == 8
