"""The container packed: the smallest types, and every code survives."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from helpers.contained import quantized
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from mrecg_onnx.running import open_session
from mrecg_onnx.writing.containers import Contained, contained


def left(held: Contained) -> list[str]:
    """Notes on what stays in 8-bit types, without those on the versions that the others need."""
    return [note for note in held.notes if "need onnxruntime" not in note]


def test_each_layer_gets_the_smallest_type_that_holds_its_bits() -> None:
    four = {TensorProto.UINT4, TensorProto.INT4}  # signed where a layer's codes happen to fit it
    for bits, kinds in ((2, {TensorProto.UINT2}), (3, four), (4, four), (5, {TensorProto.INT8})):
        held = contained(quantized("residual", bits, 4, bits), "packed")
        weights = [
            t for t in held.model.graph.initializer if len(t.dims) == 4 and t.name.endswith(("quantized", "packed"))
        ]
        assert {t.data_type for t in weights} <= kinds
        assert bool(left(held)) == (bits > 4)
        per_byte = {2: 4, 3: 2, 4: 2, 5: 1}[bits]
        assert all(len(t.raw_data) == -(-np.prod(t.dims) // per_byte) for t in weights)


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
    assert (not left(held)) == (bits <= 4 or codes.size == 0 or np.ptp(codes, axis=1 - axis).max() < 16)
