"""Checks on the written file: per output, at the default level, with the node that is at fault."""

from __future__ import annotations

import copy
import re

import numpy as np
import onnx
import pytest
import torch
from helpers.stages import Stage, feeds, simulated
from onnx import helper, numpy_helper

from mrecg_onnx.checking.tracing import bisect, follow, kept_float, probed
from mrecg_onnx.checking.verification import verify
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.quantization import quantize
from mrecg_onnx.runtimes import fused_op_counts, open_session, run_padded
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing.containers import Contained
from mrecg_onnx.writing.exported import Exported
from mrecg_onnx.writing.qdq import export


def pooled() -> onnx.ModelProto:
    """Two convolutions with a pool between whose windows hang over the edge, and a map beside it as a second output."""
    random = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "w2": (6, 8, 3, 3), "w3": (2, 8, 1, 1)}
    weights = {name: random.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w3"], ["beside"], "third"), helper.make_node("AveragePool", ["b"], ["p"], "pool", **pool),
        helper.make_node("Conv", ["p", "w2"], ["y"], "second", pads=[1] * 4),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("beside", 1, None), helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


@pytest.fixture(scope="module")
def stage() -> tuple[Stage, Exported]:
    made = simulated(pooled(), wbits=8, abits=8)
    return made, export(made.graph, made.simulation, {})


def counting_pads(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the pool written as torch does: the same as written, wrong in ONNX Runtime's integer kernel."""
    result = copy.deepcopy(model)
    pool = next(node for node in result.graph.node if node.op_type == "AveragePool")
    for attribute in [a for a in pool.attribute if a.name == "count_include_pad"]:
        pool.attribute.remove(attribute)
    pool.attribute.append(helper.make_attribute("count_include_pad", 1))
    return result


def test_a_right_file_has_figures_of_every_output_and_nothing_to_say(stage):
    made, exported = stage
    found = verify(exported, made.simulation, made.data)
    assert found.warnings == found.notes == ()
    assert {c.name for c in found.outputs} == {"beside", "y"}
    data = {name: x.numpy() for name, x in made.data.items()}
    written, default = (run_padded(open_session(exported.model, level=level), data) for level in ("off", "all"))
    floats = {name: x.numpy() for name, x in made.network.run(made.data).items()}
    for check in found.outputs:
        assert check.sqnr_db == pytest.approx(sqnr_db(written[check.name], default[check.name]), abs=1e-6)
        assert check.written_db == pytest.approx(sqnr_db(floats[check.name], written[check.name]), abs=1e-3)
        assert check.default_db == pytest.approx(sqnr_db(floats[check.name], default[check.name]), abs=1e-3)
    assert found.sqnr_fused_db == min(c.sqnr_db for c in found.outputs)
    assert found.sqnr_db == min(c.simulation_db for c in found.outputs)


def test_what_is_measured_is_the_file_that_is_written_and_the_node_at_fault_is_named(stage):
    made, exported = stage
    broken = counting_pads(exported.model)
    data = {name: x.numpy() for name, x in made.data.items()}
    written, default = (run_padded(open_session(broken, level=level), data) for level in ("off", "all"))
    if sqnr_db(written["y"], default["y"]) > 40:
        pytest.skip("this ONNX Runtime has a right kernel for the pool")
    plain = run_padded(open_session(exported.model, level="off"), data)
    assert np.array_equal(plain["y"], written["y"])
    found = verify(exported, made.simulation, made.data, held=Contained(broken), target=load_target("ort"))
    (warning,) = found.warnings
    assert "output 'y'" in warning
    assert "node 'pool' (AveragePool)" in warning
    assert "'first'" not in warning
    assert "--exclude" in warning
    assert found.outputs[0].name == "y"
    assert found.outputs[0].falls
    assert not found.outputs[1].falls


def test_the_operator_type_at_fault_is_found_without_looking_at_codes(stage):
    made, exported = stage
    broken = counting_pads(exported.model)
    data = {name: x.numpy() for name, x in made.data.items()}
    wanted = run_padded(open_session(broken, level="off"), data)

    def run(model: onnx.ModelProto, fed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return run_padded(open_session(model), fed)

    if min(sqnr_db(x, run(broken, data)[n]) for n, x in wanted.items()) > 40:
        pytest.skip("this ONNX Runtime has a right kernel for the pool")
    assert bisect(broken, wanted, data, run, 3.0) == ("AveragePool", ["pool"])
    parted = kept_float(broken, ["pool"])
    assert np.array_equal(run_padded(open_session(parted, level="off"), data)["y"], wanted["y"])
    assert fused_op_counts(parted)["QLinearAveragePool"] == 0


def test_a_layer_that_was_written_wrong_is_named(stage):
    made, exported = stage
    model = copy.deepcopy(exported.model)
    codes = next(t for t in model.graph.initializer if t.name.startswith("w2") and t.data_type == onnx.TensorProto.INT8)
    codes.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(codes), codes.name))
    wrong = Exported(model, codes=exported.codes)
    found = verify(wrong, made.simulation, made.data)
    assert any("node 'second' (Conv)" in w and "run as written" in w for w in found.warnings)
    model = copy.deepcopy(exported.model)
    codes = next(t for t in model.graph.initializer if t.name.startswith("w1") and t.data_type == onnx.TensorProto.INT8)
    codes.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(codes), codes.name))
    found = verify(Exported(model, codes=exported.codes), made.simulation, made.data)
    assert any(re.search(r"fed the same codes node 'first' \(Conv\)", w) for w in found.warnings)


def test_probes_change_nothing_and_nodes_fed_the_same_codes_agree(stage):
    made, exported = stage
    grown, names = probed(exported.model, exported.codes)
    assert set(names) == set(made.simulation.activations)
    counts = [fused_op_counts(m) for m in (exported.model, grown)]
    assert all(counts[1][op] == n for op, n in counts[0].items() if op.startswith("QLinear"))
    run = lambda model, data: run_padded(open_session(model), data)  # noqa: E731
    trace = follow(exported.model, exported.codes, made.simulation, made.data, run, 8)
    plain = run(exported.model, {name: x.numpy() for name, x in made.data.items()})
    assert all(np.array_equal(trace.run[name], plain[name]) for name in plain)
    assert all(d.rounding < 0.01 and d.most < 1.5 for d in trace.departures.values())
    assert all(sums.sqnr_db > 80 for sums in trace.outputs.values())


def test_codes_on_an_edge_are_no_fault(stage):
    """A step's grid moved by a millionth: what lies on an edge falls the other way, all else stays."""
    made, exported = stage
    x = made.data["x"].clone()
    scale = float(made.simulation.activations["x"].scale)
    x[:, :, ::2] = torch.round(x[:, :, ::2] / scale) * scale + 0.5 * scale  # half of the input on edges
    run = lambda model, data: run_padded(open_session(model, level="off"), {"x": data["x"] * np.float32(1 + 1e-6)})  # noqa: E731
    trace = follow(exported.model, exported.codes, made.simulation, {"x": x}, run, 8)
    found = trace.departures["x"]
    assert found.share > 0.05
    assert found.far == 0
    assert found.most == pytest.approx(1, abs=0.01)


def test_figures_of_a_target_are_those_of_its_runtime(tmp_path):
    source = pooled()
    np.savez(tmp_path / "x.npz", **feeds(source, 16))
    for target in ("portable", "qnn"):
        result = quantize(source, tmp_path / "x.npz", Settings(method="nearest", wbits=8, abits=8, target=target))
        data = feeds(source, 16)
        written, default = (run_padded(open_session(result.model, level=level), data) for level in ("off", "all"))
        least = min(sqnr_db(written[n], default[n]) for n in written)
        assert result.verification.sqnr_fused_db == pytest.approx(least, abs=1e-6)
