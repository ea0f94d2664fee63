"""Executions fed the same codes, node by node, and the search for the operator type at fault."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from helpers.pooled import counting_pads, pooled
from helpers.stages import Stage, simulated

from mrecg_onnx.checking import executions
from mrecg_onnx.checking.executions import onnx_runtime
from mrecg_onnx.checking.tracing import bisect, follow, kept_float, probed
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.running import fused_op_counts, open_session, run_padded
from mrecg_onnx.writing.exported import Exported
from mrecg_onnx.writing.qdq import export


@pytest.fixture(scope="module")
def stage() -> tuple[Stage, Exported]:
    made = simulated(pooled(), wbits=8, abits=8)
    return made, export(made.graph, made.simulation, {})


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


def test_a_trace_is_the_same_however_many_images_are_run_at_a_time(stage):
    made, exported = stage
    few = {name: x[:8] for name, x in made.data.items()}
    whole, parts = (
        follow(exported.model, exported.codes, made.simulation, few, onnx_runtime("all"), size) for size in (8, 3)
    )
    assert {n: (d.values, d.moved, d.far) for n, d in whole.departures.items()} == {
        n: (d.values, d.moved, d.far) for n, d in parts.departures.items()
    }
    assert all(np.allclose(whole.run[name], parts.run[name]) for name in whole.run)
    assert [x.count for x in whole.outputs.values()] == [x.count for x in parts.outputs.values()]


def test_a_model_is_opened_once_for_all_batches(stage, monkeypatch):
    made, exported = stage
    opened = []

    def counting(source, **options):
        opened.append(options)
        return open_session(source, **options)

    monkeypatch.setattr(executions, "open_session", counting)
    run, data = onnx_runtime("off"), {name: x[:2].numpy() for name, x in made.data.items()}
    first = run(exported.model, data)
    again = run(exported.model, data)
    assert opened == [{"level": "off", "threads": torch.get_num_threads()}]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    run(probed(exported.model, exported.codes)[0], data)
    run(exported.model, data)
    assert len(opened) == 3
