"""What is given in place of a model, and is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mrecg_onnx
from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.load import model_path

ROWS = np.zeros((4, 3), np.float32)
CALLS = {
    "quantize": lambda model: mrecg_onnx.quantize(model, ROWS),
    "validate": lambda model: mrecg_onnx.validate(model, model, ROWS),
    "compare": lambda model: mrecg_onnx.compare(model, ROWS, ROWS, "out", methods=["nearest"], bits=["W4A4"]),
    "estimate": lambda model: mrecg_onnx.estimate(model, ROWS),
    "inspect": mrecg_onnx.inspect,
    "inspect_result": mrecg_onnx.inspect_result,
    "convert": mrecg_onnx.convert,
    "to_litert": mrecg_onnx.to_litert,
    "sensitivity": lambda model: mrecg_onnx.sensitivity(model, ROWS),
    "benchmark": lambda model: mrecg_onnx.benchmark([model]),
    "runtimes": mrecg_onnx.runtimes,
    "report": lambda model: mrecg_onnx.report(model, "page.html"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_network_of_torch_is_to_be_exported_first(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if call == "report":
        pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=r"not Linear: export it first: torch.onnx.export\(model, example, 'model.onnx'\)"
    ):
        CALLS[call](torch.nn.Linear(3, 3))


def test_other_things_are_named_by_their_type() -> None:
    class Exported:
        model_proto = None

    with pytest.raises(ModelError, match=r"not Exported: give its \.model_proto"):
        model_path(Exported())
    with pytest.raises(ModelError, match=r"a model is the path of an ONNX file or an onnx.ModelProto, not int$"):
        model_path(3)
    assert model_path("a.onnx") == model_path(Path("a.onnx")) == Path("a.onnx")
