"""The container typed: true 4-bit tensors where ONNX Runtime loads them."""

from __future__ import annotations

from collections import Counter

import onnx
from helpers.contained import quantized
from onnx import TensorProto

from mrecg_onnx.writing.containers import contained


def types(model: onnx.ModelProto) -> Counter[int]:
    return Counter(tensor.data_type for tensor in model.graph.initializer)


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
