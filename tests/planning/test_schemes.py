"""Scheme files: which units are joined, read from JSON."""

from __future__ import annotations

import json

import pytest
from helpers.architectures import PATTERNS
from helpers.stages import planned

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.planning import UnitPlan
from mrecg_onnx.planning.schemes import read_scheme


@pytest.fixture
def scheme(tmp_path):
    """Write a scheme and read it for the residual pattern: units stem, (conv1 conv2), (conv3 conv4 shortcut), fc."""
    _, plan = planned(PATTERNS["residual"]())

    def read(content: object) -> tuple[tuple[int, ...], ...]:
        path = tmp_path / "scheme.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return read_scheme(path, plan.units)

    return read


def test_scheme_in_the_notation_of_the_configurations(scheme):
    assert scheme({"scheme": [1, [2, 2], 3]}) == ((0,), (1, 2), (3,))
    assert scheme([[7, 7], "x", 9]) == ((0, 1), (2,), (3,))
    assert scheme([1, [2, 2, 2]]) == ((0,), (1, 2, 3))


def test_scheme_by_layer_names_in_any_order_within_a_unit(scheme):
    units = [["stem"], ["shortcut", "conv4", "conv3", "conv2", "conv1"], ["fc"]]
    assert scheme({"units": units}) == ((0,), (1, 2), (3,))
    assert scheme({"units": [["stem", "conv1", "conv2"], ["conv3", "conv4", "shortcut"], ["fc"]]}) == (
        (0, 1),
        (2,),
        (3,),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "cannot be read as JSON"),
        ({"merges": [1, 2]}, "expected"),
        ({"units": ["stem", "conv1"]}, "expected"),
        (5, "expected"),
        ([1, 2, 3], "covers 3 units, the model has 4"),
        ([[1, 1], [2, 2], [3, 3]], "covers 6 units, the model has 4"),
        ([1, [], 2, 3, 4], "empty list"),
        ({"units": [["stem"], [], ["conv1", "conv2"], ["conv3", "conv4", "shortcut"], ["fc"]]}, "a unit is empty"),
        ({"units": [["stem"], ["conv1", "conv9"]]}, "'conv9' is not a weighted layer"),
        ({"units": [["stem"], ["relu1"]]}, "'relu1' is not a weighted layer"),
        ({"units": [[["stem"]]]}, "is not a weighted layer"),
        ({"units": [["stem"], ["conv1"], ["conv2"], ["conv3", "conv4", "shortcut"], ["fc"]]}, "'conv2' belongs to it"),
        ({"units": [["stem"], ["conv1", "conv2"], ["fc"]]}, "cover all layers once"),
        ({"units": [["conv1", "conv2"], ["stem"], ["conv3", "conv4", "shortcut"], ["fc"]]}, "in the model's order"),
        ({"units": [["stem", "fc"], ["conv1", "conv2"], ["conv3", "conv4", "shortcut"]]}, "in the model's order"),
        ({"units": [["stem"], ["stem"], ["conv1", "conv2"], ["conv3", "conv4", "shortcut"], ["fc"]]}, "once"),
    ],
)
def test_scheme_that_does_not_fit_is_an_error_that_names_the_file(scheme, content, message):
    with pytest.raises(SettingsError, match=message) as caught:
        scheme(content)
    assert "scheme.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scheme_file_that_is_not_there_is_an_error():
    with pytest.raises(SettingsError, match="cannot be read"):
        read_scheme("no/such/scheme.json", ())


def with_border() -> list[UnitPlan]:
    """Five units of which the third has no layer: torch cannot run it."""
    layers = (("a",), ("b", "c"), (), ("d",), ("e",))
    return [UnitPlan(f"u{i}", (f"n{i}",), names, (f"t{i}",), (f"t{i + 1}",), 1.0) for i, names in enumerate(layers)]


@pytest.mark.parametrize(
    ("content", "groups"),
    [
        ([1, 2, 3, 4, 5], ((0,), (1,), (2,), (3,), (4,))),
        ([[1, 1], 2, [3, 3]], ((0, 1), (2,), (3, 4))),
        ({"units": [["a"], ["b", "c"], ["d"], ["e"]]}, ((0,), (1,), (2,), (3,), (4,))),
        ({"units": [["a", "b", "c"], ["d", "e"]]}, ((0, 1), (2,), (3, 4))),
    ],
)
def test_unit_that_torch_cannot_run_stands_alone(tmp_path, content, groups):
    path = tmp_path / "scheme.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_scheme(path, with_border()) == groups


@pytest.mark.parametrize("content", [[1, [2, 2], 3, 4], [1, 2, [3, 3], 4], [1, [2, 2, 2], 3], [[1, 1, 1], 2, 3]])
def test_nothing_is_joined_with_a_unit_that_torch_cannot_run(tmp_path, content):
    path = tmp_path / "scheme.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SettingsError, match="nothing can be joined with 'u2'"):
        read_scheme(path, with_border())


def test_units_on_both_sides_of_a_border_are_no_group(tmp_path):
    path = tmp_path / "scheme.json"
    path.write_text(json.dumps({"units": [["a"], ["b", "c", "d"], ["e"]]}), encoding="utf-8")
    with pytest.raises(SettingsError, match="in the model's order"):
        read_scheme(path, with_border())


def test_the_nearest_name_is_suggested_for_the_first_that_is_unknown(scheme):
    with pytest.raises(SettingsError, match=r"'conv9' is not .* did you mean 'conv[1-4]'"):
        scheme({"units": [["stem"], ["conv9", "shortcat"]]})
    with pytest.raises(SettingsError, match=r"'zzz' is not .* mrecg-onnx inspect lists them"):
        scheme({"units": [["zzz", "conv9"]]})
