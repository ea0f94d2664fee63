"""What a file calls its nodes and tensors is data: it is kept, it is shown, and it is never part of a program."""

from __future__ import annotations

import builtins
import keyword
import re
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mrecg_onnx.converters import check_parity, load_model, normalize, to_torch
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: What the network below calls its nodes and tensors, before it is renamed.
NODES = ("conv", "relu", "split", "concat", "add", "gelu", "head")
TENSORS = ("x", "w", "b", "a", "r", "left", "right", "k", "m", "v", "u", "w2", "y")


def network(rename: Callable[[str], str]) -> onnx.ModelProto:
    """Every way a name takes into torch: input, output, weight, constant argument, several outputs, ONNX Runtime's node."""
    random = np.random.default_rng(0)
    t = {name: rename(name) for name in TENSORS}
    n = {name: rename(f"n_{name}") for name in NODES}
    nodes = [
        helper.make_node("Conv", [t["x"], t["w"], t["b"]], [t["a"]], n["conv"], pads=[1] * 4),
        helper.make_node("Relu", [t["a"]], [t["r"]], n["relu"]),
        helper.make_node("Split", [t["r"]], [t["left"], t["right"]], n["split"], axis=1, num_outputs=2),
        helper.make_node("Concat", [t["right"], t["left"]], [t["m"]], n["concat"], axis=1),
        helper.make_node("Add", [t["m"], t["k"]], [t["v"]], n["add"]),
        helper.make_node("QuickGelu", [t["v"]], [t["u"]], n["gelu"], domain="com.microsoft"),
        helper.make_node("Conv", [t["u"], t["w2"]], [t["y"]], n["head"]),
    ]
    shapes = {"w": (8, 3, 3, 3), "b": (8,), "k": (1, 8, 1, 1), "w2": (4, 8, 1, 1)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(t["x"], TensorProto.FLOAT, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info(t["y"], TensorProto.FLOAT, ["N", 4, 6, 6])],
        [
            numpy_helper.from_array((random.standard_normal(s) / 3).astype(np.float32), t[name])
            for name, s in shapes.items()
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def names_of(model: onnx.ModelProto) -> set[str]:
    graph = model.graph
    found = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    return found | {tensor.name for tensor in graph.initializer}


def rows(model: onnx.ModelProto, count: int = 3) -> dict[str, np.ndarray]:
    return {model.graph.input[0].name: np.random.default_rng(1).standard_normal((count, 3, 6, 6)).astype(np.float32)}


def assert_converts(model: onnx.ModelProto) -> None:
    """Torch and ONNX Runtime agree, as the file has it and normalized, and names are metadata alone."""
    load_model(model)
    for graph in (model, normalize(model)):
        module = to_torch(graph)
        assert check_parity(model, module, rows(model)) < 1e-5
        assert list(module.onnx_nodes.values()) == [node.name for node in model.graph.node]
        for node in module.graph.nodes:
            assert re.fullmatch(r"(input|node|output|constant)_\d+|output", node.name)
            assert isinstance(node.target, str) is (node.op != "call_function")
            if node.op in {"call_module", "get_attr"}:
                assert re.fullmatch(r"(node|constants\.constant)_\d+", node.target)
        assert len({node.name for node in module.graph.nodes}) == len(module.graph.nodes)


def in_turn(words: list[str]) -> Callable[[str], str]:
    """Names out of ``words``; one for each thing that has a name, as none may be given twice."""
    left = iter(words)
    given: dict[str, str] = {}
    return lambda name: given.setdefault(name, next(left))


WORDS = sorted({
    *keyword.kwlist, *keyword.softkwlist, *dir(builtins), "self", "torch", "operator", "forward", "training", "root", "inf",
    "nan", "input_0", "input_1", "node_0", "node_1", "output_0", "constant_0", "constants", "_0", "0", "_", "device", "code",
})  # fmt: skip
SIZE = len(NODES) + len(TENSORS)


@pytest.mark.parametrize("start", range(0, len(WORDS), SIZE))
def test_words_of_python_and_of_torch(start: int) -> None:
    words = (WORDS + WORDS)[start : start + SIZE]
    model = network(in_turn(words))
    assert names_of(model) == set(words)
    assert_converts(model)


ODD = {
    "quote": "a'b", "double quote": 'a"b', "triple quote": "a'''b", "backslash": "a\\b", "line break": "a\nb",
    "return": "a\rb",
    "null": "a\0b", "escape": "a\x1b[2Jb", "delete": "a\x7fb", "C1": "a\x9bb", "separator": "a\u2028b",
    "override": "a\u202eb",
    "letters": "Größe", "no letter": "重み", "astral": "😀", "comment": "a#b", "braces": "{a}", "percent": "%s%(a)d",
    "markup": "[red]a[/]",
    "path": "../a/b", "dots": "a..b.", "space": " a b ", "digits": "1.5", "long": "x" * 5000, "mathtext": "$x^{2$",
}  # fmt: skip


@pytest.mark.parametrize("text", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("form", ["{text}{name}", "{name}{text}"], ids=["before", "behind"])
def test_odd_characters(text: str, form: str) -> None:
    assert_converts(network(lambda name: form.replace("{name}", name).replace("{text}", text)))


@pytest.mark.parametrize("one", [".", "/", "\u00e9", "-"])
def test_names_that_are_the_same_without_their_odd_characters(one: str) -> None:
    assert_converts(network(in_turn([one * count for count in range(1, SIZE + 1)])))


def test_nodes_without_names() -> None:
    model = network(str)
    for node in model.graph.node:
        node.name = ""
    module = to_torch(normalize(model))
    assert check_parity(model, module, rows(model)) < 1e-5
    assert len(set(module.onnx_nodes.values()) - {""}) == len(model.graph.node)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=SIZE, max_size=SIZE, unique=True))
def test_any_names(words: list[str]) -> None:
    assert_converts(network(in_turn(words)))


def test_no_name_stands_in_the_generated_source_and_none_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is a call of a function that is really there and notes that it was called."""
    called: list[str] = []
    monkeypatch.setattr(builtins, "canary", called.append, raising=False)
    for form in (
        "canary('{}')",
        "x\n    canary('{}')\n#",
        "'+canary('{}')+'",
        '"+str(canary("{}"))+"',
        "_{}\rcanary('{}')",
    ):
        model = network(lambda name, form=form: form.replace("{}", name))
        module = to_torch(normalize(model))
        assert "canary" not in module.code
        assert not [name for name in names_of(model) if name in module.code]
        assert check_parity(model, module, rows(model)) < 1e-5
    assert not called


@pytest.mark.parametrize("text", ["a\nb", "a'\\", "class ", "\x1b[31m", "Größe.", "[bold]"])
def test_a_whole_run_keeps_the_names(tmp_path: Path, text: str) -> None:
    """Units, schemes, checkpoints, patterns: what is written opens in ONNX Runtime and has the user's names."""
    model = network(lambda name: text + name)
    onnx.save(model, tmp_path / "model.onnx")
    data = rows(model, 16)
    np.save(tmp_path / "data.npy", next(iter(data.values())))
    head = re.escape(f"{text}n_head")
    options = Settings(method="brecq", iters=2, exclude=(f"^{head}$",), threads=1)
    out = tmp_path / "q.onnx"
    result = quantize(tmp_path / "model.onnx", tmp_path / "data.npy", options, output=out, checkpoint=tmp_path / "kept")
    written = onnx.load(out)
    names = {node.name for node in model.graph.node}
    assert names <= {node.name for node in written.graph.node}
    assert [layer.name for layer in result.plan.layers if layer.excluded] == [f"{text}n_head"]
    session = onnxruntime.InferenceSession(out)
    assert [value.name for value in session.get_inputs()] == [f"{text}x"]
    assert [value.name for value in session.get_outputs()] == [f"{text}y"]
    assert session.run(None, data)[0].shape == (16, 4, 6, 6)
