"""Operators and kernels are counted as ONNX Runtime runs them, and a provider that ran nothing is refused."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

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
from mrecg_onnx.running.kernel_counts import kernels_of
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


def profile(runs: list[dict[str, list[int]]]) -> list[dict[str, Any]]:
    """Events as ONNX Runtime writes them: of each run the microseconds of every node."""
    found: list[dict[str, Any]] = [{"cat": "Session", "name": "model_loading_uri", "ts": 1, "dur": 9}]
    clock = 1000
    for run in runs:
        begin = clock
        for node, durations in run.items():
            for duration in durations:
                args = {"op_name": node.split("_")[0], "provider": "CPUExecutionProvider", "node_index": node[-1]}
                found.append({"cat": "Node", "name": f"{node}_kernel_time", "ts": clock, "dur": duration, "args": args})
                clock += duration
        found.append({"cat": "Session", "name": "model_run", "ts": begin, "dur": clock - begin})
        clock += 100
    return found


def test_outliers_and_the_first_run_do_not_count_in_a_profile() -> None:
    """The one long wait for a worker thread made a Transpose 86 % of a network."""
    usual: dict[str, list[int]] = {"Transpose_1": [10], "Conv_2": [40], "Conv_3": [50]}
    runs = [{**usual, "Conv_3": [9000]}, {**usual, "Transpose_1": [3800]}, usual, {**usual, "Transpose_1": [3300]}]
    found = kernels_of(profile([*runs, usual, usual]))
    assert [(k.op, k.count, round(1e6 * k.seconds)) for k in found] == [("Conv", 2, 90), ("Transpose", 1, 10)]


def test_a_node_in_a_loop_takes_what_all_its_turns_take_and_one_in_a_branch_what_it_takes_when_it_runs() -> None:
    runs: list[dict[str, list[int]]] = [{"Add_1": [9, 9, 9]}, {"Add_1": [2, 3, 4], "Sin_2": [5]}, {"Add_1": [1, 3, 5]}]
    assert [(k.op, round(1e6 * k.seconds)) for k in kernels_of(profile(runs))] == [("Add", 9), ("Sin", 5)]
    assert [round(1e6 * k.seconds) for k in kernels_of(profile(runs[:1]))] == [27]  # no other run


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
