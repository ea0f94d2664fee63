"""Small files that ask for much: graphs that grow when they are read, runs that do not end, numbers beyond reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.hostile import Arguments, Case, Hostile, model_and_images, rows
from onnx import ModelProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx import FunctionProto, NodeProto

    Array = np.ndarray

INT64_MAX = 2**63 - 1
# Steps of a Scan: 80 MB of numbers, minutes of steps.
ROWS = 20_000_000


def model(
    nodes: Sequence[NodeProto],
    constants: dict[str, Array] | None = None,
    functions: Sequence[FunctionProto] = (),
    shape: Sequence[int | str] = ("N", 4, 8, 8),
) -> ModelProto:
    """x -> Conv -> v, then ``nodes``, then a Conv of what they call w -> y."""
    kernel = np.ones((4, 4, 1, 1), np.float32)
    tensors = {"k": kernel, **(constants or {})}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "k"], ["v"], "first"),
            *nodes,
            helper.make_node("Conv", ["w", "k"], ["y"], "last"),
        ],
        "bounds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid("own", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def inspected(made: Callable[[], ModelProto]) -> Callable[[Path], Arguments]:
    def make(folder: Path) -> Arguments:
        (folder / "model.onnx").write_bytes(made().SerializeToString())
        return "inspect", "model.onnx"

    return make


# --- functions -------------------------------------------------------------------------------------------------------


def function(name: str, body: Sequence[NodeProto]) -> FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["b"], list(body), opsets)


def doubling(levels: int) -> ModelProto:
    """Each function calls the one before twice."""
    functions = [function("f0", [helper.make_node("Relu", ["a"], ["b"])])]
    for level in range(1, levels):
        calls = [("a", "c"), ("c", "b")]
        nodes = [helper.make_node(f"f{level - 1}", [i], [o], domain="own") for i, o in calls]
        functions.append(function(f"f{level}", nodes))
    return model([helper.make_node(f"f{levels - 1}", ["v"], ["w"], domain="own")], functions=functions)


def circle(length: int) -> ModelProto:
    names = [f"f{i}" for i in range(length)]
    functions = [
        function(name, [helper.make_node(names[(i + 1) % length], ["a"], ["b"], domain="own")])
        for i, name in enumerate(names)
    ]
    return model([helper.make_node("f0", ["v"], ["w"], domain="own")], functions=functions)


def many_calls() -> ModelProto:
    calls = 20_000
    nodes = [helper.make_node("f0", [f"v{i}" if i else "v"], [f"v{i + 1}"], domain="own") for i in range(calls)]
    nodes.append(helper.make_node("Relu", [f"v{calls}"], ["w"]))
    return model(nodes, functions=[function("f0", [helper.make_node("Relu", ["a"], ["b"])])])


CIRCLE = ("model.onnx", "functions")
FUNCTIONS = [
    Case(
        "30 functions, each calling the one before twice", inspected(lambda: doubling(30)), says=("536,870,914 nodes",)
    ),
    Case("200 functions, each calling the one before twice", inspected(lambda: doubling(200)), says=("10^59 nodes",)),
    Case("a function called 20,000 times", inspected(many_calls), says=("too many calls", "20,000 times")),
    Case("a function that calls itself", inspected(lambda: circle(1)), says=CIRCLE),
    Case("three functions in a circle", inspected(lambda: circle(3)), says=CIRCLE),
    Case("ten doubling functions", inspected(lambda: doubling(10)), code=0, cpu_s=20),
]

# --- constants -------------------------------------------------------------------------------------------------------


def constants(op: str, *inputs: Array | None, **attributes: object) -> ModelProto:
    """An operator on constants, whose largest element is added to v."""
    tensors = {f"c{i}": array for i, array in enumerate(inputs) if array is not None}
    names = [f"c{i}" if array is not None else "" for i, array in enumerate(inputs)]
    nodes = [
        helper.make_node(op, names, ["made"], "maker", **attributes),
        helper.make_node("ReduceMax", ["made"], ["one"], keepdims=0),
        helper.make_node("Cast", ["one"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["v", "float"], ["w"]),
    ]
    return model(nodes, tensors)


def joined_with_itself() -> ModelProto:
    nodes = [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(24)]
    nodes.append(helper.make_node("ReduceMax", ["c24"], ["one"], keepdims=0))
    nodes.append(helper.make_node("Add", ["v", "one"], ["w"]))
    return model(nodes, {"c0": np.ones(512, np.float32)})


def sixteen_each() -> ModelProto:
    """Constants below the bound of one, 4 GB together."""
    names, nodes = ["v"], []
    for i in range(300):
        nodes.append(helper.make_node("ConstantOfShape", ["size"], [f"c{i}"]))
        nodes.append(helper.make_node("ReduceMax", [f"c{i}"], [f"m{i}"], keepdims=0))
        nodes.append(helper.make_node("Add", [names[-1], f"m{i}"], [f"s{i}"]))
        names.append(f"s{i}")
    nodes.append(helper.make_node("Relu", [names[-1]], ["w"]))
    return model(nodes, {"size": np.array([1900, 1000], np.int64)})


ONE, ROW = np.ones(1, np.float32), np.ones((1, 50_000), np.float32)
MAP = np.ones((1, 1, 4, 4), np.float32)


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


LARGE: dict[str, Callable[[], ModelProto]] = {
    "ConstantOfShape of 10 GB": lambda: constants("ConstantOfShape", ints(50_000, 50_000)),
    "ConstantOfShape of 2^80": lambda: constants("ConstantOfShape", ints(2**40, 2**40)),
    "ConstantOfShape of -1": lambda: constants("ConstantOfShape", ints(-1)),
    "Expand to 10 GB": lambda: constants("Expand", ONE, ints(50_000, 50_000)),
    "Tile to 10 GB": lambda: constants("Tile", ONE, ints(2_500_000_000)),
    "Tile whose product turns over": lambda: constants("Tile", np.ones((2, 2), np.float32), ints(2**40, 2**40)),
    "Range to 10^10": lambda: constants("Range", np.int64(0), np.int64(10**10), np.int64(1)),
    "Range in tiny steps": lambda: constants("Range", np.float32(0), np.float32(1), np.float32(1e-12)),
    "Resize to sizes": lambda: constants("Resize", MAP, None, None, ints(1, 1, 50_000, 50_000)),
    "Resize by scales": lambda: constants("Resize", MAP, None, np.array([1, 1, 2e4, 2e4], np.float32)),
    "Pad to 10 GB": lambda: constants("Pad", np.ones((2, 2), np.float32), ints(25_000, 25_000, 25_000, 25_000)),
    "Pad by 2^62": lambda: constants("Pad", np.ones((2, 2), np.float32), ints(2**62, 2**62, 2**62, 2**62)),
    "Gather of one row": lambda: constants("Gather", ROW, np.zeros(50_000, np.int8).astype(np.int64), axis=0),
    "OneHot": lambda: constants("OneHot", np.arange(1000), np.int64(10**7), np.array([0, 1], np.float32)),
    "an outer product": lambda: constants("MatMul", ROW.T.copy(), ROW),
    "an outer product by Einsum": lambda: constants("Einsum", ROW[0], ROW[0], equation="i,j->ij"),
    "an Einsum of 10^15 products": lambda: constants("Einsum", *[np.ones(100_000, np.float32)] * 3, equation="i,j,k->"),
    "an Add that broadcasts": lambda: constants("Add", ROW.T.copy(), ROW),
    "Concat with itself": joined_with_itself,
    "many below the bound of one": sixteen_each,
}
FOLDED = [Case(f"a constant: {name}", inspected(made), code=0, cpu_s=20, megabytes=700) for name, made in LARGE.items()]

# --- sizes that are declared -----------------------------------------------------------------------------------------


def relu() -> NodeProto:
    return helper.make_node("Relu", ["v"], ["w"])


def declared(size: int) -> ModelProto:
    made = model([relu()])
    made.graph.value_info.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [1, 4, size, size]))
    return made


SIZES = ("model.onnx", "numbers or more")
DECLARED = [
    Case("an input of 2^40 x 2^40", inspected(lambda: model([relu()], shape=[1, 4, 2**40, 2**40])), says=SIZES),
    Case("an input of 2^62 x 2^62", inspected(lambda: model([relu()], shape=[1, 4, 2**62, 2**62])), says=SIZES),
    Case("a tensor said to be of 2^40 x 2^40", inspected(lambda: declared(2**40)), says=SIZES),
]

# --- runs that do not end --------------------------------------------------------------------------------------------


def loop(trips: int | None) -> ModelProto:
    """A Loop over v of so many trips, or as long as its condition, which stays true."""
    tensor = helper.make_tensor_value_info
    shape = [None] * 4
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Abs", ["before"], ["after"]),
        ],
        "body",
        [
            tensor("i", TensorProto.INT64, []),
            tensor("go", TensorProto.BOOL, []),
            tensor("before", TensorProto.FLOAT, shape),
        ],
        [tensor("on", TensorProto.BOOL, []), tensor("after", TensorProto.FLOAT, shape)],
    )
    count = "" if trips is None else "trips"
    node = helper.make_node("Loop", [count, "true", "v"], ["w"], "for ever", body=body)
    return model([node], {"true": np.array(True), **({} if trips is None else {"trips": np.array(trips, np.int64)})})


def calibrated(made: Callable[[], ModelProto], *more: str) -> Callable[[Path], Arguments]:
    def make(folder: Path) -> Arguments:
        (folder / "model.onnx").write_bytes(made().SerializeToString())
        np.save(folder / "x.npy", np.ones((4, 4, 8, 8), np.float32))
        return "inspect", "model.onnx", "--calib", "x.npy", *more

    return make


def harmless(*arguments: str) -> Callable[[Path], Arguments]:
    def make(folder: Path) -> Arguments:
        model_and_images(folder)
        return arguments

    return make


def scan() -> ModelProto:
    """A Scan of as many steps as a tensor has rows that a run makes; the bound of time is lowered."""
    tensor = helper.make_tensor_value_info
    shape = [None] * 4
    body = helper.make_graph(
        [
            helper.make_node("Abs", ["before"], ["moved"]),
            helper.make_node("Add", ["moved", "row"], ["after"]),
        ],
        "body",
        [tensor("before", TensorProto.FLOAT, shape), tensor("row", TensorProto.FLOAT, [])],
        [tensor("after", TensorProto.FLOAT, shape)],
    )
    nodes = [
        helper.make_node("ConstantOfShape", ["rows"], ["axis"], "axis"),
        helper.make_node("Scan", ["v", "axis"], ["w"], "for ever", body=body, num_scan_inputs=1),
    ]
    return model(nodes, {"rows": ints(ROWS)})


ENDED = ("'for ever'", "took longer than 0.5 s", "--timeout")
THREADS = ("threads", "100000")
ENDLESS = [
    Case("a Loop of 2^60 trips, planned", inspected(lambda: loop(2**60)), code=0, lines=("Warning: ",), cpu_s=20),
    Case(
        "a Loop of 2^60 trips",
        calibrated(lambda: loop(2**60), "--timeout", "0.5"),
        says=ENDED,
        lines=("Warning: ",),
        cpu_s=20,
    ),
    Case(
        "a Loop of 2^63 - 1 trips",
        calibrated(lambda: loop(INT64_MAX), "--timeout", "0.5"),
        says=ENDED,
        lines=("Warning: ",),
        cpu_s=20,
    ),
    Case(
        "a Loop while true",
        calibrated(lambda: loop(None), "--timeout", "0.5"),
        says=ENDED,
        lines=("Warning: ",),
        cpu_s=20,
    ),
    Case("a Scan over a huge axis, planned", inspected(scan), code=0, lines=("Warning: ",), cpu_s=20),
    Case("a Scan over a huge axis", calibrated(scan, "--timeout", "0.5"), says=ENDED, lines=("Warning: ",), cpu_s=20),
    Case("a timeout of nothing", calibrated(lambda: loop(2), "--timeout", "0"), says=("timeout is 0",), code=2),
    Case(
        "a timeout that is no number", calibrated(lambda: loop(2), "--timeout", "nan"), says=("timeout is nan",), code=2
    ),
    Case(
        "100,000 threads",
        harmless("quantize", "model.onnx", "--calib", "images", "--threads", "100000"),
        says=THREADS,
        code=2,
    ),
    Case(
        "100,000 threads of a measurement",
        harmless("benchmark", "model.onnx", "--threads", "100000"),
        says=THREADS,
        code=2,
    ),
]


@rows([*FUNCTIONS, *FOLDED, *DECLARED, *ENDLESS])
def test_bounds(case: Case, hostile: Hostile) -> None:
    hostile(case)


@pytest.mark.parametrize("made", LARGE.values(), ids=LARGE)
def test_what_is_too_large_stays_a_node(made: Callable[[], ModelProto]) -> None:
    from mrecg_onnx.converters import normalize

    graph = normalize(made())
    held = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    assert held < 300 * 2**20
