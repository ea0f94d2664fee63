"""Integers that a model fails on are the data's fault, and the sample is named."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.images import RAW
from onnx import numpy_helper

from mrecg_onnx.converters.errors import DataError, ModelError
from mrecg_onnx.converters.parity import run_onnx
from mrecg_onnx.data import InputSpec, open_calibration
from mrecg_onnx.inspecting import sensitivity
from mrecg_onnx.quantization import quantize
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import validate

N, WORDS = 40, 100
_TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
text (int64[{batch}, 6] ids) => (float[{batch}, 4] scores)
{{
    words = Gather (table, ids)
    mean = ReduceMean <axes = [1], keepdims = 0> (words)
    scores = MatMul (mean, weight)
}}
"""


def text_model(batch: int | str = "N") -> onnx.ModelProto:
    """Four scores of six words, which it knows :data:`WORDS` of."""
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(_TEXT.format(batch=batch))
    for name, shape in {"table": (WORDS, 8), "weight": (8, 4)}.items():
        model.graph.initializer.append(numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    return model


def ids(row: int, value: int) -> Any:
    found = np.random.default_rng(1).integers(0, WORDS, (N, 6))
    found[row, 3] = value
    return found


@pytest.mark.parametrize("batch", ["N", 1, 4])
@pytest.mark.parametrize("value", [389, -WORDS - 1])
def test_the_sample_is_named_wherever_it_lies(batch: int | str, value: int, tmp_path: Path) -> None:
    model, inputs = text_model(batch), [InputSpec("ids", (batch if batch != "N" else None, 6), np.dtype(np.int64))]  # type: ignore[arg-type]
    bad = ids(33, value)
    np.save(tmp_path / "a.npy", ids(0, 1))
    np.save(tmp_path / "b.npy", bad)
    run: Any = partial(run_onnx, model)
    reason = (
        rf"indices element out of data bounds, idx={value} must be within the inclusive range \[-100,99\]; give values"
    )
    for source, name in (
        (bad, "sample 33 of the ndarray"),
        (list(bad), "sample 33 of the list"),
        (tmp_path, r"row 33 in .*b\.npy"),
    ):
        data = open_calibration(source, inputs, RAW)
        with pytest.raises(DataError, match=rf"^m fails on {name}: {reason}"):
            data.require_taken(run, "m")
    open_calibration(ids(33, -1), inputs, RAW).require_taken(run, "m")


def test_what_fails_on_zeros_too_is_no_fault_of_the_data() -> None:
    def run(_: object) -> None:
        raise ModelError("no kernel")

    data = open_calibration(ids(0, 500), [InputSpec("ids", (None, 6), np.dtype(np.int64))], RAW)
    data.require_taken(run, "m")
    floats = open_calibration(np.ones((4, 6), np.float32), [InputSpec("x", (None, 6), np.dtype(np.float32))], RAW)
    floats.require_taken(run, "m")


def test_calls_name_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own IndexError was an unexpected failure, long after the start."""
    monkeypatch.chdir(tmp_path)
    onnx.save(text_model(), "text.onnx")
    np.save("bad.npy", ids(33, 389))
    settings = Settings(method="nearest", equalize="off", threads=1)
    with pytest.raises(DataError, match=r"text\.onnx fails on row 33 in bad\.npy: indices"):
        quantize("text.onnx", "bad.npy", settings)
    with pytest.raises(DataError, match=r"text\.onnx fails on row 33 in bad\.npy: indices"):
        sensitivity("text.onnx", ids(0, 1), settings, data="bad.npy")
    with pytest.raises(DataError, match=r"text\.onnx fails on sample 33 of the ndarray: indices"):
        quantize("text.onnx", ids(0, 1), replace(settings, max_drop=1), data=ids(33, 389))
    with pytest.raises(DataError, match=r"text\.onnx fails on sample 33 of the iterator: indices"):
        validate("text.onnx", "text.onnx", iter(ids(33, 389)[:, None]), repeats=0)
