"""Containers: three forms of one graph that compute the same, bit for bit, and the way back."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from helpers.architectures import PATTERNS, conv_clip, residual
from helpers.command_line import fails, works
from helpers.stages import feeds, simulated, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.converters.passes.opset import raise_opset
from mrecg_onnx.preparation import editable_graph
from mrecg_onnx.runtimes import fused_op_counts, open_session
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing.containers import CONTAINER_KEY, CONTAINERS, contained, container_of
from mrecg_onnx.writing.qdq import export
from mrecg_onnx.writing.retargeting import retarget

VERSION = {"mrecg_onnx.version": "test"}


@cache
def _file(pattern: str, wbits: int, abits: int, ends: int = 8) -> bytes:
    stage = simulated(PATTERNS[pattern](), wbits=wbits, abits=abits, first_last_bits=ends)
    return export(stage.graph, stage.simulation, VERSION).model.SerializeToString()


def quantized(pattern: str, wbits: int = 4, abits: int = 4, ends: int = 8) -> onnx.ModelProto:
    return onnx.load_from_string(_file(pattern, wbits, abits, ends))


def outputs(model: onnx.ModelProto, level: str = "off") -> list[np.ndarray]:
    return open_session(model, level=level, threads=1).run(None, feeds(model, 4))


def types(model: onnx.ModelProto) -> Counter[int]:
    return Counter(tensor.data_type for tensor in model.graph.initializer)


@pytest.mark.parametrize(
    ("pattern", "bits"),
    [
        *((pattern, bits) for pattern in PATTERNS for bits in ((4, 4, 8), (2, 4, 2))),
        *(("residual", bits) for bits in ((3, 3, 4), (8, 8, 8), (4, 32, 8))),
    ],
)
def test_all_containers_compute_the_same_as_written_and_open_at_the_default_level(
    pattern: str, bits: tuple[int, int, int]
) -> None:
    plain = quantized(pattern, *bits)
    before = plain.SerializeToString()
    for name in CONTAINERS:
        held = contained(plain, name).model
        assert container_of(held) == name
        onnx.checker.check_model(held, full_check=True)
        for x, y in zip(outputs(plain), outputs(held), strict=True):
            np.testing.assert_array_equal(x, y)
        fused = outputs(held, "all")
        if name == "packed":
            for x, y in zip(outputs(plain, "all"), fused, strict=True):
                np.testing.assert_array_equal(x, y)
            assert fused_op_counts(held) == fused_op_counts(plain)
        back = contained(held, "int8").model
        if name != "typed":
            assert back.SerializeToString() == before
        for x, y in zip(outputs(plain), outputs(back), strict=True):
            np.testing.assert_array_equal(x, y)
    assert plain.SerializeToString() == before


def test_each_layer_gets_the_smallest_type_that_holds_its_bits() -> None:
    for bits, kind in ((2, TensorProto.UINT2), (3, TensorProto.UINT4), (4, TensorProto.UINT4), (5, TensorProto.INT8)):
        held = contained(quantized("residual", bits, 4, bits), "packed")
        weights = [
            t for t in held.model.graph.initializer if len(t.dims) == 4 and t.name.endswith(("quantized", "packed"))
        ]
        assert {t.data_type for t in weights} == {kind}
        assert bool(held.notes) == (bits > 4)
        per_byte = {TensorProto.UINT2: 4, TensorProto.UINT4: 2, TensorProto.INT8: 1}[kind]
        assert all(len(t.raw_data) == -(-np.prod(t.dims) // per_byte) for t in weights)


def test_opset_and_ir_version_are_those_that_the_types_need() -> None:
    for bits, opset, version in ((2, 25, 13), (4, 21, 10)):
        held = contained(quantized("conv_clip", bits, 4, bits), "packed").model
        assert (held.opset_import[0].version, held.ir_version) == (opset, version)


def test_a_tensor_that_the_runtime_does_not_load_in_four_bits_stays_wide_and_is_named() -> None:
    held = contained(quantized("max_pool"), "typed")
    assert any("stay" in note for note in held.notes)
    wide = [n for n in held.model.graph.node if n.op_type == "MaxPool"]
    made = {o: n for n in held.model.graph.node for o in n.output}
    for node in wide:
        zero = next(t for t in held.model.graph.initializer if t.name == made[node.input[0]].input[2])
        assert zero.data_type == TensorProto.UINT8


def test_typed_has_true_four_bit_tensors_and_no_clip_where_the_type_is_the_bound() -> None:
    plain = quantized("conv_clip", 4, 4, 4)
    held = contained(plain, "typed").model
    kinds = types(held)
    assert kinds[TensorProto.UINT4] + kinds[TensorProto.INT4] > 0
    clips = [sum(n.op_type == "Clip" for n in m.graph.node) for m in (plain, held)]
    assert clips[1] < clips[0]


@pytest.mark.parametrize("first", CONTAINERS)
@pytest.mark.parametrize("second", CONTAINERS)
def test_containers_are_reached_from_each_other(first: str, second: str) -> None:
    plain = quantized("residual")
    there = contained(contained(plain, first).model, second).model
    assert container_of(there) == second
    for x, y in zip(outputs(plain), outputs(there), strict=True):
        np.testing.assert_array_equal(x, y)
    if second == "int8":
        assert CONTAINER_KEY not in {entry.key for entry in there.metadata_props}


def test_files_of_other_tools_are_refused() -> None:
    model = conv_clip()
    with pytest.raises(ModelError, match=r"not written by mrecg-onnx"):
        contained(model, "packed")
    strange = quantized("residual")
    strange.metadata_props.add(key=CONTAINER_KEY, value='{"name": "later"}')
    with pytest.raises(ModelError, match="'later' is unknown"):
        contained(strange, "packed")
    strange.metadata_props[-1].value = "["
    with pytest.raises(ModelError, match="cannot be read"):
        contained(strange, "packed")
    with pytest.raises(SettingsError, match="choose one of int8, packed, typed"):
        contained(residual(), "int3")


# --- other readers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["ort", "openvino", "qnn"])
@pytest.mark.parametrize("pattern", ["residual", "depthwise", "average_pool", "concat", "matmul_add", "hardswish_gate"])
def test_written_files_run_in_the_reference_evaluator(pattern: str, target: str) -> None:
    model, rules = PATTERNS[pattern](), load_target(target)
    graph = editable_graph(model, Settings(target=target))
    stage = simulated(graph, tensors(model), wbits=4, abits=4, target=target)
    plain = retarget(export(stage.graph, stage.simulation, VERSION).model, rules)
    for container in rules.containers:
        held = contained(plain, container, highest=rules.opset[1]).model
        for x, y in zip(outputs(held), ReferenceEvaluator(held).run(None, feeds(held, 4)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * np.abs(x).max())


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("pattern", "bits"), [("depthwise", (4, 4, 4)), ("gemm", (2, 4, 8)), ("residual", (4, 32, 8))])
def test_the_runtime_converts_files_to_its_mobile_format(
    pattern: str, bits: tuple[int, int, int], container: str, tmp_path: Path
) -> None:
    held = contained(quantized(pattern, *bits), container).model
    onnx.save(held, tmp_path / "model.onnx")
    convert_onnx_models_to_ort(tmp_path, optimization_styles=[OptimizationStyle.Fixed])
    assert (tmp_path / "model.ort").is_file()
    if container == "typed":  # the format has no 4-bit types: ONNX Runtime 1.32 writes such a file and does not open it
        return
    for x, y in zip(outputs(held, "all"), outputs_of(tmp_path / "model.ort", feeds(held, 4)), strict=True):
        np.testing.assert_array_equal(x, y)


def outputs_of(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, inputs)
    return found


def test_a_zero_point_is_written_out_once_for_layers_of_so_many_channels() -> None:
    held = contained(quantized("residual"), "packed").model
    assert all(len(n.input) == 3 for n in held.graph.node if n.op_type == "DequantizeLinear")
    zeros = [t.name for t in held.graph.initializer if t.name.startswith("zeros_")]
    readers = [name for n in held.graph.node for name in n.input if name in zeros]
    assert len(set(readers)) == len(zeros) < len(readers)


def test_packed_files_without_zero_points_can_still_be_read() -> None:
    plain = quantized("residual")
    older = contained(plain, "packed").model
    for node in older.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[2].startswith("zeros_"):
            del node.input[2]
    kept = [t for t in older.graph.initializer if not t.name.startswith("zeros_")]
    del older.graph.initializer[:]
    older.graph.initializer.extend(kept)
    assert contained(older, "int8").model.SerializeToString() == plain.SerializeToString()


# --- the command -----------------------------------------------------------------------------------------------------


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
    typed = works("convert", "packed.onnx", "--container", "typed", "-o", "typed.onnx").stdout
    assert "packed -> typed" in typed
    works("validate", "model.onnx", "typed.onnx", "--data", "images", "--repeats", "0")


def test_convert_refuses_in_one_line(here: Path) -> None:
    fails("convert", "model.onnx", "--container", "packed", says=("model.onnx", "not written by mrecg-onnx quantize"))
    fails("convert", "nothing.onnx", says=("nothing.onnx",))
    fails("convert", "model.onnx", "--container", "int5", code=2, says=("int5", "int8"))


def test_convert_does_not_write_over_its_source(here: Path) -> None:
    Path("q.onnx").write_bytes(_file("residual", 4, 4))
    fails("convert", "q.onnx", "--container", "packed", "-o", "q.onnx", code=2, says=("is the model itself",))
    fails("convert", "q.onnx", "--container", "packed", "-o", "nowhere/q.onnx", says=("there is no folder nowhere",))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 5), st.integers(2, 5), st.integers(0, 2**32 - 1), st.booleans(), st.integers(0, 1)
)
def test_any_codes_survive_packing(channels: int, size: int, bits: int, seed: int, symmetric: bool, axis: int) -> None:
    """Of each channel any window of 2^bits codes within INT8; odd numbers of codes, too."""
    random = np.random.default_rng(seed)
    low = random.integers(-127, 128 - 2**bits, 1 if symmetric else channels)
    codes = (random.integers(0, 2**bits, (channels, size)) + np.resize(low, channels)[:, None]).astype(np.int8)
    codes = codes if axis == 0 else codes.T.copy()
    node = onnx.helper.make_node("DequantizeLinear", ["w_quantized", "w_scale", "w_zero_point"], ["y"], axis=axis)
    constants = {
        "w_quantized": codes,
        "w_scale": np.ones(channels, np.float32),
        "w_zero_point": np.zeros(channels, np.int8),
    }
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, codes.shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
    model.metadata_props.add(key="mrecg_onnx.version", value="test")
    model = ir.to_proto(ir.from_proto(model))
    held = contained(model, "packed")
    found = open_session(held.model, level="off").run(None, {})[0]
    np.testing.assert_array_equal(found, codes)
    assert contained(held.model, "int8").model == model
    assert (not held.notes) == (bits <= 4 or codes.size == 0 or np.ptp(codes, axis=1 - axis).max() < 16)


def test_a_model_is_raised_above_13_where_operators_changed() -> None:
    text = """<ir_version: 7, opset_import: ["" : 13]>
    g (float[2, 4] x) => (float[2, 1] m, float[2, 2] a, float[2, 2] b) {
        m = ReduceMean <axes = [1]> (x)
        a, b = Split <axis = 1> (x)
    }"""
    model = onnx.parser.parse_model(text)
    raised = ir.to_proto(raise_opset(ir.from_proto(model), 25))
    onnx.checker.check_model(raised, full_check=True)
    feed = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    for x, y in zip(open_session(model).run(None, feed), open_session(raised).run(None, feed), strict=True):
        np.testing.assert_array_equal(x, y)
