"""The command that ranks layers by what their quantization costs."""

from __future__ import annotations

import json
import re
from pathlib import Path

from helpers.command_line import fails, works


def test_sensitivity_ranks_on_labelled_images_and_suggests_nothing_where_nothing_is_lost(here: Path) -> None:
    result = works(
        "sensitivity", "model.onnx", "--calib", "images", "--data", "images", "--limit", "8", "--method", "nearest",
        "--top", "2", "--json", "ranking.json",
    )  # fmt: skip
    assert "top-1" in result.stdout
    assert re.search(r"images +8 of \d+, labelled", result.stdout)
    # A network that guesses loses nothing.
    assert re.search(r"suggestions +none: nothing is lost on these 8 of \d+ images: --limit takes more", result.stdout)
    found = json.loads((here / "ranking.json").read_text())
    assert found["suggestions"] == []
    assert found["labelled"] is True
    assert found["ranked"][0]["losses"].keys() == {str(w) for w in range(2, 9)}


def test_sensitivity_needs_images_for_labels(here: Path) -> None:
    (here / "x.csv").write_text("0.png,1\n")
    fails("sensitivity", "model.onnx", "--calib", "images", "--labels", "x.csv", code=2, says=("--data",))
    fails("sensitivity", "model.onnx", "--calib", "images", "--json", "model.onnx", code=2, says=("model itself",))
