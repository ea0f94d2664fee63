"""Nodes that torch cannot run: through ONNX Runtime inside the module, and around every reconstruction unit."""

from __future__ import annotations

import copy
import logging
import pickle

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from helpers.architectures import Graph
from helpers.stages import feeds
from onnx import TensorProto, helper

from mrecg_onnx.converters import check_parity, fallback_nodes, normalize, to_torch
from mrecg_onnx.converters.errors import ConversionError, ModelError, SettingsError
from mrecg_onnx.converters.fallback import captured_names
from mrecg_onnx.inspecting.inspection import inspect
from mrecg_onnx.planning.schemes import read_scheme
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings


def contrib() -> onnx.ModelProto:
    """Four convolutions with an operator of ONNX Runtime's own in the middle."""
    g = Graph(opset=17)
    x = g.relu(g.conv(g.input(3), 3, 8, "c1"), "r1")
    x = g.relu(g.conv(x, 8, 8, "c2"), "r2")
    x = g.op("Sigmoid", [x], "odd")
    x = g.relu(g.conv(x, 8, 8, "c3"), "r3")
    x = g.relu(g.conv(x, 8, 8, "c4"), "r4")
    g.classifier(x, 8)
    model = g.model()
    node = next(node for node in model.graph.node if node.name == "odd")
    node.op_type, node.domain = "QuickGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def branching() -> onnx.ModelProto:
    """An If whose branches read a quantized tensor from outside, which a skip connection reads too."""
    g = Graph(opset=17)
    x = g.relu(g.conv(g.input(3), 3, 8, "c1"), "r1")
    outer = g.relu(g.conv(x, 8, 8, "c2"), "r2")

    def body(op_type: str) -> onnx.GraphProto:
        shape = ["batch", 8, 16, 16]
        output = helper.make_tensor_value_info(f"{op_type}_out", TensorProto.FLOAT, shape)
        return helper.make_graph([helper.make_node(op_type, [outer], [output.name], op_type)], op_type, [], [output])

    condition = g.op(
        "Greater", [g.op("ReduceMax", [outer], "top", keepdims=0), g.constant("zero", np.float32(0))], "if_any"
    )
    x = g.op("If", [condition], "odd", then_branch=body("Sigmoid"), else_branch=body("Tanh"))
    x = g.op("Add", [g.relu(g.conv(x, 8, 8, "c3"), "r3"), outer], "skip")
    g.classifier(g.relu(g.conv(x, 8, 8, "c4"), "r4"), 8)
    return g.model()


def calibration(tmp_path, model):
    path = tmp_path / "calib.npy"
    np.save(path, next(iter(feeds(model).values())))
    return path


@pytest.mark.parametrize("build", [contrib, branching])
def test_quantizes_around_a_node_that_torch_cannot_run(tmp_path, caplog, build):
    model = build()
    settings = Settings(wbits=4, abits=4, iters=4)
    with caplog.at_level(logging.WARNING):
        result = quantize(model, calibration(tmp_path, model), settings)
    assert sum("ONNX Runtime runs what torch cannot" in record.message for record in caplog.records) == 1
    alone = [unit for unit in result.plan.units if "odd" in unit.nodes]
    assert [unit.layers for unit in alone] == [()]
    covered = [layer for unit in result.plan.units for layer in unit.layers]
    assert covered == [layer.name for layer in result.plan.layers]
    assert all(len(group) == 1 for group in result.plan.merges if not result.plan.units[group[0]].layers)
    bits = {member: plan.bits for plan in result.plan.activations for member in plan.members}
    assert all(bits.get(name, 8) == 8 for name in (*alone[0].inputs, *alone[0].outputs))
    assert 4 in bits.values()
    # A code on the edge of two steps may fall to either side in an image.
    assert result.verification.exact > 0.9
    assert [unit.iters for unit in result.units if not unit.layers] == [0]


@pytest.mark.parametrize("method", ["adaround", "qdrop"])
def test_other_methods_go_around_it_too(tmp_path, method):
    model = contrib()
    result = quantize(model, calibration(tmp_path, model), Settings(wbits=4, abits=4, iters=2, method=method))
    assert [unit.layers for unit in result.plan.units if "odd" in unit.nodes] == [()]
    # A code on the edge of two steps may fall to either side in an image.
    assert result.verification.exact > 0.9


def test_inspect_lists_them():
    found = inspect(contrib())
    assert list(found.fallbacks) == ["odd"]
    assert "QuickGelu" in found.to_json()["fallbacks"]["odd"]
    assert fallback_nodes(contrib()) == found.fallbacks


def test_a_scheme_cannot_join_across_one(tmp_path):
    units = inspect(contrib()).plan.units
    assert [bool(unit.layers) for unit in units] == [True, False, True]
    path = tmp_path / "scheme.json"
    path.write_text('{"scheme": [[1, 1, 1]]}')
    with pytest.raises(SettingsError, match="'odd'"):
        read_scheme(path, units)
    path.write_text('{"units": [["c1", "c2"], ["c3", "c4", "fc"]]}')
    assert read_scheme(path, units) == ((0,), (1,), (2,))
    path.write_text('{"units": [["c1", "c2", "c3", "c4", "fc"]]}')
    with pytest.raises(SettingsError, match="in the model's order"):
        read_scheme(path, units)


def parse(body: str, *domains: str) -> onnx.ModelProto:
    imports = ", ".join(f'"{domain}" : 1' for domain in domains)
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17{", " + imports if imports else ""}]> {body}'
    )


def test_copies_run_by_themselves():
    module = to_torch(contrib())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    node = module.layer("odd")
    assert torch.equal(pickle.loads(pickle.dumps(node))(x), node(x))


def test_gradients_do_not_get_lost_in_it():
    module = to_torch(parse("g (float[2] x) => (float[2] y) { [n] y = com.microsoft.QuickGelu(x) }", "com.microsoft"))
    x = torch.randn(2, requires_grad=True)
    with pytest.raises(ConversionError, match=r"'n'.*forward only"):
        module(x).sum().backward()


def test_constants_and_recurrent_layers():
    text = (
        """g (float[5, 2, 4] x) => (float[5, 1, 2, 3] y, float[1, 2, 3] h) { y, h = GRU <hidden_size = 3> (x, w, r) }"""
    )
    model = parse(text)
    random = np.random.default_rng(0)
    for name, shape in (("w", (1, 9, 4)), ("r", (1, 9, 3))):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        )
    module = to_torch(model)
    assert next(iter(module.fallback_nodes.values())).startswith("ai.onnx::GRU")
    assert check_parity(model, module, {"x": random.standard_normal((5, 2, 4)).astype(np.float32)}) < 1e-6


def test_text_passes_through():
    module = to_torch(parse("g (string[2] x) => (float[2] y) { y = Cast <to = 1> (x) }"))
    assert module(np.array(["1.5", "-2"], dtype=object)).tolist() == [1.5, -2.0]


def test_what_a_subgraph_reads_from_outside():
    model = branching()
    node = next(node for node in model.graph.node if node.op_type == "If")
    assert captured_names(node) == ["r2_out"]


def test_a_domain_nobody_knows_is_named():
    with pytest.raises(ConversionError, match=r"'n'.*acme::Wobble version 1.*neither torch nor ONNX Runtime"):
        to_torch(parse("g (float[2] x) => (float[2] y) { [n] y = acme.Wobble(x) }", "acme"))


@pytest.mark.parametrize(
    "body",
    [
        """g (float[2, 3, 4] x, float[3] s) => (float[2, 3, 4] y, float[3] m, float[3] v)
            { [n] y, m, v = BatchNormalization <training_mode = 1> (x, s, s, s, s) }""",
        "g (float[2] x, float r, bool t) => (float[2] y) { [n] y = Dropout (x, r, t) }",
    ],
)
def test_training_mode_is_refused(body):
    with pytest.raises(ConversionError, match=r"'n': \w+ is in training mode; export the model in eval mode"):
        to_torch(parse(body))


def test_a_loss_of_the_whole_network_is_refused_at_once(tmp_path):
    model = contrib()
    with pytest.raises(SettingsError, match=r"--loss fisher.*'odd' runs forward only"):
        quantize(model, calibration(tmp_path, model), Settings(iters=2, loss="fisher"))


def test_sequences_are_taken_apart_or_run_as_they_are():
    body = """g (float[n, 5, 4] x) => (float[n, 2, 4] a, float[n, 1, 4] b, float[n, 4] c, float[n, 10, 4] d) {
        parts = SplitToSequence <axis = 1> (x, sizes) a = SequenceAt (parts, first) b = SequenceAt (parts, last)
        rows = SplitToSequence <axis = 1, keepdims = 0> (x) c = SequenceAt (rows, two)
        pair = SequenceConstruct (x, x) d = ConcatFromSequence <axis = 1> (pair) }"""
    model = parse(body)
    constants = {"sizes": [2, 2, 1], "first": 0, "last": -1, "two": 2}
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
    inputs = {"x": np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)}
    graph = normalize(model)
    assert [node.op_type for node in graph.graph] == ["Slice", "Slice", "Gather", "Concat"]
    assert len(to_torch(model).fallback_nodes) == 7
    for source in (model, graph):
        assert check_parity(model, to_torch(source), inputs) == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("g (seq(float[2]) x) => (float[2] y) { y = SequenceAt (x, zero) }", "input 'x' is a sequence"),
        ("g (string[2] x) => (float[2] y) { y = Cast <to = 1> (x) }", "input 'x' holds text"),
        ("g (float[2] x) => (uint8[2] y) { y = QuantizeLinear (x, one) }", "quantized already.*QuantizeLinear"),
    ],
)
def test_what_cannot_be_quantized_is_said_in_one_line(body, message):
    model = parse(body)
    for name, value in (("zero", np.int64(0)), ("one", np.float32(1))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    with pytest.raises(ModelError, match=message) as caught:
        inspect(model)
    assert "\n" not in str(caught.value)
