"""A file in every runtime: what works, and what crashes, hangs, refuses or computes something else."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from helpers.command_line import fails, works
from helpers.stages import feeds
from helpers.targets import on_sample, quantized
from rich.console import Console

from mrecg_onnx.commands._runtimes import details, summary
from mrecg_onnx.converters.errors import DataError, ModelError, SettingsError
from mrecg_onnx.running import RUNTIMES, Attempt, RuntimesReport, open_session, runtimes
from mrecg_onnx.running.attempts import MOST, reason
from mrecg_onnx.running.catalogue import Arithmetic

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the runtimes made up here are started by a shell script")

#: A module with tract's calls; what each of them does is put in.
FAKE = """
import json, os, signal, sys, time
import numpy as np
import onnxruntime

def version():
    return "{version}"

class Model:
    def __init__(self, path):
        self.path = str(path)
        self.session = onnxruntime.InferenceSession(self.path)
        {load}
    def input_count(self): return 1
    def input_name(self, i): return self.session.get_inputs()[0].name
    def set_input_fact(self, i, fact): self.fact = fact
    def analyse(self): pass
    def into_model(self): return self
    def prepare(self, model): return model
    def profile_json(self, feeds):
        return {{"nodes": [{{"op_name": "OptMatMul", "cost": {{"FMA(I8)": "7"}}}}]}}
    def run(self, feeds):
        found = self.session.run(None, {{self.input_name(0): feeds[0]}})
        {run}
        return [Tensor(one) for one in found]

class Tensor:
    def __init__(self, array): self.array = array
    def to_numpy(self): return self.array

class Onnx:
    def load(self, path): return Model(path)

def onnx(): return Onnx()
def runtime_for_name(name):
    class Default:
        def prepare(self, model): return model
    return Default()
"""


def environment(folder: Path, load: str = "pass", run: str = "pass", version: str = "7.7") -> Path:
    """A Python that has a tract of our own."""
    folder.mkdir()
    (folder / "tract.py").write_text(FAKE.format(load=load, run=run, version=version))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(quantized("residual"), path)
    return path


def data(path: Path, count: int = 8) -> dict[str, np.ndarray]:
    return feeds(onnx.load(path), count)


def tried(model: Path, load: str = "pass", run: str = "pass", **more: Any) -> Attempt:
    """What comes of the tract that does ``load`` and ``run``."""
    python = environment(model.parent / "made_up", load, run)
    more.setdefault("runs", 2)
    found = runtimes(model, data(model), only=["tract"], python=[python], **more)
    (one,) = (attempt for attempt in found.attempts if attempt.environment == str(python))
    return one


def test_a_runtime_of_another_environment_is_compared_named_and_timed(model: Path) -> None:
    one = tried(model, against=model)
    assert (one.loads, one.runs, one.reason, one.fixed_batch) == (True, True, "", None)
    assert (one.version, one.items) == ("7.7", 8)
    assert one.kernels == {"OptMatMul FMA(I8)": 1}
    assert str(one.arithmetic) == "integer"
    assert one.sqnr_by_output["output"] > 30
    assert one.median_s is not None
    assert one.against_s is not None
    assert one.time_ratio == one.median_s / one.against_s
    assert one.cpu_s is not None
    assert one.against_cpu_s is not None


def test_wrong_values_are_seen(model: Path) -> None:
    onnx.save(float_model(), model)
    right = tried(model)
    assert (right.agreement, right.loads, right.runs) == (1.0, True, True)
    shutil.rmtree(model.parent / "made_up")
    wrong = tried(model, run="found[0] = found[0][:, ::-1] * 3")
    assert (wrong.loads, wrong.runs) == (True, True)
    assert wrong.agreement is not None
    assert wrong.agreement < 0.5
    assert wrong.sqnr_by_output["output"] < 3


def test_values_of_another_shape_are_no_result(model: Path) -> None:
    one = tried(model, run="found[0] = found[0][:, :2]")
    assert (one.loads, one.runs, one.agreement) == (True, False, None)
    assert "output 'output' is [8, 2], a row for each item is [10]" in one.reason


@pytest.mark.parametrize(
    ("what", "loads", "says"),
    [
        ({"load": "raise ValueError('no such operator: Frob')"}, False, "no such operator: Frob"),
        ({"load": "os.kill(os.getpid(), signal.SIGSEGV)"}, False, "crashed with SIGSEGV while opening it"),
        ({"run": "os.kill(os.getpid(), signal.SIGABRT)"}, True, "crashed with SIGABRT while running it"),
        ({"load": "print('Error: bad luck', flush=True); os._exit(3)"}, False, "code 3 while opening it: Error: bad luck"),
        ({"run": "raise KeyError('k')"}, True, "KeyError: 'k'"),
        ({"load": "raise RuntimeError('')"}, False, "RuntimeError:"),
    ],
    ids=["refuses", "crashes", "crashes later", "exits", "fails", "says nothing"],
)  # fmt: skip
def test_what_fails_is_a_row_that_says_so(model: Path, what: dict[str, str], loads: bool, says: str) -> None:
    one = tried(model, **what)
    assert (one.loads, one.runs, one.agreement, one.median_s) == (loads, False, None, None)
    assert says in one.reason


@pytest.mark.slow
def test_what_hangs_is_stopped_with_all_that_it_started(model: Path) -> None:
    mark = model.parent / "alive"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    one = tried(
        model, load=f"os.spawnv(os.P_NOWAIT, sys.executable, ['python', '-c', {child!r}]); time.sleep(60)", timeout=3
    )
    assert one.reason == "stopped after 3 s while opening it"
    assert one.loads is False
    assert not mark.exists()


@pytest.mark.parametrize("between", ["exec", ""], ids=["started by it", "with a shell between them"])
def test_a_worker_does_not_outlive_its_killed_parent(model: Path, between: str) -> None:
    mark = model.parent / "number"
    python = environment(
        model.parent / "made_up", load=f"open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    python.write_text(python.read_text().replace("exec", between))
    call = f"runtimes({str(model)!r}, only=['tract'], python=[{str(python)!r}])"
    code = f"from mrecg_onnx.running import runtimes; {call}"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        until = time.monotonic() + 60
        while not (mark.is_file() and mark.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        worker = psutil.Process(int(mark.read_text()))
        parent.kill()
    gone, _ = psutil.wait_procs([worker], timeout=5)
    assert gone or worker.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_what_takes_too_much_memory_is_stopped(model: Path) -> None:
    one = tried(model, load="self.much = [np.ones(2**27) for _ in range(4)]; time.sleep(60)", memory=10**9)
    assert one.reason == "stopped at 1.00 GB of memory while opening it"


def test_what_is_found_before_a_crash_stays(model: Path) -> None:
    """Outputs were compared before the timing crashed."""
    count = "Model.runs = getattr(Model, 'runs', 0) + 1; os.abort() if Model.runs > 8 else None"
    one = tried(model, run=count)
    assert (one.runs, one.items) == (True, 8)
    assert one.sqnr_by_output["output"] > 30
    assert one.reason.startswith("crashed with SIGABRT while timing it")
    assert one.median_s is None


def test_what_wants_a_fixed_batch_gets_one_and_that_is_said(model: Path) -> None:
    load = "n = self.session.get_inputs()[0].shape[0]\n        if not isinstance(n, int): raise ValueError('no dynamic sizes')"
    one = tried(model, load=load, batch=2)
    assert (one.loads, one.runs, one.fixed_batch) == (True, True, 2)
    assert one.reason == "with a free batch: no dynamic sizes"
    assert one.sqnr_by_output["output"] > 30


def test_a_float_model_that_does_not_open_leaves_the_rest(model: Path) -> None:
    other = model.parent / "float.onnx"
    shutil.copy(model, other)
    one = tried(
        model, load="\n        if open(self.path, 'rb').read() and 'against' in self.path: raise ValueError('not this one')",
        against=other,
    )  # fmt: skip
    assert one.runs
    assert one.median_s is not None
    assert (one.against_s, one.time_ratio, one.against_reason) == (None, None, "not this one")


def test_a_slow_runtime_compares_fewer_items(model: Path) -> None:
    one = tried(model, run="time.sleep(0.5)", timeout=10, runs=0)
    assert one.runs
    assert 1 <= one.items < 8


def test_one_version_is_tried_once(model: Path) -> None:
    same = [environment(model.parent / name) for name in ("a", "b")]
    found = runtimes(model, data(model), only=["onnxruntime"], python=same, runs=0)
    assert len(found.attempts) == 1
    assert found.attempts[0].environment == sys.executable


def test_what_is_not_installed_is_listed_with_what_installs_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrecg_onnx.running.places.shutil.which", lambda name: None if name == "node" else name)
    found = runtimes(model, data(model), only=["onnxruntime-web", "onnxruntime-node"])
    assert [(one.name, one.loads, one.install) for one in found.attempts] == [
        ("onnxruntime-web", None, "npm install onnxruntime-web"),
        ("onnxruntime-node", None, "npm install onnxruntime-node"),
    ]


def test_what_a_runtime_makes_of_a_file_is_not_left_beside_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with weights in another file is opened where it lies: profiles and converted files were left there."""
    home = model.parent / "home"
    home.mkdir()
    onnx.save(float_model(), home / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir(home)
    monkeypatch.setattr("mrecg_onnx.running.trying.WHOLE_FILES", {"Tract"})  # writes beside what it opens, as pnnx does
    writes = environment(model.parent / "made_up", load="open(self.path + '.made', 'w').close()")
    found = runtimes("m.onnx", data(home / "m.onnx"), only=["onnxruntime", "tract"], python=[writes], runs=1)
    assert [one.runs for one in found.installed] == [True] * len(found.installed)
    assert {one.name for one in found.installed} == {"onnxruntime", "tract"}
    assert sorted(path.name for path in home.iterdir()) == ["m.data", "m.onnx"]


def test_where_there_is_no_gpu_what_needs_one_is_not_tried(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for GPUs lists CUDA and TensorRT everywhere; opening them takes a minute there, to fail."""
    there = {"modules": ["onnxruntime"], "versions": {"onnxruntime-gpu": "1.31.1"}, "nvidia": False}
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("mrecg_onnx.running.places._asked", lambda _: there | {"providers": providers})
    found = runtimes(model, data(model), only=["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"], runs=0)
    assert [one.loads for one in found.attempts] == [True, None, None]
    assert [one.name for one in found.installed] == ["onnxruntime"]
    assert [one.reason for one in found.passed_over] == ["there is no NVIDIA GPU"] * 2
    shown = " ".join(_lines(*summary(found, None, None)).split())
    assert "1 of 1 installed" in shown
    assert "ONNX Runtime CUDA 1.31.1; ONNX Runtime TensorRT 1.31.1: there is no NVIDIA GPU" in shown
    assert "not installed" not in shown


def test_providers_are_spelled_as_their_makers_do() -> None:
    titles = {name: row.title for name, row in RUNTIMES.items()}
    assert titles["onnxruntime-tensorrt"] == "ONNX Runtime TensorRT"
    assert titles["onnxruntime-openvino"] == "ONNX Runtime OpenVINO"


def test_onnx_runtime_itself_is_integer_and_right(model: Path) -> None:
    (one,) = runtimes(model, data(model), only=["onnxruntime"], runs=1).attempts
    assert (one.name, one.loads, one.runs) == ("onnxruntime", True, True)
    assert str(one.arithmetic) == "integer"
    assert one.kernels["QLinearConv"] == 6
    assert one.sqnr_by_output["output"] > 30


def test_the_reference_of_onnx_runs_in_float(model: Path) -> None:
    (one,) = runtimes(model, data(model), only=["onnx-reference"], runs=0).attempts
    assert str(one.arithmetic) == "float"
    assert one.sqnr_by_output["output"] > 60


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("openvino", "openvino"), ("openvino-default", "openvino"), ("opencv", "cv2"), ("tvm", "tvm"), ("iree", "iree.runtime"),
        ("qonnx", "qonnx"), ("mnn", "MNN"), ("ncnn", "ncnn"), ("tract", "tract"),
    ],
)  # fmt: skip
def test_a_float_model_runs_in_each_runtime_that_is_installed(name: str, module: str, tmp_path: Path) -> None:
    pytest.importorskip(module)
    path = tmp_path / "float.onnx"
    onnx.save(float_model(), path)
    (one,) = runtimes(path, data(path), only=[name], runs=1).attempts
    if "Unsupported model IR version" in one.reason:
        pytest.skip("onnx is newer here than onnxruntime, with which qonnx runs single nodes")
    assert one.runs, one.reason
    assert one.agreement in {None, 1.0}
    assert one.sqnr_by_output["output"] > (20 if name == "openvino-default" else 60)
    assert str(one.arithmetic or "float") == "float"


@pytest.mark.parametrize("name", ["onnxruntime-web", "onnxruntime-node"])
def test_node_runs_the_file_as_native_does(name: str, model: Path) -> None:
    (one,) = runtimes(model, data(model), only=[name], runs=1).attempts
    if one.loads is None:
        pytest.skip("node or the package is not there: NODE_PATH or node_modules")
    assert one.runs, one.reason
    assert str(one.arithmetic) == "integer"
    assert one.sqnr_by_output["output"] > 30


def float_model() -> onnx.ModelProto:
    """Two convolutions and a classifier at a fixed batch."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((8, 3, 3, 3)), "w2": random.standard_normal((8, 8, 3, 3)),
        "w3": random.standard_normal((10, 128)), "b3": random.standard_normal(10),
    }  # fmt: skip
    helper = onnx.helper
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], pads=[1] * 4, name="conv1"),
        helper.make_node("Relu", ["a"], ["b"], name="relu1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4, name="conv2"),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        helper.make_node("Flatten", ["d"], ["e"], name="flatten"),
        helper.make_node("Gemm", ["e", "w3", "b3"], ["output"], transB=1, name="classifier"),
    ]
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "float",
        [helper.make_tensor_value_info("input", floats, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("output", floats, [1, 10])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# --- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"only": ["abacus"]}, "runtime 'abacus' is unknown: choose among onnxruntime,"),
        ({"batch": 0}, "batch is 0: it must be 1 or more"),
        ({"threads": 0}, "threads is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"runs": -1}, "runs is -1"),
        ({"python": ["/nowhere/python"]}, "--python /nowhere/python: cannot be started"),
        ({"data": {"input": np.zeros((2, 5), np.float32)}}, "cannot be fed with what data have: float32 [2, 5]"),
        ({"data": {}}, "cannot be fed with what data have: missing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(model: Path, given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says.replace("[", r"\[").replace("]", r"\]")):
        runtimes(model, **given)


def test_a_python_without_numpy_is_refused(model: Path, tmp_path: Path) -> None:
    python = tmp_path / "bare"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    python.chmod(0o755)
    with pytest.raises(SettingsError, match=r"cannot be used, it needs numpy: .*No module named 'numpy'"):
        runtimes(model, python=[python])


@pytest.mark.parametrize(
    "printed",
    ["3", "null", "[]", "{}", '{"modules": 3, "versions": [], "providers": null}', "[" * 100_000, r"\377\376"],
)
def test_a_python_that_answers_something_else_is_refused(model: Path, tmp_path: Path, printed: str) -> None:
    python = tmp_path / "strange"
    python.write_text(f"#!/bin/sh\nprintf '{printed}\\n'\n")
    python.chmod(0o755)
    with pytest.raises(SettingsError, match=r"strange: cannot be used, it needs numpy: it says nothing"):
        runtimes(model, python=[python])


def test_a_package_of_npm_that_cannot_be_read_is_a_row(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    (tmp_path / "onnxruntime-node").mkdir()
    (tmp_path / "onnxruntime-node" / "package.json").write_text("[")
    monkeypatch.setenv("NODE_PATH", str(tmp_path))
    (one,) = runtimes(model, data(model), only=["onnxruntime-node"], runs=0).attempts
    assert one.loads is False
    assert one.reason


@pytest.mark.parametrize("kind", [onnx.TensorProto.STRING, onnx.TensorProto.BFLOAT16, onnx.TensorProto.UINT4, 0, 99])
def test_inputs_that_are_no_numbers_are_refused(model: Path, kind: int) -> None:
    proto = onnx.load(model)
    proto.graph.input[0].type.tensor_type.elem_type = kind
    onnx.save(proto, model)
    with pytest.raises(ModelError, match=r"model.* has elements of (type \w+: it cannot be fed|no type that is known)"):
        runtimes(model)


@pytest.mark.parametrize("given", [{"samples": 10**12}, {"batch": 10**12}])
def test_inputs_that_memory_does_not_hold_are_refused(model: Path, given: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=r"^10{12} items of .* PB of memory"):
        runtimes(model, **given)  # type: ignore[arg-type]


def test_an_output_without_sizes_is_no_failure(tmp_path: Path) -> None:
    names = [onnx.helper.make_tensor_value_info(*one) for one in (("x", 1, ["n", 4]), ("y", 1, []))]
    node = onnx.helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)
    graph = onnx.helper.make_graph([node], "mean", names[:1], names[1:])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m"
    )
    (one,) = runtimes(tmp_path / "m", only=["onnxruntime"], runs=0).attempts
    assert (one.loads, one.runs, one.reason) == (True, True, "")


def test_a_pipe_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match=r"pipe\.onnx: is a named pipe, no file"):
        runtimes(tmp_path / "pipe.onnx")


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match=r"text\.onnx: is not an ONNX file"):
        runtimes(tmp_path / "text.onnx")
    with pytest.raises(ModelError, match=r"nothing\.onnx: no such file"):
        runtimes(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("kind", ["array", "list", "generator", "file"])
def test_data_are_whatever_hands_out_arrays(model: Path, kind: str) -> None:
    (x,) = data(model).values()
    np.save(model.parent / "x.npy", x)
    source: Any = {"array": x, "list": list(x), "generator": iter(x), "file": model.parent / "x.npy"}[kind]
    expected = runtimes(model, data(model), only=["onnxruntime"], runs=0).attempts[0].sqnr_by_output
    assert runtimes(model, source, only=["onnxruntime"], runs=0).attempts[0].sqnr_by_output == expected
    with pytest.raises(SettingsError, match="the list holds images, and nothing says here how they become inputs"):
        runtimes(model, ["a.png", "b.png"], only=["onnxruntime"])


def test_a_file_that_onnx_runtime_does_not_run_is_tried_all_the_same(model: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[-1].domain = "of.nobody"
    onnx.save(proto, model)
    found = runtimes(model, data(model), only=["onnxruntime"], runs=0)
    assert found.reference.startswith("nothing: ")
    assert found.attempts[0].loads is False
    assert "of.nobody" in found.attempts[0].reason


# --- what is said ------------------------------------------------------------------------------------------------------


def test_reasons_are_one_short_line_without_control_characters() -> None:
    assert reason("Exception from src/core.cpp:10:\n\nOperation X is \x1b[31mnot\x1b[0m supported\n") == (
        r"Operation X is \x1b[31mnot\x1b[0m supported"
    )
    long = reason("word " * 100)
    assert len(long) == MOST
    assert long.endswith("…")
    assert reason("") == ""
    assert reason("starting\nError: this is it\nbye", crashed=True) == "Error: this is it"
    assert reason("starting\nbye", crashed=True) == "bye"
    assert reason("Error code: 1\nDiagnostics:\nm.mlir:3:4: error: failed to legalize") == "failed to legalize"
    refused = "[ONNXRuntimeError] : 10 : INVALID_GRAPH : Load model from /x/mrecg_onnx_a/m.onnx failed:This is invalid."
    assert reason(refused) == "INVALID_GRAPH: This is invalid."
    signature = (
        "[ONNXRuntimeError] : 1 : FAIL : /src/model.cc:180 onnxruntime::Model::Model(P&&, F<void(int)>) Unknown."
    )
    assert reason(signature) == "FAIL: Unknown."


@pytest.mark.parametrize(
    ("name", "kernels", "says"),
    [
        ("onnxruntime", {"QLinearConv": 19, "QGemm": 1, "Clip": 4}, "integer"),
        ("onnxruntime", {"QLinearConv": 18, "FusedConv": 1, "Gemm": 1}, "integer 18 of 20"),
        ("onnxruntime", {"Add": 3}, "None"),
        ("onnxruntime-xnnpack", {"Conv (Xnnpack)": 2, "QLinearConv": 2}, "integer 2 of 4"),
        ("openvino", {"Convolution I8": 19, "FullyConnected I8": 1, "Eltwise FP32": 9}, "integer"),
        ("openvino", {"Convolution BF16": 1, "Convolution I8": 1}, "integer 1 of 2"),
        ("opencv", {"Conv2Int8": 9, "Conv2": 10, "Gemm": 1, "Eltwise2Int8": 9}, "integer 9 of 20"),
        ("tvm", {"conv2d float32": 19, "quantize uint8": 9}, "float"),
        ("tvm", {"conv2d int32": 19, "matmul float32": 1}, "integer 19 of 20"),
        ("iree", {"conv_2d_nchw_fchw f32xf32": 19, "matmul f32xf32": 1}, "float"),
        ("iree", {"conv_2d_nchw_fchw_q i8xi8xi32xi32": 19}, "integer"),
        ("mnn", {"Convolution": 19}, "None"),
        ("ncnn", {"Convolution": 19}, "None"),
        ("tract", {"OptMatMul FMA(F32)": 20, "Max": 3}, "float"),
        ("onnx-reference", {"Conv": 3, "QuantizeLinear": 4}, "float"),
    ],
)
def test_arithmetic_is_what_kernels_are_called_and_never_guessed(name: str, kernels: dict[str, int], says: str) -> None:
    assert str(RUNTIMES[name].arithmetic(kernels)) == says
    assert str(Arithmetic(2, 1)) == "integer 2 of 3"


def test_the_worker_needs_nothing_of_this_package() -> None:
    folder = Path(sys.modules["mrecg_onnx.running.trying"].__file__ or "").parent
    for name in ("worker.py", "openers.py"):
        assert "mrecg_onnx" not in (folder / name).read_text().replace(":mod:`mrecg_onnx", "")


# --- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_json(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    python = environment(model.parent / "made_up", load="raise ValueError('no \x1b[31mluck')")
    np.save("x.npy", data(model)["input"])
    said = works(
        "runtimes", "model.onnx", "--against", "model.onnx", "--only", "onnxruntime", "--only", "tract", "--python", python,
        "--data", "x.npy", "--runs", "1", "--json", "r.json",
    ).stdout  # fmt: skip
    assert "ONNX Runtime" in said
    assert "integer" in said
    assert "8 items of x.npy, batch 1" in said
    assert r"no \x1b[31mluck" in said
    assert str(python) not in said
    report = json.loads(Path("r.json").read_text())
    assert [one["name"] for one in report["attempts"]] == ["onnxruntime", "tract"]
    assert report["attempts"][0]["time_ratio"] > 0
    assert report["attempts"][1]["loads"] is False
    assert report["noise"] is False


def test_the_command_makes_noise_without_data_and_says_so(model: Path) -> None:
    said = works("runtimes", model, "--only", "onnxruntime", "--samples", "3", "--runs", "0", "--threads", "0").stdout
    assert "3 items of noise, batch 1" in said
    assert "each runtime's own" in said


@pytest.mark.slow
def test_more_is_said_when_asked_for_and_nothing_when_quiet(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    python = environment(model.parent / "made_up", run="found[0] = found[0][:, ::-1] * 3")
    asked = ("runtimes", "model.onnx", "--only", "tract", "--only", "mnn", "--python", python, "--runs", "1")
    short = " ".join(works(*asked).stdout.split())
    assert "opened 1 of 1 installed" in short
    assert "agree 0 of 1 (wanted: 15 dB in the worst output) tract 7.7 does not: " in short
    assert "to do tract 7.7: no form is known that it runs right" in short
    assert str(python) not in short
    long = works(*asked, "-v").stdout
    assert str(python) in long
    assert "pip install MNN" in long
    assert "pip install MNN" not in short
    quiet = works(*asked, "-q")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    alone = json.loads(works(*asked, "--json", "-").stdout)
    assert [one["name"] for one in alone["attempts"]] == ["mnn", "tract"]


def _of(name: str, **more: Any) -> Attempt:
    """A runtime that ran a file as the graph says, but for what is ``more``."""
    row = RUNTIMES[name]
    usual: dict[str, Any] = {
        "version": "1.23.4", "loads": True, "runs": True, "arithmetic": Arithmetic(52, 1), "items": 64, "agreement": 1.0,
        "sqnr_by_output": {"logits": 31.2}, "median_s": 0.0123, "against_s": 0.0234,
    }  # fmt: skip
    return Attempt(row.name, row.title, install=row.install, **{**usual, **more})


def _found(*attempts: Attempt, noise: bool = False) -> RuntimesReport:
    reference = "ONNX Runtime 1.31.1, graph as written"
    return RuntimesReport("resnet20_mrecg_w4a4.onnx", "resnet20.onnx", noise, 64, reference, 1, 1, attempts)


def _said(*attempts: Attempt, form: tuple[str, str] | None = ("ort", "int8")) -> str:
    """The summary, at 80 columns."""
    return _lines(*summary(_found(*attempts), None, form))


def _lines(*tables: Any) -> str:
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(*tables)
    return capture.get()


FAILED = {
    "runs": False,
    "agreement": None,
    "sqnr_by_output": {},
    "arithmetic": None,
    "median_s": None,
    "against_s": None,
}


def test_a_summary_is_a_screen_of_80_columns_that_says_what_to_do() -> None:
    said = _said(
        _of("onnxruntime"),
        _of("onnxruntime-node", agreement=0.984, median_s=0.02),
        _of("openvino", agreement=0.797, sqnr_by_output={"logits": 11.4}),
        _of("opencv", agreement=0.781, sqnr_by_output={"logits": 10.4}),
        _of("iree", fixed_batch=1, agreement=0.0, sqnr_by_output={"logits": -3.0}),
        _of(
            "mnn", **FAILED, loads=False, reason="crashed with SIGABRT while opening it: what(): vector::_M_range_check"
        ),
        *(
            Attempt(row, RUNTIMES[row].title, install=RUNTIMES[row].install)
            for row in ("tvm", "qonnx", "ncnn", "tract")
        ),
    )
    lines = said.splitlines()
    assert len(lines) <= 32  # much went wrong
    assert max(map(len, lines)) <= 80
    for text in (
        "5 of 6 installed",
        "MNN 1.23.4 does not: crashed with SIGABRT",
        "2 of 5 (wanted: 95% of the predictions)",
        "OpenVINO 1.23.4 does not: 79.7% of 64 predictions, 11.4 dB",
        "ONNX Runtime 1.23.4, 12.3 ms a batch, 1.90x faster than FP32 there",
        "OpenVINO 1.23.4: mrecg-onnx convert resnet20_mrecg_w4a4.onnx --target openvino",
        "OpenCV dnn 1.23.4: mrecg-onnx convert resnet20_mrecg_w4a4.onnx --target portable",
        "IREE 1.23.4: mrecg-onnx convert resnet20_mrecg_w4a4.onnx --target portable --batch 1",
        "MNN 1.23.4: no form is known that it runs right",
        "TVM; qonnx; ncnn (pnnx); tract (--verbose",
    ):
        assert text in " ".join(said.split())


def test_without_predictions_that_count_the_column_says_whether_the_worst_output_is_near() -> None:
    far, blind = {"sqnr_by_output": {"map": 30.0, "mask": 14.0}}, {"sqnr_by_output": {}, "agreement": None}
    tried = (_of("onnxruntime"), _of("openvino", **far), _of("tvm", **blind), _of("mnn", **FAILED, loads=False))
    for noise, found in ((True, tried), (False, tuple(replace(one, agreement=None) for one in tried))):
        said = " ".join(_lines(*summary(_found(*found, noise=noise), None, None)).split())
        for text in (
            "yes yes 31.2 dB",
            "yes no 14.0 dB",
            "yes not known -",
            "no - -",
            "OpenVINO 1.23.4 does not: 14.0 dB",
        ):
            assert text in said
        assert "1 of 2 (wanted: 15 dB in the worst output)" in said
    assert "of 64" not in _lines(*details(_found(*tried, noise=True)))


def test_where_all_is_well_nothing_is_to_do() -> None:
    said = _said(
        *map(_of, ("onnxruntime", "onnxruntime-web", "onnxruntime-node", "openvino", "openvino-default", "tvm"))
    )
    assert len(said.splitlines()) <= 24
    assert "to do" not in said
    assert "does not" not in said


@pytest.mark.parametrize(
    ("form", "attempt", "says"),
    [
        (("portable", "int8"), _of("tvm", agreement=0.5), "this is the form for it; --abits 8"),
        (("ort", "int8"), _of("mnn", agreement=0.5), "no form is known that it runs right"),
        (("openvino", "int8"), _of("opencv", agreement=0.5), "quantize with --target portable (files for ort are conv"),
        (("ort", "packed"), _of("onnxruntime", **FAILED, loads=False, reason="INT2"), "convert resnet20_mrecg_w4a4.onnx --co"),
        (("ort", "int8"), _of("qonnx", agreement=0.5), "quantize with --target qonnx"),
        (None, _of("opencv", agreement=0.5), "quantize with --target portable"),
        (None, _of("iree", fixed_batch=4), "takes no free batch: fix 4 in the model"),
        (("portable", "int8"), _of("iree", fixed_batch=4), "convert resnet20_mrecg_w4a4.onnx --batch 4"),
        (("ort", "int8"), _of("onnxruntime-cuda", **FAILED, loads=False, reason="CUDAExecutionProvider could not be loaded"),
         "no other form of the file helps: libraries are missing"),
        (("ort", "int8"), _of("tvm", **FAILED, loads=True, reason="stopped after 300 s while running it"), "a longer --timeout"),
    ],
)  # fmt: skip
def test_what_helps_is_said_by_what_the_file_is(form: tuple[str, str] | None, attempt: Attempt, says: str) -> None:
    assert f"to do {attempt.label}: " in (said := " ".join(_said(attempt, form=form).split()))
    assert says in said


def test_a_runtime_agrees_by_the_figures_that_there_are() -> None:
    def agrees(noise: bool = False, **more: Any) -> bool | None:
        return _found(noise=noise).agrees(_of("tvm", **more))

    assert agrees(agreement=0.94) is False
    assert agrees(agreement=0.95, sqnr_by_output={"logits": 3.0}) is True
    assert agrees(agreement=0.6, sqnr_by_output={"logits": 18.0}, noise=True) is True  # nothing in noise is of a class
    assert agrees(agreement=1.0, sqnr_by_output={"logits": 9.5}, noise=True) is False
    assert agrees(agreement=None, sqnr_by_output={"map": 30.0, "mask": 14.0}) is False
    assert agrees(agreement=None, sqnr_by_output={}, equal_by_output={"classes": 0.5}) is False
    assert agrees(agreement=None, sqnr_by_output={}) is None
    assert _found().likeness(_of("tvm", agreement=None, sqnr_by_output={})) == ""


def test_a_model_in_memory_is_written_and_gone_again(model: Path) -> None:
    proto = onnx.load(model)
    found = runtimes(proto, data(model), against=proto, only=["onnxruntime"], runs=0)
    assert (found.file, found.against) == ("the model", "the float model")
    assert (
        found.attempts[0].sqnr_by_output
        == runtimes(model, data(model), only=["onnxruntime"], runs=0).attempts[0].sqnr_by_output
    )


def test_values_that_are_not_finite_are_named(model: Path) -> None:
    ((name, x),) = data(model).items()
    x[1] = np.nan
    with pytest.raises(DataError, match=f"NaN, Inf .* in sample 1 for input '{name}'"):
        runtimes(model, {name: x}, only=["onnxruntime"])


def test_a_report_is_a_few_lines(model: Path) -> None:
    found = runtimes(model, data(model), only=["onnxruntime", "mnn"], runs=0)
    assert str(found).startswith(f"{model}: 1 of 1 runtimes run it, 1 of 1 agree with ONNX Runtime ")
    wrong = replace(
        found, noise=False, attempts=(_of("tvm", agreement=0.5), _of("mnn", **FAILED, loads=False, reason="no"))
    )
    assert str(wrong).splitlines()[1:] == ["MNN 1.23.4: no", "TVM 1.23.4: 50.0% of 64 predictions, 31.2 dB"]


@pytest.mark.slow
def test_quant_nodes_are_compared_with_what_is_read_back_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    works(*on_sample("--target", "qonnx", "-o", "q.onnx"))
    works("convert", "q.onnx", "--container", "qonnx", "-o", "quant.onnx")
    asked = ("--only", "onnxruntime", "--samples", "2", "--runs", "0")
    said = " ".join(works("runtimes", "quant.onnx", *asked).stdout.split())
    assert "what is read back as QuantizeLinear and DequantizeLinear" in said
    assert "Quant(-1) is not a registered function/op" in said  # that is what this runtime says of the file itself
    spoiled = onnx.load("quant.onnx")
    del spoiled.graph.node[:]
    onnx.save(spoiled, "spoiled.onnx")
    assert "compared with nothing" in " ".join(works("runtimes", "spoiled.onnx", *asked).stdout.split())


def test_the_command_refuses_in_one_line(here: Path) -> None:
    fails("runtimes", "nothing.onnx", code=2, says=("nothing.onnx: no such file",))
    fails("runtimes", "model.onnx", "--only", "abacus", code=2, says=("runtime 'abacus' is unknown",))
    fails("runtimes", "model.onnx", "--json", "model.onnx", code=2, says=("is the model itself",))
    for timeout, must in (("0.1", "1 or more"), ("nan", "a finite number"), ("inf", "a finite number")):
        fails(
            "runtimes", "model.onnx", "--timeout", timeout, code=2, says=(f"timeout is {timeout}: it must be {must}",)
        )
    fails("runtimes", "model.onnx", "--memory", "much", code=2, says=("--memory 'much'",))


def test_outputs_do_not_depend_on_the_batch(model: Path) -> None:
    """A batch that does not divide the items is filled up, and what fills it is not compared."""
    (one,) = runtimes(model, data(model, 7), only=["onnxruntime"], batch=4, runs=0).attempts
    assert (one.items, one.runs) == (7, True)
    written = open_session(model, level="off").run(None, data(model, 7))[0]
    assert written.shape == (7, 10)
    assert one.sqnr_by_output["output"] > 30
