"""Shape inference follows sizes where they are few, alone in a process where that cannot be told, and never without end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mrecg_onnx.converters.passes import inference, shapes
from mrecg_onnx.converters.passes.lengths import followed_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import NodeProto

Calls = list[tuple[bool, bool]]


def model(nodes: Sequence[NodeProto], shape: Sequence[int | str], **constants: Any) -> ir.Model:
    graph = helper.make_graph(
        list(nodes),
        "sizes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def flattened() -> ir.Model:
    """x, flattened by its own sizes: y has N times 32 elements."""
    nodes = [
        helper.make_node("Shape", ["x"], ["all"]),
        helper.make_node("Gather", ["all", "first"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    return model(nodes, ["N", 4, 8], first=np.array([0]), rest=np.array([32]))


def made_by_sizes(factor: int) -> ir.Model:
    """A vector of 4 * factor elements, whose length follows from the shape of x, is added to itself, and to y."""
    nodes = [
        helper.make_node("Shape", ["x"], ["all"]),
        helper.make_node("Gather", ["all", "second"], ["n"]),
        helper.make_node("Mul", ["n", "factor"], ["many"]),
        helper.make_node("ConstantOfShape", ["many"], ["vector"]),
        helper.make_node("Add", ["vector", "vector"], ["y"]),
    ]
    return model(nodes, ["N", 4], second=np.array([1]), factor=np.array([factor]))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """(with sizes, in a process of its own) of each inference."""
    found: Calls = []

    def run(of: ir.Model, *, data_prop: bool, apart: bool = False) -> bool:
        found.append((data_prop, apart))
        return inference.run_inference(of, data_prop=data_prop, apart=apart)

    monkeypatch.setattr(shapes, "run_inference", run)
    return found


def output(of: ir.Model) -> list[int | str | None]:
    found = of.graph.outputs[0].shape
    assert found is not None
    return [size if isinstance(size, int) else size.value for size in found]


def test_sizes_of_a_shape_are_followed_in_this_process(calls: Calls):
    graph = shapes.infer_shapes(flattened())
    assert output(graph) == ["N", 32]
    assert calls[-1] == (True, False)
    # Of shape 3, gathered 1, constants 1 and 1, joined 2.
    assert followed_sizes(graph.graph.all_nodes()) == 8


def test_a_vector_whose_length_follows_from_sizes_is_inferred_in_another_process(calls: Calls):
    graph = made_by_sizes(3)
    assert followed_sizes(graph.graph.all_nodes()) == math.inf
    assert output(shapes.infer_shapes(graph)) == [12]
    assert calls == [(False, False), (True, True)]


def test_one_that_would_take_all_memory_is_left_and_not_tried_again(calls: Calls):
    graph = shapes.infer_shapes(made_by_sizes(10**9))
    assert calls == [(False, False), (True, True), (False, False)]
    shapes.infer_shapes(graph)
    assert calls[3:] == [(False, False)]


def test_where_no_other_process_starts_sizes_are_not_followed(calls: Calls, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inference.sys, "executable", "/nowhere/python")
    graph = shapes.infer_shapes(made_by_sizes(3))
    assert output(graph) != [12]
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("op", "inputs", "size", "least"),
    [
        ("Add", ["x", "x"], 2**40, 2**40),
        ("Mul", ["x", "one"], 2**40, 2**40),
        ("Cast", ["x"], 10**7, 10**7),
        ("Concat", ["x", "x"], 10**7, 2 * 10**7),
        ("Gather", ["one", "x"], 10**7, 10**7),
    ],
)
def test_long_vectors_are_counted_and_not_followed(
    calls: Calls, op: str, inputs: list[str], size: int, least: int
) -> None:
    attributes: dict[str, Any] = {"Cast": {"to": TensorProto.DOUBLE}, "Concat": {"axis": 0}}.get(op, {})
    graph = model([helper.make_node(op, inputs, ["y"], **attributes)], [size], one=np.ones(1, np.float32))
    assert followed_sizes(graph.graph.all_nodes()) >= least
    shapes.infer_shapes(graph)
    assert calls == [(False, False)]


def test_maps_hold_no_sizes():
    nodes = [helper.make_node("Add", ["x", "x"], ["v"]), helper.make_node("Mul", ["v", "x"], ["y"])]
    graph = shapes.infer_shapes(model(nodes, ["N", 64, 512, 512]))
    assert followed_sizes(graph.graph.all_nodes()) == 0


def test_the_limits_of_this_process_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    """Other threads of a program allocate meanwhile."""
    resource = pytest.importorskip("resource")

    def refuse(*_: object) -> None:
        raise AssertionError("the limit of the whole process is changed")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    for made in (flattened(), made_by_sizes(3), made_by_sizes(10**9)):
        shapes.infer_shapes(made)
