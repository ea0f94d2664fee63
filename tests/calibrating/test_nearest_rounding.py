"""Weights rounded to nearest: each output channel on the grid that is best for it."""

from __future__ import annotations

import pytest
import torch
from helpers.architectures import PATTERNS, residual
from helpers.stages import simulated

from mrecg_onnx.calibrating.nearest_rounding import nearest_weights
from mrecg_onnx.quantizers import quantize_codes, search_range


@pytest.mark.parametrize("pattern", ["residual", "conv_transpose", "depthwise", "matmul_add"])
def test_weights_are_searched_and_rounded_per_output_channel(pattern):
    stage = simulated(PATTERNS[pattern]())
    found = nearest_weights(stage.network, stage.plan.layers)
    assert list(found) == [layer.name for layer in stage.plan.layers]
    for layer in stage.plan.layers:
        weight = stage.network.step(layer.name).module.weight.detach()
        # Shifted asymmetric codes of 8 bits would not fit int8.
        expected = search_range(weight, layer.wbits, axis=layer.axis, symmetric=layer.wbits == 8)
        quantized = found[layer.name]
        assert torch.equal(quantized.grid.scale, expected.scale)
        assert torch.equal(quantized.grid.zero_point, expected.zero_point)
        assert quantized.grid.scale.shape == (layer.shape[layer.axis],)
        assert torch.equal(quantized.codes, quantize_codes(weight, expected))
        worst = float((quantized.dequantize() - weight).abs().max())
        assert worst < float(weight.abs().max()) / (2 if layer.wbits == 4 else 32)


def test_excluded_layers_have_no_codes():
    stage = simulated(residual(), exclude=("^conv3$",))
    assert "conv3" not in nearest_weights(stage.network, stage.plan.layers)
