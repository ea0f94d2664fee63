"""Which layers run in integers, and why the others do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.architectures import PATTERNS, Graph, conv_relu, residual
from helpers.export_patterns import GRAPHS, computed_bias
from helpers.stages import feeds, simulated
from helpers.written import exported

from mrecg_onnx.checking.verification import verify
from mrecg_onnx.planning.activations import WEIGHTED_OPS
from mrecg_onnx.writing.integer_nodes import FLOAT_MATMUL
from mrecg_onnx.writing.qdq import export


@pytest.mark.parametrize(
    ("build", "options", "reasons"),
    [
        (residual, {}, {}),
        (residual, {"exclude": ("^conv3$",)}, {"conv3": "excluded"}),
        (PATTERNS["conv_transpose"], {}, {"deconv": "no integer kernel for ConvTranspose"}),
        (conv_relu, {"abits": 32}, {"conv": "activations are in float", "conv2": "activations are in float"}),
        (
            conv_relu,
            {"abits": 16, "target": "qnn"},
            {"conv": "activations of 16 bits", "conv2": "activations of 16 bits"},
        ),
        (conv_relu, {"target": "tensorrt"}, {"conv2": "not quantized"}),
        (computed_bias, {}, {"biased": "computed by the graph"}),
    ],
)
def test_all_layers_are_counted_and_those_in_float_named(build, options, reasons):
    model = build()
    data = {n: torch.from_numpy(x) for n, x in feeds(model, 8).items()}
    stage = simulated(model, data, range_samples=8, **options)
    result = export(stage.graph, stage.simulation, {})
    found = verify(result, stage.simulation, stage.data)
    assert found.layers == len(stage.plan.layers) == sum(n.op_type in WEIGHTED_OPS for n in model.graph.node)
    assert found.integer_layers == found.layers - len(reasons)
    assert found.float_layers.keys() == reasons.keys()
    assert all(reasons[name] in reason for name, reason in found.float_layers.items())


@pytest.mark.parametrize(
    ("name", "layers", "ops"),
    [
        (
            "residual",
            {"Conv": ["stem", "conv1", "conv2", "conv3", "conv4", "shortcut"], "Gemm": ["fc"]},
            {"Add": ["add", "add2"], "GlobalAveragePool": ["pool"]},
        ),
        ("max_pool", {"Conv": ["conv", "conv2"], "Gemm": ["fc"]}, {"GlobalAveragePool": ["pool"]}),
        ("tokens", {FLOAT_MATMUL: ["first", "up", "down", "float", "last"]}, {"Add": ["add"]}),
        ("products", {"MatMul": ["right"], FLOAT_MATMUL: ["last"]}, {}),
        ("pad_output", {"Conv": ["conv", "conv2"]}, {}),
    ],
)
def test_nodes_between_quantizers_are_expected_on_integer_kernels(name, layers, ops):
    """MatMul without a bias and with a quantizer behind writes codes, another a float; value-preserving ops are not counted."""
    _, result = exported(GRAPHS[name]())
    assert result.integer_layers == layers
    assert result.integer_ops == ops
    left = {"left": "its weight is the left factor of a MatMul, which may have only one scale there"}
    assert result.float_layers == (left if name == "products" else {})


def test_output_that_leaves_in_front_of_its_quantizer_is_float():
    """A residual sum that is an output of the graph, too: nobody fuses what is asked for in between."""
    g = Graph()
    x = g.conv(g.input(), 8, 8, "conv")
    g.conv(x, 8, 8, "conv2", output="output")
    model = g.model("output", "conv_out")
    stage = simulated(model, abits=4)
    plans = tuple(replace(p, outputs=()) for p in stage.plan.activations)
    simulation = replace(stage.simulation, plan=replace(stage.plan, activations=plans))
    result = export(stage.graph, simulation, {})
    assert "conv" not in result.integer_layers.get("Conv", [])
    assert result.float_layers["conv"] == "what it makes is not quantized"


def test_layer_whose_weight_the_graph_computes_is_named():
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8, "conv"))
    kernel = g.op("ReduceMean", [x], "kernel", axes=[0], keepdims=1)
    g.op("Mul", [g.conv(x, 8, 8, "conv2"), g.op("Conv", [x, kernel], "computed")], "scale", "output")
    model = g.model()
    data = {n: torch.from_numpy(v) for n, v in feeds(model, 8).items()}
    stage = simulated(model, data, range_samples=8)
    result = export(stage.graph, stage.simulation, {})
    assert result.float_layers["computed"] == "its weight is computed by the graph"
    assert "conv" not in result.float_layers
