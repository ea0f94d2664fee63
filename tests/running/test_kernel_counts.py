"""Operators and kernels are counted as ONNX Runtime runs them, and a provider that ran nothing is refused."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from helpers.architectures import residual
from helpers.classifiers import classifier, qdq_conv
from helpers.stages import feeds, simulated
from onnx import TensorProto, helper

from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.running import (
    Kernel,
    check_provider,
    elsewhere,
    fused_op_counts,
    kernels,
)
from mrecg_onnx.writing.qdq import export


def test_fused_op_counts_are_those_of_the_graph_that_runs():
    counts = fused_op_counts(qdq_conv())
    assert (counts["QLinearConv"], counts["Conv"], counts["Relu"]) == (1, 0, 0)
    assert (counts["QuantizeLinear"], counts["DequantizeLinear"]) == (1, 1)  # six in the file
    assert "QLinearConv" not in fused_op_counts(classifier())


def test_fused_op_counts_look_into_subgraphs():
    def branch(name, op):
        node = helper.make_node(op, ["x"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch("a", "Sin"), else_branch=branch("b", "Cos"))]
    inputs = [
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert fused_op_counts(model) == Counter(If=1, Sin=1, Cos=1)


def test_fused_op_counts_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fused_op_counts(classifier())
    assert list(tmp_path.iterdir()) == []


def test_kernels_are_those_of_the_optimized_graph() -> None:
    stage = simulated(residual())
    model = export(stage.graph, stage.simulation, {}).model
    found = kernels(model, feeds(model, 2), threads=1)
    assert {k.op: k.count for k in found} == dict(fused_op_counts(model))
    assert all(math.isfinite(k.seconds) and k.seconds >= 0 for k in found)
    assert [k.seconds for k in found] == sorted((k.seconds for k in found), reverse=True)


@pytest.mark.parametrize("name", ['say "conv"', "a\nb\x1b]0;", "back\\", '"op_name" : "None"', "é"])
def test_a_name_of_any_characters_is_read(name: str) -> None:
    """ONNX Runtime below 1.31 writes names into its profile as they are."""
    model = classifier()
    model.graph.node[0].name = name
    assert {k.op: k.count for k in kernels(model, feeds(model, 2), threads=1)} == dict(fused_op_counts(model))


def test_a_provider_that_left_all_the_work_to_another_is_an_error() -> None:
    cpu, cuda = (Kernel("Conv", f"{name}ExecutionProvider", 1, 0.1) for name in ("CPU", "CUDA"))
    check_provider([cpu, cuda], "cuda", "m.onnx")
    with pytest.raises(SettingsError, match=r"m\.onnx: 'cuda' ran none of its nodes, CPUExecutionProvider ran all"):
        check_provider([cpu], "cuda", "m.onnx")


def test_what_a_provider_leaves_to_another_is_said() -> None:
    cpu, cuda = (Kernel("Conv", f"{name}ExecutionProvider", n, 0.1) for name, n in (("CPU", 2), ("CUDA", 3)))
    assert elsewhere([cpu, cuda], "cuda") == "2 of 5 nodes on CPUExecutionProvider"
    assert not elsewhere([cuda], "cuda")
