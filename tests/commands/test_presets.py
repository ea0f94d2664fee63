"""--preset and preset=: rows of settings, each of which goes before, recorded as what they stand for."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
import sys
from pathlib import Path

import click
import onnx
import pytest
from helpers.command_line import fails, works

from mrecg_onnx import MrecgError, Settings
from mrecg_onnx.commands._unused import unused_options
from mrecg_onnx.commands.quantize import quantize_command
from mrecg_onnx.settings import PRESETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
QUICK = ("--calib", "images", "--samples", "8", "--threads", "1")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_fields(name: str) -> None:
    assert Settings(preset=name) == Settings(**PRESETS[name]) != Settings()
    assert Settings(preset=name, wbits=2, iters=7) == Settings(**{**PRESETS[name], "wbits": 2, "iters": 7})
    assert Settings(preset=name, iters=Settings().iters).iters == Settings().iters  # a default that was given is given
    assert pickle.loads(pickle.dumps(Settings(preset=name))) == Settings(preset=name)
    assert "preset" not in Settings(preset=name).to_json()


def test_a_preset_that_nobody_knows_or_that_changes_nothing_is_refused() -> None:
    with pytest.raises(MrecgError, match="preset is 'quick': choose among fast, balanced, best"):
        Settings(preset="quick")
    with pytest.raises(MrecgError, match="preset 'fast' changes nothing"):
        dataclasses.replace(Settings(), preset="fast")
    assert dataclasses.replace(Settings(preset="fast"), iters=3).method == PRESETS["fast"]["method"]
    assert inspect.signature(Settings).parameters["preset"].default is None


def test_the_help_page_says_what_presets_stand_for() -> None:
    (option,) = (p for p in quantize_command.params if p.name == "preset")
    assert isinstance(option, click.Option)
    for name, row in PRESETS.items():
        said = " ".join(f"--{field.replace('_', '-')} {'auto' if v is None else v}" for field, v in row.items())
        assert f"{name}: {said}" in (option.help or "")


def test_what_is_given_beside_a_preset_goes_before_it_and_the_result_says_what_was_used(here: Path) -> None:
    said = works("quantize", "model.onnx", *QUICK, "--preset", "balanced", "--iters", "3", "--json", "r.json")
    settings = json.loads((here / "r.json").read_text())["settings"]
    used = PRESETS["balanced"] | {"iters": 3}
    assert {name: settings[name] for name in used} == used
    options = tomllib.loads((here / "model_brecq_w4a4.toml").read_text())  # the default name holds the preset's method
    assert (options["method"], options["iters"], options["finish"], options["augment"]) == ("brecq", 3, "auto", "flip")
    assert "preset" not in options
    entries = {e.key: e.value for e in onnx.load(here / "model_brecq_w4a4.onnx").metadata_props}
    assert json.loads(entries["mrecg_onnx.settings"])["augment"] == "flip"
    assert "no effect" not in said.stderr
    works("quantize", "model.onnx", "--config", "model_brecq_w4a4.toml", "-o", "again.onnx", "-q")
    assert (here / "again.onnx").read_bytes() == (here / "model_brecq_w4a4.onnx").read_bytes()


@pytest.mark.parametrize("order", [False, True])
def test_a_preset_of_the_command_line_goes_before_a_file_and_one_in_the_file_behind_what_else_it_says(
    here: Path, order: bool
) -> None:
    (here / "run.toml").write_text('iters = 5\naugment = "none"\nmethod = "nearest"\n')
    both = [("--config", "run.toml"), ("--preset", "fast")]
    words = [word for pair in (both[::-1] if order else both) for word in pair]
    works("quantize", "model.onnx", *QUICK, *words, "--iters", "2", "-o", "a.onnx", "-q")
    options = tomllib.loads((here / "a.toml").read_text())
    assert (options["method"], options["iters"], options["augment"]) == ("brecq", 2, "none")
    (here / "run.toml").write_text('preset = "best"\niters = 2\nfinish = 0\naugment = "none"\n')
    works("quantize", "model.onnx", *QUICK, "--config", "run.toml", "-o", "b.onnx", "-q")
    options = tomllib.loads((here / "b.toml").read_text())
    assert (options["method"], options["iters"], options["finish"], options["augment"]) == ("brecq", 2, 0, "none")
    again = ("quantize", "model.onnx", "--config", "a.toml", "--preset", "best", "-o", "a.onnx")
    fails(*again, code=2, says=("a.toml would stay beside a.onnx and not say --preset",))


def test_a_preset_for_learning_is_told_to_have_no_effect_where_nothing_is_learned(here: Path) -> None:
    said = works("quantize", "model.onnx", *QUICK, "--preset", "balanced", "--method", "nearest").stderr
    assert "--preset has no effect with --method nearest" in said
    assert "--iters" not in said
    finished = ("--preset", "best", "--finish", "2", "--batch-size", "4", "--method", "nearest", "-o", "finished.onnx")
    said = works("quantize", "model.onnx", *QUICK, *finished).stderr
    assert "no effect" not in said
    fails("quantize", "model.onnx", *QUICK, "--preset", "quick", code=2, says=("'quick'", "fast"))


def test_what_finishing_takes_has_an_effect_whatever_learned_before_it() -> None:
    given = ["iters", "batch_size", "augment", "anneal"]

    def idle(**fields: object) -> list[str]:
        return [line.split(" ")[0] for line in unused_options(Settings(**fields), given)]  # type: ignore[arg-type]

    assert idle(method="nearest", finish=0) == ["--iters", "--batch-size", "--augment", "--anneal"]
    assert idle(method="nearest", finish=5) == ["--iters", "--anneal"]
    assert idle(method="bit-split", finish=0) == ["--iters", "--batch-size", "--anneal"]
    assert idle(method="bit-split", finish=5) == ["--iters", "--anneal"]
    assert idle(method="bit-split", finish=None) == ["--anneal"]


def test_the_page_on_the_terminal_lists_them() -> None:
    page = (ROOT / "docs" / "terminal.md").read_text()
    for name, row in PRESETS.items():
        said = " ".join(f"--{field.replace('_', '-')} {'auto' if v is None else v}" for field, v in row.items())
        assert f"| `{name}` | `{said}` |" in page
