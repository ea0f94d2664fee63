"""What forms of a file need of ONNX Runtime: found in the graph, written into the metadata, read back."""

from __future__ import annotations

import json

import onnx
import onnx.parser
import pytest
from helpers.targets import quantized

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.metadata_keys import CONTAINER_KEY, REQUIRES_KEY
from mrecg_onnx.targets.needed_versions import (
    Requirement,
    note_requirements,
    requirements,
    stored_note,
    stored_requirements,
    unmet,
)
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing.containers import contained
from mrecg_onnx.writing.retargeting import retarget


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def needs(model: onnx.ModelProto) -> dict[str, str]:
    """What the metadata say, which is what the graph says."""
    stored = stored_requirements(metadata(model)) or ()
    assert stored == requirements(model)
    return {row.version: row.otherwise for row in stored}


@pytest.mark.parametrize(
    ("container", "bits", "expected"),
    [
        ("int8", (4, 4), {}),
        ("packed", (8, 8), {}),
        ("packed", (4, 4), {"1.23": "refused"}),
        ("packed", (2, 4), {"1.24": "refused"}),
        ("typed", (4, 4), {"1.31": "wrong values"}),
        ("typed", (4, 8), {}),
    ],
)
def test_each_container_says_what_it_needs(container: str, bits: tuple[int, int], expected: dict[str, str]) -> None:
    """What files of these containers did on versions 1.22 to 1.32; the highest version is what counts."""
    held = contained(quantized("residual", "ort", *bits), container)
    found = needs(held.model)
    assert expected.items() <= found.items()
    assert max(found, default="") == max(expected, default="")
    assert sum("need onnxruntime" in note for note in held.notes) == len(found)
    assert (REQUIRES_KEY in metadata(held.model)) == bool(found)


def test_the_entry_goes_with_the_container() -> None:
    plain = quantized("residual")
    packed = contained(plain, "packed").model
    assert contained(packed, "int8").model.SerializeToString() == plain.SerializeToString()
    assert needs(contained(packed, "typed").model) == {"1.31": "wrong values"}


def test_a_portable_file_is_slower_below() -> None:
    aimed = retarget(quantized("residual", "portable", 8, 8), load_target("portable"))
    assert needs(aimed) == {"1.23": "slower"}
    assert not needs(retarget(quantized("residual", "qnn", 4, 4), load_target("qnn")))


@pytest.mark.parametrize(
    ("attributes", "opset", "wrong"),
    [
        ("pads = [0, 0, 1, 1], count_include_pad = 1", 19, True),
        ("pads = [0, 1, 0, 1], count_include_pad = 1", 22, True),
        ("pads = [0, 0, 1, 1], count_include_pad = 1", 17, False),
        ("pads = [1, 1, 1, 1], count_include_pad = 1", 19, False),
        ("pads = [0, 0, 1, 1]", 19, False),
        ("count_include_pad = 1", 19, False),
    ],
)
def test_pools_that_count_unequal_pads_need_a_newer_runtime(attributes: str, opset: int, *, wrong: bool) -> None:
    pool = f"AveragePool <kernel_shape = [2, 2], {attributes}> (x)"
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[1, 1, 4, 4] x) => (float[1, 1, h, w] y) {{ y = {pool} }}'
    found = requirements(onnx.parser.parse_model(text))
    assert [row.version for row in found] == (["1.25"] if wrong else [])


def test_what_is_written_is_plain_json() -> None:
    held = contained(quantized("residual"), "typed").model
    (row,) = json.loads(metadata(held)[REQUIRES_KEY])
    assert row == {
        "package": "onnxruntime",
        "version": "1.31",
        "reason": "activations in 4-bit types",
        "otherwise": "wrong values",
    }
    before = held.SerializeToString()
    note_requirements(held)
    assert held.SerializeToString() == before


def row(**fields: object) -> str:
    """An entry of one row that is right but for ``fields``."""
    return json.dumps([{"package": "onnxruntime", "version": "99", "reason": "b", "otherwise": "slower"} | fields])


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "3", '[{"package": "onnxruntime"}]', '[{"package":"a","version":"x","reason":"b","otherwise":"slower"}]',
     '[{"package":"a","version":"1","reason":"b","otherwise":"explodes"}]', "[" * 100_000, row(version=1), row(version=1.5),
     row(version="9" * 5000), row(version="\u0663"), row(otherwise=[]), row(otherwise={}), row(reason="x" * 10_000),
     row(package=None), "[" + ",".join([row()[1:-1]] * 1000) + "]"],
)  # fmt: skip
def test_entries_of_other_tools_say_nothing(text: str) -> None:
    assert stored_requirements({REQUIRES_KEY: text}) is None
    assert stored_requirements({}) is None


def test_a_row_that_is_right_is_read() -> None:
    found = stored_requirements({REQUIRES_KEY: row()})
    assert found is not None
    assert unmet(found, "onnxruntime", "1.32") == found


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '"x"', "{}", '{"name":3}', '{"name":[]}', '{"name":""}', "[" * 100_000, "9" * 5000,
     '{"name":"' + "x" * 10_000 + '"}', '{"name":"packed","opset":13}', '{"name":"packed","opset":-1,"ir_version":8}',
     '{"name":"packed","opset":"x","ir_version":8}', '{"name":"packed","opset":13,"ir_version":null}',
     '{"name":"packed","opset":13,"ir_version":99999999999999999999}'],
)  # fmt: skip
@pytest.mark.parametrize("key", [CONTAINER_KEY, "mrecg_onnx.target"])
def test_notes_that_are_none_end_in_a_line(key: str, text: str) -> None:
    with pytest.raises(ModelError, match=rf"^a\.onnx: its metadata entry {key} cannot be read$"):
        stored_note({key: text}, key, "a.onnx")
    assert stored_note({}, key) == {}


@pytest.mark.parametrize(
    ("installed", "old"),
    [
        ("1.30.0", True),
        ("1.31.0", False),
        ("1.31.1", False),
        ("1.32.0.dev20261101", False),
        ("2.0", False),
        ("1.9.2", True),
    ],
)
def test_versions_are_numbers(installed: str, old: bool) -> None:
    row = Requirement("onnxruntime", "1.31", "activations in 4-bit types", "wrong values")
    assert unmet((row,), "onnxruntime", installed) == ((row,) if old else ())
    assert unmet((row,), "openvino", installed) == ()
