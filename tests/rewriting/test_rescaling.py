"""Rescaling of a stream, and Relu6 as a bound a channel: the float function stays what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers.architectures import PATTERNS, Graph
from helpers.rescalable import (
    float_run,
    mobile,
    prelu_pair,
    relu_pair,
    run,
    spread,
    through_depthwise,
    through_pools_to_gemm,
)
from helpers.stages import feeds, network_of, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from mrecg_onnx.converters import normalize
from mrecg_onnx.planning.activations import channel_ceilings, is_clamp
from mrecg_onnx.rewriting import apply_scale, bound_channels, find_streams

if TYPE_CHECKING:
    from collections.abc import Callable


def grouped_pair() -> onnx.ModelProto:
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 12, "first"))
    g.conv(x, 12, 8, "grouped", groups=4, output="output")
    return g.model()


def gemm_stored_by_rows() -> onnx.ModelProto:
    """Gemm without transB on both sides: input channels are rows."""
    g = Graph()
    x = g.op("Flatten", [g.input(2, 4)], "flatten", axis=1)
    x = g.relu(g.op("Gemm", [x, g.weight("w1", (32, 10), 32), g.bias("b1", 10)], "first"))
    g.op("Gemm", [x, g.weight("w2", (10, 6), 10), g.bias("b2", 6)], "second", "output")
    return g.model()


EXACT = [
    mobile,
    relu_pair,
    prelu_pair,
    through_depthwise,
    grouped_pair,
    through_pools_to_gemm,
    gemm_stored_by_rows,
    PATTERNS["residual"],
    PATTERNS["grouped"],
    PATTERNS["sigmoid_gate"],
    PATTERNS["two_inputs"],
    PATTERNS["matmul_add"],
]


@pytest.mark.parametrize("build", EXACT, ids=lambda f: f.__name__)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rescaling_keeps_the_float_function(build: Callable[[], onnx.ModelProto], seed: int):
    model = build()
    fed = feeds(model, 2, seed)
    before = run(model, fed)
    graph = normalize(model)
    found = find_streams(graph)
    assert found
    random = np.random.default_rng(seed)
    weights = {name: value.const_value.numpy().copy() for name, value in graph.graph.initializers.items()}
    found = [stream for stream in found if not stream.ceilings]  # exact only up to what the data leave below the bound
    for stream in found:
        apply_scale(graph, stream, np.exp(random.uniform(-3, 3, stream.channels)).tolist())
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    after = run(graph, fed)
    assert np.linalg.norm(after - before) <= 1e-5 * np.linalg.norm(before)
    changed = {n for n, v in graph.graph.initializers.items() if not np.array_equal(v.const_value.numpy(), weights[n])}
    assert changed
    assert all(graph.graph.initializers[n].const_value.numpy().dtype == np.float32 for n in changed)


def test_scale_divides_the_stream_itself():
    graph = normalize(relu_pair())
    (stream,) = find_streams(graph)
    fed = tensors(relu_pair(), 2)
    before = network_of(graph).run(fed, keep=["relu_out"])["relu_out"]
    scale = torch.linspace(0.25, 4, 12)
    apply_scale(graph, stream, scale.tolist())
    after = network_of(graph).run(fed, keep=["relu_out"])["relu_out"]
    assert torch.allclose(after * scale.view(1, -1, 1, 1), before, rtol=1e-5, atol=1e-6)


# --- bounds ------------------------------------------------------------------------------------------------------


def test_bounds_a_channel_keep_the_float_function_under_any_scale():
    model, random = spread(), np.random.default_rng(0)
    data = tensors(model)
    before = float_run(normalize(model), data)
    graph = normalize(model)
    streams = [s for s in find_streams(graph, bounded=True) if s.ceilings]
    assert len(streams) > len([s for s in find_streams(graph) if s.ceilings])
    for stream in streams:
        scale = random.uniform(0.2, 5.0, stream.channels)
        apply_scale(graph, stream, scale)
        bound_channels(graph, stream, scale)
    assert not [n for n in graph.graph if n.op_type == "Clip"]
    assert torch.allclose(float_run(graph, data), before, atol=1e-5)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def test_a_min_with_one_bound_a_channel_is_a_clamp_and_no_other():
    graph = normalize(spread())
    stream = next(s for s in find_streams(graph, bounded=True) if s.ceilings)
    bound_channels(graph, stream, np.full(stream.channels, 2.0))
    node = next(n for n in graph.graph if n.op_type == "Min")
    assert channel_ceilings(node) == (3.0,) * stream.channels
    assert is_clamp(node)
    assert channel_ceilings(next(n for n in graph.graph if n.op_type == "Relu")) is None
