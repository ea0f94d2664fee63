"""The command that converts containers and targets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.command_line import fails, works
from helpers.contained import quantized
from helpers.targets import on_sample
from packaging.version import Version

from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.writing.edited import as_written


def test_convert_there_and_back_gives_the_same_file(here: Path) -> None:
    nearest = ("--method", "nearest", "--samples", "8", "--threads", "1", "--first-last-bits", "4")
    works("quantize", "model.onnx", "--calib", "images", *nearest, "-o", "plain.onnx")
    result = works(
        "quantize", "model.onnx", "--calib", "images", *nearest, "--container", "packed", "-o", "packed.onnx"
    )
    assert "QLinearConv" in result.stdout
    said = works("convert", "plain.onnx", "--container", "packed").stdout
    assert "int8 -> packed" in said
    assert "the same bit for bit" in said
    assert Path("plain_packed.onnx").read_bytes() == Path("packed.onnx").read_bytes()
    assert Path("packed.onnx").stat().st_size < Path("plain.onnx").stat().st_size
    works("convert", "packed.onnx", "--container", "int8", "-o", "back.onnx")
    assert Path("back.onnx").read_bytes() == Path("plain.onnx").read_bytes()


@pytest.mark.skipif(
    Version(onnxruntime.__version__) < Version("1.31"), reason="computes wrong values from activations in 4-bit types"
)
def test_convert_to_the_types_of_the_standard(here: Path) -> None:
    given = (
        "--method",
        "nearest",
        "--samples",
        "8",
        "--threads",
        "1",
        "--first-last-bits",
        "4",
        "--container",
        "packed",
    )
    works("quantize", "model.onnx", "--calib", "images", *given, "-o", "packed.onnx")
    typed = works("convert", "packed.onnx", "--container", "typed", "-o", "typed.onnx").stdout
    assert "packed -> typed" in typed
    works("validate", "model.onnx", "typed.onnx", "--data", "images", "--repeats", "0")


def test_convert_says_as_json_what_it_made(here: Path) -> None:
    Path("q.onnx").write_bytes(quantized("residual").SerializeToString())
    found = json.loads(works("convert", "q.onnx", "--container", "packed", "--json", "-").stdout)
    assert found["output"] == "q_packed.onnx"
    assert (found["before"]["container"], found["after"]["container"]) == ("int8", "packed")
    assert found["after"]["size_bytes"] == Path("q_packed.onnx").stat().st_size
    assert found["compared"] is True
    assert found["opened"]["kernels"]
    packed = ("convert", "q.onnx", "--container", "packed", "--force")
    works(*packed, "--json", "found.json")
    assert json.loads(Path("found.json").read_text()) == found
    fails(*packed, "--json", "q.onnx", code=2, says=("--json q.onnx is the model itself",))
    fails(*packed, "--json", "q_packed.onnx", code=2, says=("--json q_packed.onnx is an output file",))


def test_convert_refuses_in_one_line(here: Path) -> None:
    fails("convert", "model.onnx", "--container", "packed", says=("model.onnx", "not written by mrecg-onnx quantize"))
    fails("convert", "nothing.onnx", code=2, says=("nothing.onnx",))
    fails("convert", "model.onnx", "--container", "int5", code=2, says=("int5", "int8"))


def test_convert_does_not_write_over_its_source(here: Path) -> None:
    Path("q.onnx").write_bytes(quantized("residual").SerializeToString())
    fails("convert", "q.onnx", "--container", "packed", "-o", "q.onnx", code=2, says=("is the model itself",))
    fails(
        "convert",
        "q.onnx",
        "--container",
        "packed",
        "-o",
        "nowhere/q.onnx",
        code=2,
        says=("there is no folder nowhere",),
    )


def test_a_file_of_another_tool_is_not_converted(here: Path) -> None:
    says = ("model.onnx: was not written by mrecg-onnx quantize",)
    fails("convert", "model.onnx", "--container", "packed", says=says)
    fails("convert", "model.onnx", "--target", "openvino", says=says)
    Path("text.onnx").write_text("no model")
    fails("convert", "text.onnx", "--container", "packed", says=("text.onnx",))


def test_convert_fixes_the_batch(here: Path) -> None:
    works(*on_sample("-o", "q.onnx"))
    said = works("convert", "q.onnx", "--container", "packed", "--batch", "2").stdout
    assert "the same bit for bit" in said
    fixed = onnx.load("q_packed_batch2.onnx")
    assert fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    works("convert", "q_packed_batch2.onnx", "--batch", "2", "-o", "again.onnx")
    assert (here / "again.onnx").read_bytes() == (here / "q_packed_batch2.onnx").read_bytes()
    fails("convert", "q.onnx", "--batch", "0", code=2, says=("batch 0", "at least one"))
    fails("convert", "q_packed_batch2.onnx", "--batch", "4", says=("q_packed_batch2.onnx", "has the fixed batch 2"))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"name":[]}', '{"mid":"x"}'])
@pytest.mark.parametrize(
    ("entry", "form"),
    [
        ("container", ("--container", "packed")),
        ("target", ("--target", "openvino")),
        ("target", ("--to", "tflite")),
        ("bits", ("--target", "qonnx")),
    ],
)
def test_metadata_that_cannot_be_read_are_named(here: Path, entry: str, form: tuple[str, ...], text: str) -> None:
    pytest.importorskip("ai_edge_litert" if "tflite" in form else "onnx")
    model = quantized("residual")
    kept = [one for one in model.metadata_props if one.key != f"mrecg_onnx.{entry}"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=f"mrecg_onnx.{entry}", value=text)
    Path("q.onnx").write_bytes(model.SerializeToString())
    fails(
        "convert",
        "q.onnx",
        *form,
        "-o",
        "made",
        says=(f"q.onnx: its metadata entry mrecg_onnx.{entry} cannot be read",),
    )
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("zero_point", "form"),
    [
        (np.zeros((2, 3), np.uint8), ("--target", "openvino")),
        (np.zeros(0, np.uint8), ("--target", "qonnx")),
        (np.zeros((), np.float32), ("--container", "typed")),
        (np.zeros(0, np.float32), ("--to", "tflite")),
    ],
)
def test_a_graph_that_was_changed_since_ends_in_a_line(
    here: Path, zero_point: np.ndarray, form: tuple[str, ...]
) -> None:
    pytest.importorskip("ai_edge_litert" if "tflite" in form else "onnx")
    model = quantized("residual")
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    held = next(tensor for tensor in model.graph.initializer if tensor.name == quantize.input[2])
    held.CopyFrom(onnx.numpy_helper.from_array(zero_point, held.name))
    Path("q.onnx").write_bytes(model.SerializeToString())
    said = fails("convert", "q.onnx", *form, "-o", "made", says=("q.onnx",))
    assert "unexpected" not in said
    assert not Path("made").exists()
    for surprise in (ValueError("x\ny"), AssertionError(), IndexError("z")):
        with pytest.raises(ModelError, match=r"^q: its graph is not as .* writes it \(\w+: \w+\)"), as_written("q"):
            raise surprise
    with pytest.raises(SettingsError, match=r"^stays$"), as_written("q"):
        raise SettingsError("stays")
