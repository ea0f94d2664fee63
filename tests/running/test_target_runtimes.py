"""The runtimes of targets open the files that were written for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.command_line import works
from helpers.stages import feeds
from helpers.targets import SAMPLES, on_sample, quantized

from mrecg_onnx.data import open_validation
from mrecg_onnx.running import input_specs, open_session, open_with, run_padded
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.validating import stored_preprocess
from mrecg_onnx.writing.retargeting import retarget


def test_openvino_opens_the_file_and_runs_it_in_integers() -> None:
    pytest.importorskip("openvino")
    model = retarget(quantized("residual"), load_target("openvino"))
    opened = open_with(load_target("openvino"), model, feeds(model, 32))
    assert opened.runtime.startswith("OpenVINO 20")
    assert opened.kernels["Convolution I8"] == 6
    written = run_padded(open_session(model, level="off"), feeds(model, 32))["output"]
    assert np.mean(opened.outputs["output"].argmax(1) == written.argmax(1)) >= 0.9
    assert opened.sqnr_by_output["output"] > 60


def test_a_runtime_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    opened = open_with(load_target("openvino"), quantized("residual"), None)
    assert opened.line() == "not opened: OpenVINO is not installed (pip install 'mrecg-onnx[openvino]')"


def test_a_runtime_that_is_not_installed_is_said_by_the_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrecg_onnx.running.catalogue.importlib.util.find_spec", lambda _name: None)
    said = works(*on_sample("--target", "openvino", "-o", "ov.onnx")).stdout
    assert "target openvino: not opened: OpenVINO is not installed (pip install 'mrecg-onnx[openvino]')" in " ".join(
        said.split()
    )


def test_openvino_predicts_on_the_sample_what_onnx_runtime_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every convolution in integers, also behind an Add, and the same predictions: nothing in between stays unrounded."""
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    works(*on_sample("-o", "plain.onnx"))
    for container in ("int8", "packed"):
        works("convert", "plain.onnx", "--target", "openvino", "--container", container, "-o", "ov.onnx", "--force")
        model = onnx.load("ov.onnx")
        specs = input_specs(open_session(model))
        images = open_validation(SAMPLES / "val", specs, stored_preprocess(open_session(model), "ov.onnx"))
        feeds_all = next(iter(images.batches(450)))[0]
        opened = open_with(load_target("openvino"), model, feeds_all)
        assert opened.agreement is not None
        assert opened.agreement >= 0.985
        assert opened.kernels["Convolution I8"] == sum(n.op_type == "Conv" for n in model.graph.node)
        assert not any(name.startswith("Convolution") and name != "Convolution I8" for name in opened.kernels)
        assert opened.kernels["Eltwise I8"] >= sum(n.op_type == "Add" for n in model.graph.node)
