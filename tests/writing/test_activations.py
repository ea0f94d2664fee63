"""Quantizers of activations in the file: bounds of codes, Pad on codes, outputs taken from behind."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from helpers.architectures import PATTERNS, conv_clip, conv_relu
from helpers.export_patterns import GRAPHS, clip_above, clip_positive, clip_signed, clip_twice, pad_output, pad_zero
from helpers.stages import feeds, simulated
from helpers.written import exported, initializers, maker, node, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from mrecg_onnx.checking.verification import verify
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.planning import BitRule
from mrecg_onnx.planning.plan import ActivationPlan
from mrecg_onnx.quantizers import Grid, fake_quantize, quantize_codes
from mrecg_onnx.running import fused_op_counts
from mrecg_onnx.writing.activations import channel_bounds, code_bounds
from mrecg_onnx.writing.qdq import export


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.integers(2, 8),
    low=st.none() | st.floats(-3, 3, width=32),
    width=st.none() | st.floats(0.0625, 6, width=32),
)
def test_bounds_of_codes_are_exactly_the_clamp_in_front(seed, bits, low, width):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand((), generator=generator) * 0.5 + 0.01
    zero = torch.randint(0, 2**bits, (), generator=generator).float()
    grid = Grid(scale, zero, bits)
    high = None if width is None else (0.0 if low is None else low) + width
    x = torch.randn(300, generator=generator) * 4
    clamped = x if low is None else x.clamp(min=low)
    clamped = clamped if high is None else clamped.clamp(max=high)
    plan = ActivationPlan("x", ("x",), ("x",), bits, "clip", low, high)
    least, most = code_bounds(plan, grid)
    assert torch.equal(quantize_codes(x, grid).clamp(least, most), quantize_codes(clamped, grid))
    assert torch.equal(fake_quantize(clamped, grid), (quantize_codes(x, grid).clamp(least, most) - zero) * scale)


@pytest.mark.parametrize(
    ("low", "high", "codes"),
    [
        (None, None, (0, 15)),
        (0.0, None, (4, 15)),
        (0.0, 3.0, (4, 10)),
        (-1.3, 2.2, (1, 8)),
        (-9.0, 99.0, (0, 15)),
        (50.0, 60.0, (15, 15)),
        (-60.0, -50.0, (0, 0)),
    ],
)
def test_codes_of_known_bounds(low, high, codes):
    """Steps of 0.5 around the code 4."""
    grid = Grid(torch.tensor(0.5), torch.tensor(4.0), 4)
    assert code_bounds(ActivationPlan("x", ("x",), ("x",), 4, "clip", low, high), grid) == codes


def test_largest_codes_of_channels_are_those_of_their_widths_and_their_clamps():
    grid = Grid(torch.tensor(0.5), torch.tensor(1.0), 4)
    plain = ActivationPlan("x", ("x",), ("x",), 4)
    clamped = replace(plain, absorbs="min", ceilings=(1.0, 6.2, 99.0, -9.0))
    narrow = replace(grid, ceiling=torch.tensor([15.0, 7.0, 3.0, 15.0]))
    assert channel_bounds(plain, grid) is None
    assert channel_bounds(clamped, grid).tolist() == [3, 13, 15, 0]
    assert channel_bounds(plain, narrow).tolist() == [15, 7, 3, 15]
    both = channel_bounds(clamped, narrow)
    assert (both.tolist(), both.dtype) == ([3, 7, 3, 0], np.uint8)


def test_channels_of_fewer_bits_meet_their_largest_codes_in_the_file():
    stage = simulated(conv_relu(), abits=4, first_last_bits=4)
    grid = stage.simulation.activations["relu_out"]
    ceiling = torch.tensor([3.0, 15.0, 7.0, 15.0] * 4)
    stage.simulation.activations["relu_out"] = replace(grid, ceiling=ceiling)
    result = export(stage.graph, stage.simulation, {})
    least = node(result.model, "relu_out_Min")
    bound = initializers(result.model)[least.input[1]]
    assert bound.shape == (1, 16, 1, 1)
    assert bound.flatten().tolist() == ceiling.tolist()
    # The channels' bounds do it all: there is no Clip.
    assert maker(result.model, least.input[0]).op_type == "QuantizeLinear"
    metadata = {p.key: p.value for p in result.model.metadata_props}
    assert json.loads(metadata["mrecg_onnx.channel_bits"]) == {"relu_out": [2, 4, 3, 4] * 4}
    (found,) = run(result.model, {n: x.numpy() for n, x in stage.data.items()})
    assert sqnr_db(stage.simulation.run(stage.data)["output"].numpy(), found) > 60


def test_sixteen_bits_are_uint16_at_opset_21_without_bounds():
    stage, result = exported(conv_clip(), abits=16, target="qnn")
    assert {grid.bits for grid in stage.simulation.activations.values()} >= {16}
    assert {o.domain: o.version for o in result.model.opset_import}[""] >= 21
    names = [a.name for a in stage.plan.activations if stage.simulation.activations[a.name].bits == 16]
    values = initializers(result.model)
    for name in names:
        assert values[f"{name}_zero_point"].dtype == np.uint16
        assert values[f"{name}_zero_point"] == int(stage.simulation.activations[name].zero_point)
        assert f"{name}_low" not in values
    assert node(result.model, "clip").op_type == "Clip"
    assert verify(result, stage.simulation, stage.data).sqnr_db > 60
    narrow = exported(conv_clip(), abits=8)[1]
    assert {o.domain: o.version for o in narrow.model.opset_import}[""] == 13


@pytest.mark.parametrize("build", [conv_clip, clip_signed, clip_positive, clip_above, clip_twice])
@pytest.mark.parametrize("abits", [2, 4, 8])
def test_absorbed_clip_equals_the_graph_that_keeps_it_in_float(build, abits):
    model = build()
    stage, result = exported(model, abits=abits, bits=(BitRule("conv", None, abits),))
    (entry,) = [a for a in stage.plan.activations if a.absorbs and a.absorbs.startswith("clip")]
    fed = feeds(model, 16, seed=5)
    fed["input"] *= 3  # far enough for both bounds
    (absorbed,) = run(result.model, fed)
    kept = onnx.ModelProto()
    kept.CopyFrom(result.model)
    assert not [n for n in kept.graph.node if n.op_type == "Clip" and n.input[0] == "conv_out"]
    quantize_node = node(kept, f"{entry.name}_QuantizeLinear")
    bounds = [entry.low, entry.high]
    for end, value in zip(("least", "most"), bounds, strict=True):
        if value is not None:
            kept.graph.initializer.append(numpy_helper.from_array(np.float32(value), end))
    inputs = [quantize_node.input[0], *("" if v is None else n for n, v in zip(("least", "most"), bounds, strict=True))]
    position = list(kept.graph.node).index(quantize_node)
    kept.graph.node.insert(position, helper.make_node("Clip", inputs, ["clamped"], name="float_clip"))
    node(kept, f"{entry.name}_QuantizeLinear").input[0] = "clamped"
    for tensor in kept.graph.initializer:
        ends = {f"{entry.name}_low": 0, f"{entry.name}_high": 2**abits - 1}
        if tensor.name in ends:
            tensor.CopyFrom(numpy_helper.from_array(np.array(ends[tensor.name], np.uint8), tensor.name))
    onnx.checker.check_model(kept, full_check=True)
    assert np.array_equal(run(kept, fed)[0], absorbed)


def test_relu_in_front_of_zero_point_0_stays_for_the_runtime_to_absorb():
    stage, result = exported(conv_relu())
    assert float(stage.simulation.activations["relu_out"].zero_point) == 0
    assert node(result.model, "relu").op_type == "Relu"


def test_relu_in_front_of_another_zero_point_becomes_a_bound():
    stage = simulated(conv_relu())
    grid = stage.simulation.activations["relu_out"]
    stage.simulation.activations["relu_out"] = Grid(grid.scale, torch.tensor(3.0), grid.bits)
    result = export(stage.graph, stage.simulation, {})
    clip = node(result.model, "relu")
    assert clip.op_type == "Clip"
    assert initializers(result.model)[clip.input[1]] == 3
    found = verify(result, stage.simulation, stage.data)
    assert found.sqnr_db > 60
    assert found.warnings == ()


def test_pad_works_on_codes_and_pads_with_the_code_of_zero():
    stage, result = exported(pad_zero(), abits=4)
    pad = node(result.model, "pad")
    zero = stage.simulation.activations["conv_out"].zero_point
    assert 0 < float(zero) < 15
    assert initializers(result.model)[pad.input[2]] == np.uint8(zero)
    assert maker(result.model, pad.input[0]).op_type == "Clip"
    assert maker(result.model, node(result.model, "conv2").input[0]).input[0] == pad.output[0]
    assert verify(result, stage.simulation, stage.data).sqnr_db > 60


def test_pad_at_an_output_of_the_graph_stays_float():
    _, result = exported(pad_output())
    assert [v.name for v in result.model.graph.output] == ["output", "pad_out"]
    assert result.model.graph.output[1].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("name", ["relu_output", "pad_output"])
def test_output_in_the_middle_is_what_its_readers_see_where_that_has_8_bits(name):
    model = GRAPHS[name]()
    stage, result = exported(model)
    fed = feeds(model, 8, seed=2)
    found = run(result.model, fed)
    simulation = stage.simulation.run({n: torch.from_numpy(x) for n, x in fed.items()})
    for value, (own, wanted) in zip(found, simulation.items(), strict=True):
        assert sqnr_db(wanted.numpy(), value) > 60, own
    if name == "relu_output":
        assert len(np.unique(found[1])) <= 256
        assert fused_op_counts(result.model)["QLinearConv"] == 2


def test_pooled_tensor_has_codes_of_its_input():
    _, result = exported(PATTERNS["max_pool"]())
    pool = node(result.model, "maxpool")
    before = maker(result.model, pool.input[0])
    (behind,) = [n for n in result.model.graph.node if pool.output[0] in n.input]
    assert (before.op_type, behind.op_type) == ("DequantizeLinear", "QuantizeLinear")
    assert list(before.input[1:]) == list(behind.input[1:])
