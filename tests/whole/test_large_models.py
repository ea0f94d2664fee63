"""Models above protobuf's 2 GB: read by path, worked on in memory, written with external data."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from helpers.architectures import Graph
from helpers.stages import feeds
from onnx import TensorProto, external_data_helper

from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings

ROWS, WIDTH = 66_000_000, 8  # of float32: 2.1 GB


def looking_up(folder) -> onnx.ModelProto:
    """Write ``model.onnx``, a classifier that adds a row of a table of 2.1 GB to its features; return it without the table."""
    g = Graph(opset=17)
    x = g.relu(g.conv(g.input(3), 3, WIDTH, "c1"), "r1")
    x = g.op("GlobalAveragePool", [g.relu(g.conv(x, WIDTH, WIDTH, "c2"), "r2")], "pool")
    x = g.op("Flatten", [x], "flat")
    best = g.op("ArgMax", [x], "best", axis=1, keepdims=0)
    row = g.op("Gather", [g.constant("table", np.zeros((1, WIDTH), np.float32)), best], "look")
    g.gemm(g.op("Add", [x, row], "sum"), WIDTH, 10, output="output")
    model = g.model()
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    rows = np.zeros((WIDTH, WIDTH), np.float32)
    rows[:] = np.random.default_rng(0).standard_normal(rows.shape)
    with (folder / "table.bin").open("wb") as file:
        rows.tofile(file)
        file.truncate(ROWS * WIDTH * 4)
    table.CopyFrom(TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[ROWS, WIDTH], raw_data=b""))
    external_data_helper.set_external_data(table, "table.bin", 0, ROWS * WIDTH * 4)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return model


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 16e9, reason="takes 15 GB of memory")
def test_two_gigabytes_with_external_data(tmp_path):
    model = looking_up(tmp_path)
    images = next(iter(feeds(model, count=16).values()))
    np.save(tmp_path / "calib.npy", images)
    output = tmp_path / "quantized.onnx"
    settings = Settings(wbits=4, abits=4, iters=2, first_last_bits=8)
    result = quantize(tmp_path / "model.onnx", tmp_path / "calib.npy", settings, output=output)
    assert result.verification.exact == 1.0
    del result
    gc.collect()
    assert output.stat().st_size < 1 << 20
    assert next(tmp_path.glob("quantized.onnx-*.data")).stat().st_size > ROWS * WIDTH * 4 * 0.99
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": images})[0].shape == (16, 10)
