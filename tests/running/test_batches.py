"""A session is run on any number of items, whatever batch the model fixes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.architectures import Graph, two_inputs
from helpers.classifiers import classifier, outputs

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.data import Preprocess, open_validation
from mrecg_onnx.running import (
    fixed_batch,
    input_specs,
    open_session,
    run_padded,
)
from mrecg_onnx.running.batches import pad_batch

RAW = Preprocess(mean=(0.0,), std=(1.0,), scale=1 / 128)


@pytest.fixture
def rows(tmp_path):
    """37 ready inputs and their file: not a multiple of any batch used here."""
    x = np.random.default_rng(1).normal(size=(37, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return x, tmp_path / "x.npy"


@pytest.mark.parametrize("batch", ["batch", 1, 8, 64])
@pytest.mark.parametrize("size", [1, 10, 50])
def test_every_row_of_a_data_set_comes_out_once_whatever_the_batch(rows, batch, size):
    x, path = rows
    session = open_session(classifier(batch))
    assert fixed_batch(session) == (None if batch == "batch" else batch)
    data = open_validation(path, input_specs(session), RAW)
    parts = [run_padded(session, inputs) for inputs, _ in data.batches(size)]
    assert all(list(part) == ["output"] for part in parts)
    assert np.allclose(np.concatenate([part["output"] for part in parts]), outputs(classifier(), x), atol=1e-5)


def test_several_inputs_are_padded_together(tmp_path):
    model = two_inputs()
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    del model.graph.value_info[:]
    rng = np.random.default_rng(0)
    x = {
        "input": rng.normal(size=(6, 8, 16, 16)).astype(np.float32),
        "other": rng.normal(size=(6, 4, 8, 8)).astype(np.float32),
    }
    wanted = open_session(two_inputs()).run(None, x)[0]
    assert np.allclose(run_padded(open_session(model), x)["output"], wanted, atol=1e-5)


def test_an_output_without_the_batch_is_named():
    g = Graph()
    g.op("ReduceSum", [g.conv(g.input(3, 8), 3, 4)], "sum", "output", keepdims=0)
    with pytest.raises(ModelError, match="'output'"):
        run_padded(open_session(g.model()), {"input": np.zeros((2, 3, 8, 8), np.float32)})


@pytest.mark.parametrize("batch", ["N", 2])
def test_tensors_inside_may_have_several_rows_an_item(batch: int | str) -> None:
    """Windows, or what was taken off its batch: those of one item after the other."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{batch}, 4, 3] x) => (float[R, 3] y) {{ s = Constant<value = int64[2] {{-1, 3}}>() y = Reshape(x, s) }}"""
    x = np.arange(36, dtype=np.float32).reshape(3, 4, 3)
    session = open_session(onnx.parser.parse_model(text))
    assert np.array_equal(run_padded(session, {"x": x}, several=True)["y"], x.reshape(12, 3))
    with pytest.raises(ModelError, match="has to be the batch"):
        run_padded(session, {"x": x})


def test_inputs_that_do_not_fit_give_one_line():
    with pytest.raises(ModelError, match=r"\[2, 4, 8, 8\]") as caught:
        run_padded(open_session(classifier()), {"input": np.zeros((2, 4, 8, 8), np.float32)})
    assert "\n" not in str(caught.value)


def test_pad_batch_repeats_the_last_row() -> None:
    assert pad_batch(np.array([[1], [2]]), 4).tolist() == [[1], [2], [2], [2]]
    assert pad_batch(np.array([1, 2]), 2).tolist() == [1, 2]
    for rows_, size in ((3, 2), (0, 2)):
        with pytest.raises(ValueError, match="cannot pad"):
            pad_batch(np.zeros(rows_), size)
