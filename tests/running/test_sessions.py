"""Models are opened from every form, at every level, on the provider asked for, or refused in one line."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers.architectures import conv_relu, two_inputs
from helpers.classifiers import classifier

from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.data import InputSpec
from mrecg_onnx.running import (
    input_specs,
    open_session,
    sessions,
)


def test_a_session_opens_from_a_path_a_string_bytes_and_a_proto(tmp_path):
    model = conv_relu()
    onnx.save(model, tmp_path / "m.onnx")
    for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), model.SerializeToString(), model):
        assert open_session(source).get_providers() == ["CPUExecutionProvider"]


def test_a_session_reads_external_data_beside_the_file(tmp_path):
    onnx.save(classifier(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    assert open_session(tmp_path / "m.onnx").get_outputs()[0].name == "output"


def test_levels_off_and_all_run_the_same_function():
    x = {"input": np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    off, basic, best = (open_session(classifier(), level).run(None, x)[0] for level in ("off", "basic", "all"))
    assert np.allclose(off, best, atol=1e-5)
    assert np.allclose(off, basic, atol=1e-5)


def test_what_onnx_runtime_refuses_is_one_line_with_its_reason(tmp_path):
    missing, text = tmp_path / "missing.onnx", tmp_path / "text.onnx"
    text.write_text("not a model")
    broken = conv_relu()
    broken.graph.node[0].op_type = "NoSuchOperator"
    for model, reason in ((missing, "no such file"), (text, "is not an ONNX file"), (broken, "NoSuchOperator")):
        with pytest.raises(ModelError, match=reason) as caught:
            open_session(model)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"text\.onnx"):
        open_session(text)


def test_missing_external_data_is_a_model_error(tmp_path):
    onnx.save(classifier(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match=r"m\.onnx"):
        open_session(tmp_path / "m.onnx")


@pytest.mark.parametrize("settings", [{"level": "fast"}, {"threads": 0}, {"device": "npu"}])
def test_settings_of_a_session_are_checked(settings):
    with pytest.raises(SettingsError, match=str(next(iter(settings.values())))):
        open_session(conv_relu(), **settings)


def test_cuda_without_a_device_is_an_error_and_not_a_silent_cpu_run(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SettingsError, match="cuda"):
        open_session(conv_relu(), device="cuda")
    assert capsys.readouterr().out == ""


def test_a_provider_that_onnx_runtime_leaves_out_is_an_error(monkeypatch):
    on_cpu = open_session(conv_relu())
    monkeypatch.setattr(sessions, "_require_cuda", lambda: None)
    # what a CUDA library that does not load leads to
    monkeypatch.setattr(sessions, "open_on_providers", lambda *_: on_cpu)
    with pytest.raises(SettingsError, match="could not load its CUDAExecutionProvider"):
        open_session(conv_relu(), device="cuda")


def test_what_a_provider_lacks_is_no_fault_of_the_model(monkeypatch):
    opened = sessions.open_on_providers

    def fails_on_cuda(model, options, providers):
        if providers[0] == "CUDAExecutionProvider":
            raise ModelError("m.onnx: cannot be opened") from RuntimeError(
                "/src/a.cc:7 void f(int) Please install CUDA"
            )
        return opened(model, options, providers)

    monkeypatch.setattr(sessions, "_require_cuda", lambda: None)
    monkeypatch.setattr(sessions, "open_on_providers", fails_on_cuda)
    with pytest.raises(SettingsError, match="could not load its CUDAExecutionProvider: Please install CUDA; install"):
        open_session(conv_relu(), device="cuda")
    with pytest.raises(ModelError, match=r"nowhere\.onnx: no such file"):
        open_session("nowhere.onnx", device="cuda")


def test_input_specs_keep_fixed_sizes_and_forget_symbolic_ones():
    assert input_specs(open_session(two_inputs())) == [
        InputSpec("input", (None, 8, 16, 16), np.dtype(np.float32)),
        InputSpec("other", (None, 4, 8, 8), np.dtype(np.float32)),
    ]
