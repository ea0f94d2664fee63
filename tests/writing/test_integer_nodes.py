"""Which layers run in integers, and why the others do not."""

from __future__ import annotations

import pytest
import torch
from helpers.architectures import PATTERNS, conv_relu, residual
from helpers.export_patterns import computed_bias
from helpers.stages import feeds, simulated

from mrecg_onnx.checking.verification import verify
from mrecg_onnx.planning.activations import WEIGHTED_OPS
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
    if "bias" in data:
        data["bias"] = torch.linspace(-1, 1, 8)
    stage = simulated(model, data, range_samples=8, **options)
    result = export(stage.graph, stage.simulation, {})
    found = verify(result, stage.simulation, stage.data)
    assert found.layers == len(stage.plan.layers) == sum(n.op_type in WEIGHTED_OPS for n in model.graph.node)
    assert found.integer_layers == found.layers - len(reasons)
    assert found.float_layers.keys() == reasons.keys()
    assert all(reasons[name] in reason for name, reason in found.float_layers.items())
