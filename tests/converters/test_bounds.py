"""What a small file may ask for: calls that multiply, runs that do not end, names asked for ten thousand times."""

from __future__ import annotations

import cProfile
import pstats

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mrecg_onnx.converters import deadline, load_model, normalize
from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.parity import run_onnx
from mrecg_onnx.converters.passes.functions import MOST_NODES, require_bounded
from mrecg_onnx.converters.passes.values import naming, unique_name


def called(levels: int, times: int = 2) -> onnx.ModelProto:
    """The first function has one node, each further one calls the one before ``times`` times."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "f0", ["a"], ["b"], [helper.make_node("Abs", ["a"], ["b"])], opsets)]
    for level in range(1, levels):
        names = ["a", *[f"c{i}" for i in range(times - 1)], "b"]
        nodes = [
            helper.make_node(f"f{level - 1}", [i], [o], domain="own") for i, o in zip(names, names[1:], strict=False)
        ]
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], nodes, opsets))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    call = helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="own")
    graph = helper.make_graph([call], "g", [x], [y])
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def test_calls_are_counted_along_the_calls_and_refused_before_they_are_put_in_place():
    require_bounded(called(10))
    assert len(normalize(called(6)).graph) == 2**5
    with pytest.raises(ModelError, match=r"10\^18 nodes, more than 100,000"):
        load_model(called(62))
    most = MOST_NODES.bit_length()
    with pytest.raises(ModelError, match=r"is called 131,072 times in all"):
        require_bounded(called(most + 1))


def test_functions_in_a_circle_are_refused():
    model = called(3)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "f2", "own"
    with pytest.raises(ModelError, match=r"in a circle: 'f\d', 'f\d', 'f\d', 'f\d'; export"):
        load_model(model)


def endless() -> onnx.ModelProto:
    tensor = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Abs", ["before"], ["after"])],
        "body",
        [
            tensor("i", TensorProto.INT64, []),
            tensor("go", TensorProto.BOOL, []),
            tensor("before", TensorProto.FLOAT, [2]),
        ],
        [tensor("on", TensorProto.BOOL, []), tensor("after", TensorProto.FLOAT, [2])],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "", "x"], ["y"], "turns", body=body)],
        "g",
        [tensor("x", TensorProto.FLOAT, [2])],
        [tensor("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.array(2**60), "trips")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_run_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deadline, "_limit", 0.2)
    with pytest.raises(
        deadline.TimeLimitError, match=r"the loop 'turns'\) took longer than 0.2 s .* --timeout SECONDS"
    ):
        run_onnx(endless(), {"x": np.ones(2, np.float32)})


def test_a_loop_without_a_name_is_told_by_what_it_makes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deadline, "_limit", 0.2)
    model = endless()
    model.graph.node[0].name = ""
    with pytest.raises(deadline.TimeLimitError, match=r"the loop that makes 'y'\) took longer"):
        run_onnx(model, {"x": np.ones(2, np.float32)})


def test_names_kept_at_hand_are_those_of_the_graph():
    x = ir.Value(name="x")
    nodes = [ir.node("Relu", [x]), ir.node("Relu", [x])]
    for node, name in zip(nodes, ("a", "b"), strict=True):
        node.outputs[0].name = name
    graph = ir.Graph([x], [], nodes=nodes, name="g")
    with naming(graph):
        assert [unique_name(graph, wish) for wish in ("x", "a", "c")] == ["x_1", "a_1", "c"]
        nodes[0].outputs[0].name = "other"
        assert unique_name(graph, "a") == "a"  # given away
        nodes[1].outputs[0].name = "a_1"
        assert unique_name(graph, "a_1") == "a_1_1"


def wide_and_deep(blocks: int) -> onnx.ModelProto:
    """Residual blocks with a BatchNormalization to fold, clamps to fuse, shapes to resolve and constants to compute."""
    constants = {"w": np.ones((2, 2, 1, 1)), "p": np.ones(2), "six": np.array(6.0), "c": np.ones((1, 2, 1, 1))}
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    nodes, last = [], "x"

    def node(op: str, *inputs: str, **attributes: int) -> str:
        nodes.append(helper.make_node(op, inputs, [f"t{len(nodes)}"], f"n{len(nodes)}", **attributes))
        return f"t{len(nodes) - 1}"

    for _ in range(blocks):
        made = node("BatchNormalization", node("Conv", last, "w"), "p", "p", "p", "p")
        made = node("Min", node("Relu", node("Mul", made, node("Neg", "c"))), "six")
        last = node("Add", last, node("Reshape", made, node("Shape", last)))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2, 4, 4]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def steps(model: onnx.ModelProto) -> int:
    """Calls of functions that it takes to bring ``model`` into form: unlike time the same on every machine."""
    profile = cProfile.Profile()
    profile.runcall(normalize, model)
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]


def test_work_grows_with_the_nodes_and_not_with_their_square():
    normalize(wide_and_deep(2))
    assert steps(wide_and_deep(160)) < 6 * steps(wide_and_deep(40))
