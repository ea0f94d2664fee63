"""The table of rules in docs/deployment.md has every target and every rule, with what the files of rules say."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from mrecg_onnx.targets import Target, load_target
from mrecg_onnx.targets.target import CONTAINER_NAMES, TARGET_NAMES

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
#: Of the table, by its first column: cells by target.
TABLE = re.search(r"^\| rule \|(.*)\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
assert TABLE is not None
COLUMNS = re.findall(r"`(\w+)`", TABLE[1])
ROWS = {
    first.strip(): dict(zip(COLUMNS, (cell.strip() for cell in cells), strict=True))
    for first, *cells in (line.strip("|").split("|") for line in TABLE[2].splitlines())
}


def row(rule: str) -> dict[str, str]:
    (found,) = [cells for first, cells in ROWS.items() if f"`{rule}`" in first]
    return found


def test_every_target_is_a_column_and_every_rule_a_row() -> None:
    assert sorted(COLUMNS) == sorted(TARGET_NAMES)
    rules = {field.name for field in dataclasses.fields(Target)} - {"name", "summary"}
    named = {rule for first in ROWS for rule in re.findall(r"`(\w+)`", first)}
    assert named <= rules
    beside = {rule for rule in rules - named if f"`{rule}`" in PAGE}
    assert named | beside == rules


def test_plain_values_are_those_of_the_files() -> None:
    opened = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "qonnx": "qonnx", "none": "nothing here"}
    for name in TARGET_NAMES:
        rules = load_target(name)
        assert row("opset")[name] == "{}, {}".format(*rules.opset)
        assert row("containers")[name] == ", ".join(rules.containers)
        assert row("bias")[name] == rules.bias
        assert row("weights")[name] == rules.weights
        assert row("activation")[name].split(",")[0] == rules.activation
        assert ("uint16" in row("activation")[name]) == (16 in rules.wide_abits)
        assert row("layer_outputs")[name] == rules.layer_outputs
        assert row("runtime")[name] == opened[rules.runtime]


def test_cells_are_equal_where_the_rules_are() -> None:
    """A rule that is the same for two targets reads the same, one that differs does not."""
    targets = {name: load_target(name) for name in TARGET_NAMES}
    for rule in ("zero_point", "bounds", "full_bounds", "float_layers", "branches", "add_operands", "stored_weights",
                 "moved_values", "dequantizers", "attributes"):  # fmt: skip
        cells = {name: row(rule)["ort"] if text == "the same" else text for name, text in row(rule).items()}
        pairs = {(getattr(targets[name], rule), cells[name]) for name in TARGET_NAMES}
        assert len(pairs) == len({value for value, _ in pairs}) == len({text for _, text in pairs}), rule


def test_every_container_has_a_row() -> None:
    for name in CONTAINER_NAMES:
        assert re.search(rf"^\| `{name}` \|", PAGE, re.MULTILINE), name
