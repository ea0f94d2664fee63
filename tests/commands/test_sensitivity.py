"""The command that ranks layers by what their quantization costs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from helpers.command_line import fails, works

from mrecg_onnx.commands._repeat import likewise
from mrecg_onnx.commands.quantize import quantize_command
from mrecg_onnx.commands.sensitivity import sensitivity_command


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


def test_the_last_line_is_a_quantize_with_all_that_help() -> None:
    @click.command("sensitivity", params=sensitivity_command.params)
    @click.pass_context
    def made(ctx: click.Context, /, **_: Any) -> None:
        click.echo(likewise(ctx, quantize_command, [("--bits", "^a$=W8"), ("--exclude", "^b$")]))

    given = (
        "m.onnx",
        "--calib",
        "images",
        "--wbits",
        "3",
        "--bits",
        "c=W4",
        "--data",
        "d",
        "--limit",
        "8",
        "--json",
        "-",
    )
    told = CliRunner().invoke(made, given).stdout.strip()
    assert told == ("mrecg-onnx quantize m.onnx --calib images --wbits 3 --bits c=W4 --bits '^a$=W8' --exclude '^b$'")
