"""Runtimes that open ONNX files beside ONNX Runtime, each in its own way; a test is skipped where one is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx

__all__ = ["RUNTIMES", "on_iree", "on_opencv", "on_openvino", "on_tvm"]


def on_openvino(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], _folder: Path) -> np.ndarray:
    """The first output, computed in float32 where it is not in integers."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled(dict(feeds))[0]


def on_opencv(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], _folder: Path) -> np.ndarray:
    """The first output."""
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless 5 is not installed")
    if int(cv2.__version__.split(".")[0]) < 5:
        pytest.skip(f"OpenCV {cv2.__version__} has no DequantizeLinear")
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
    for name, x in feeds.items():
        net.setInput(x, name)
    return net.forward(model.graph.output[0].name).copy()


def on_tvm(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], _folder: Path) -> np.ndarray:
    """The first output."""
    tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed")
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    module = relax.transform.LegalizeOps()(from_onnx(model, shape_dict={n: list(x.shape) for n, x in feeds.items()}))
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    made = machine["main"](*(tvm.runtime.tensor(x) for x in feeds.values()))
    return (made if hasattr(made, "numpy") else made[0]).numpy()


def on_iree(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], folder: Path) -> np.ndarray:
    """The first output of a model with a fixed batch."""
    pytest.importorskip("iree.compiler", reason="iree-base-compiler is not installed")
    runtime = pytest.importorskip("iree.runtime", reason="iree-base-runtime is not installed")
    source, imported, compiled = (folder / name for name in ("model.onnx", "model.mlir", "model.vmfb"))
    source.write_bytes(model.SerializeToString())
    target = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu"]
    compiler = Path(sys.executable).with_name("iree-compile")
    for command in (
        [sys.executable, "-m", "iree.compiler.tools.import_onnx", source, "-o", imported],
        [compiler, imported, *target, "--iree-llvmcpu-target-cpu=host", "-o", compiled],
    ):
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    module = runtime.load_vm_flatbuffer_file(str(compiled), driver="local-sync")
    names = [n for n in module.vm_module.function_names if not n.startswith("__") and not n.endswith("$async")]
    made = module[names[0]](*feeds.values())
    return np.asarray((made[0] if isinstance(made, tuple) else made).to_host())


RUNTIMES: dict[str, Callable[[onnx.ModelProto, Mapping[str, np.ndarray], Path], np.ndarray]] = {
    "OpenVINO": on_openvino,
    "OpenCV": on_opencv,
    "TVM": on_tvm,
    "IREE": on_iree,
}
