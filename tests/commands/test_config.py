"""Options in a file, and the file that a run leaves."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from helpers.command_line import fails, works

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pathlib import Path

GIVEN = ("--iters", "3", "--samples", "16", "--threads", "1", "--wbits", "3", "--bits", "conv1=W8A8", "--mean", "0.5")


def test_a_run_leaves_its_options_and_they_make_the_same_bytes(here: Path) -> None:
    works("quantize", "model.onnx", "--calib", "images", *GIVEN, "--finish", "auto", "--exclude", 'conv4|"\\.', "-q")
    made, options = here / "model_mrecg_w3a4.onnx", here / "model_mrecg_w3a4.toml"
    found = tomllib.loads(options.read_text())
    assert (found["calib"], found["wbits"], found["abits"], found["iters"]) == ("images", 3, 4, 3)
    assert (found["bits"], found["exclude"], found["finish"]) == (["conv1=W8A8"], ['conv4|"\\.'], "auto")
    assert found["mean"] == "0.5"
    assert not {"output", "force", "json", "config", "quiet", "checkpoint"} & set(found)
    works("quantize", "model.onnx", "--config", options, "-o", "again.onnx", "-q")
    assert (here / "again.onnx").read_bytes() == made.read_bytes()
    assert (here / "again.toml").read_bytes() == options.read_bytes()
    options.rename(here / "mine.toml")
    made.unlink()
    works("quantize", "model.onnx", "--config", "mine.toml", "-o", "mine.onnx", "-q")  # the file itself is left alone
    assert (here / "mine.onnx").read_bytes() == (here / "again.onnx").read_bytes()


def test_defaults_written_out_are_nobodys_choice_and_other_values_still_are(here: Path) -> None:
    works("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "-o", "q.onnx", "-q")
    assert "no effect" not in works("quantize", "model.onnx", "--config", "q.toml", "--force").stderr
    (here / "q.toml").write_text((here / "q.toml").read_text().replace("zeroq-iters = 500", "zeroq-iters = 501"))
    said = works("quantize", "model.onnx", "--config", "q.toml", "--force").stderr
    assert [line for line in said.splitlines() if "no effect" in line] == [
        "Warning: --zeroq-iters has no effect with --calib images"
    ]
    assert (
        "--iters has no effect"
        in works("quantize", "model.onnx", "--config", "q.toml", "--iters", 1000, "-o", "p.onnx").stderr
    )


def test_the_command_line_goes_before_the_file(here: Path) -> None:
    (here / "run.toml").write_text(
        'calib = "images"\nmethod = "nearest"\nwbits = 2\nabits = 8\nfirst_last_bits = 4\nsamples = 8\n'
        'equalize = "off"\nsymmetric-weights = true\nexclude = "conv3"\nquiet = true\n'
    )
    assert works("quantize", "model.onnx", "--config", "run.toml", "--wbits", "4").stdout == ""
    found = tomllib.loads((here / "model_nearest_w4a8.toml").read_text())
    assert (found["wbits"], found["abits"], found["first-last-bits"], found["exclude"]) == (4, 8, 4, ["conv3"])
    assert found["symmetric-weights"] is True
    (here / "plan.toml").write_text("wbits = 3\n")
    assert "model" in works("inspect", "model.onnx", "--config", "plan.toml").stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("wbit = 4", ("'wbit' is no option of quantize", "did you mean 'wbits'?")),
        ("config = 'x.toml'", ("'config' is no option",)),
        ("force = true", ("'force' is no option",)),
        ("wbits = true", ("wbits wants a value, no true or false",)),
        ("symmetric_weights = 1", ("symmetric_weights wants true or false",)),
        ("wbits = 'four'", ("wbits: 'four' is not a valid integer",)),
        ("wbits = [4]", ("wbits wants a text or a number",)),
        ("bits = [[1]]", ("bits wants a list of texts",)),
        ("method = 'magic'", ("method: 'magic' is not one of",)),
        ("wbits = 1979-05-27", ("wbits wants a text or a number",)),
        ("[quantize]\nwbits = 4", ("'quantize' is no option of quantize",)),
        ("wbits = ", ("is no TOML",)),
        ("wbits = 9", ("wbits",)),
    ],
)
def test_what_a_file_cannot_say_gets_one_line(here: Path, content: str, says: tuple[str, ...]) -> None:
    (here / "run.toml").write_text(content)
    line = fails("quantize", "model.onnx", "--calib", "images", "--config", "run.toml", code=2, says=says)
    assert len(line) <= 300


def test_a_file_may_begin_with_a_mark_of_utf_8(here: Path) -> None:
    (here / "plan.toml").write_text("wbits = 3\n", encoding="utf-8-sig")
    marked = works("inspect", "model.onnx", "--config", "plan.toml").stdout
    assert marked == works("inspect", "model.onnx", "--wbits", "3").stdout != works("inspect", "model.onnx").stdout


def test_a_file_that_is_none_gets_one_line(here: Path) -> None:
    command = ("quantize", "model.onnx", "--calib", "images", "--config")
    fails(*command, "nowhere.toml", code=2, says=("--config nowhere.toml: no such file",))
    fails(*command, "images", code=2, says=("images: cannot be read",))
    (here / "binary.toml").write_bytes(b"\xff\xfe")
    fails(*command, "binary.toml", code=2, says=("is no TOML",))


def test_what_is_there_of_another_run_is_not_written_over(here: Path) -> None:
    (here / "q.toml").write_text("mine = 1\n")
    nearest = ("quantize", "model.onnx", "--calib", "images", "--method", "nearest", "--samples", "8", "-o", "q.onnx")
    fails(*nearest, code=2, says=("q.toml is there already", "--force"))
    fails(*nearest, "--force", "--json", "q.toml", code=2, says=("q.toml is an output file",))
    works(*nearest, "--force")
    assert "mine" not in (here / "q.toml").read_text()
