"""Targets: rules as files, and what they exclude."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from helpers.command_line import fails
from helpers.targets import RULES

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.planning import BitRule
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets.target import TARGET_NAMES, load_target


def test_sixteen_bits_where_the_target_has_none(here: Path) -> None:
    fails(
        "quantize", "model.onnx", "--calib", "images", "--abits", "16",
        code=2, says=("target ort: --abits asks for 16-bit activations", "2 to 8; target qnn has 16"),
    )  # fmt: skip
    with pytest.raises(SettingsError, match="asks for 16-bit activations"):
        Settings(target="tensorrt", bits=(BitRule.parse("head=A16"),))
    for text in ("head=W16", "head=A12"):
        with pytest.raises(SettingsError, match="widths go from 2 to 8"):
            BitRule.parse(text)
    with pytest.raises(SettingsError, match="--allocate milp chooses among 2 to 8 bits"):
        Settings(target="qnn", abits=16, allocate="milp")


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_the_rules_can_be_copied(name: str, tmp_path: Path) -> None:
    shutil.copy(RULES / f"{name}.toml", tmp_path / "mine.toml")
    assert load_target(str(tmp_path / "mine.toml")) == dataclasses.replace(load_target(name), name="mine")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('activation = "uint8"', 'activation = "uint7"', "activation is 'uint7': choose among uint8, int8"),
        ('bias = "int32"', "", "lacks bias"),
        ('bias = "int32"', 'bias = "int32"\nspeed = 2', "has the unknown rule speed"),
        ("wbits = [2, 8]", "wbits = [8, 2]", r"wbits is \[8, 2\]: expected \[lowest, highest\] within 2 and 8"),
        ('"packed"', '"crushed"', "containers has the unknown 'crushed'"),
        ("[19, 25]", "[19, ", "cannot be read as TOML"),
        ('activation = "uint8"', 'activation = "int8"', "int8 activations need zero_point 'zero'"),
        ('zero_point = "any"', 'zero_point = "zero"', "needs int8 activations"),
        ("wide_abits = []", "wide_abits = [12]", r"wide_abits is \[12\]: expected \[\] or \[16\]"),
        ("wide_abits = []", "wide_abits = [16]", "needs uint8 activations, bounds 'float' or 'pair' and opset 21"),
    ],
)
def test_rules_that_break_their_form(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = (RULES / "ort.toml").read_text()
    assert old in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new))
    with pytest.raises(SettingsError, match=says):
        load_target(str(file))


def test_settings_that_the_rules_exclude(tmp_path: Path) -> None:
    file = tmp_path / "eight.toml"
    file.write_text((RULES / "qnn.toml").read_text().replace("wbits = [2, 8]", "wbits = [4, 8]"))
    with pytest.raises(SettingsError, match=r"target eight: --wbits asks for 2-bit weights; its rules allow 4 to 8"):
        Settings(wbits=2, target=str(file))
    with pytest.raises(SettingsError, match="--bits 'head' asks for 3-bit weights"):
        Settings(target=str(file), bits=(BitRule("head", 3, None),))
    for options, says in (
        (
            {"target": "tensorrt", "container": "packed"},
            "target tensorrt has no container 'packed': choose among int8",
        ),
        ({"target": "tensorrt", "method": "lapq"}, "method lapq does not keep"),
        ({"target": "qnn", "method": "aciq"}, "cannot hold widths a channel"),
        ({"target": "abacus"}, "target 'abacus' is neither ort, openvino"),
    ):
        with pytest.raises(SettingsError, match=says):
            Settings(**options)
    for target in ("ort", "openvino"):  # these hold widths a channel
        Settings(target=target, method="aciq")


@pytest.mark.parametrize("option", ["--wbits", "--abits"])
def test_widths_that_the_rules_exclude_end_the_command(here: Path, option: str) -> None:
    rules = (RULES / "qnn.toml").read_text()
    Path("eight.toml").write_text(rules.replace(f"{option[2:]} = [2, 8]", f"{option[2:]} = [8, 8]"))
    what = {"--wbits": "weights", "--abits": "activations"}[option]
    fails(
        "quantize", "model.onnx", "--calib", "images", "--target", "eight.toml", option, "3",
        code=2, says=(f"target eight: {option} asks for 3-bit {what}; its rules allow 8 to 8",),
    )  # fmt: skip
