"""The runtimes that files are opened in: what each is called, what it takes, and how its kernels are read."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mrecg_onnx.running.sessions import PROVIDERS

__all__ = ["ORT_PACKAGES", "RUNTIMES", "Arithmetic", "Runtime", "installed"]


@dataclass(frozen=True)
class Arithmetic:
    """How many weighted layers (convolutions and products) run on integers, as the runtime's kernels say.

    Attributes:
        integer: layers on integer kernels.
        floating: layers on float kernels.
    """

    integer: int
    floating: int

    @property
    def layers(self) -> int:
        """All of them."""
        return self.integer + self.floating

    def __str__(self) -> str:
        if not self.integer or not self.floating:
            return "integer" if self.integer else "float"
        return f"integer {self.integer} of {self.layers}"


@dataclass(frozen=True)
class Runtime:
    """One row.

    Attributes:
        name: how it is asked for.
        title: what it is called.
        opener: a row of :data:`mrecg_onnx.running.openers.OPENERS`; of a runtime for node, its package.
        modules: what has to be importable.
        distributions: packages that carry its version, the first that is there.
        install: what installs it.
        layers: patterns of the names of integer and of float kernels of weighted layers; None where names do not tell.
        options: what its opener is told.
        program: "python" or "node": what runs it.
        always: listed also where it is not there.
        form: the target whose form it runs as the graph says (docs/deployment.md 3); empty where none is known.
    """

    name: str
    title: str
    opener: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    install: str
    layers: tuple[str, str] | None
    options: Mapping[str, str] = field(default_factory=dict)
    program: str = "python"
    always: bool = True
    form: str = "ort"

    def arithmetic(self, kernels: Mapping[str, int]) -> Arithmetic | None:
        """What kernels say of weighted layers, None where they do not."""
        if self.layers is None:
            return None
        integer, floating = (
            sum(count for name, count in kernels.items() if re.fullmatch(pattern, name)) for pattern in self.layers
        )
        return Arithmetic(integer, floating) if integer or floating else None


_ORT_KERNELS = (
    r"(QLinearConv|QLinearMatMul|QGemm|ConvInteger|MatMulInteger\w*|DynamicQuantizeMatMul)( \(.*\))?",
    r"(Conv|FusedConv|NhwcFusedConv|ConvTranspose|Gemm|FusedGemm|MatMul|FusedMatMul|MatMulNBits)( \(.*\))?",
)
_HTP_LAYERS = "(Conv2d|DepthWiseConv2d|TransposeConv2d|FullyConnected|MatMul)"
_HTP_KERNELS = (
    rf"{_HTP_LAYERS} [IU]\d+ \(HTP\)|{_ORT_KERNELS[0]}",
    rf"{_HTP_LAYERS} F\d+ \(HTP\)|{_ORT_KERNELS[1]}",
)
ORT_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn", "onnxruntime-directml")
_AS_WRITTEN = ("QLinearConv|QLinearMatMul|ConvInteger|MatMulInteger", "Conv|ConvTranspose|Gemm|MatMul")
_OPENVINO_LAYERS = "(Convolution|GroupConvolution|Deconvolution|FullyConnected|MatMul)"


def _openvino(name: str, title: str, precision: str) -> Runtime:
    return Runtime(
        name, title, "OpenVino", ("openvino",), ("openvino",), "pip install 'mrecg-onnx[openvino]'",
        (f"{_OPENVINO_LAYERS} [IU]8", f"{_OPENVINO_LAYERS} (FP?32|FP?16|BF16)"), {"precision": precision}, form="openvino",
    )  # fmt: skip


#: Providers that ONNX Runtime spells in another way than their makers.
_SPELLED = {"Tensorrt": "TensorRT", "DML": "DirectML", "ROCM": "ROCm"}
#: Those that are targets of their own.
_FORMS = ("openvino", "qnn", "tensorrt")


def _onnxruntime(name: str, provider: str) -> Runtime:
    short = provider.removesuffix("ExecutionProvider")
    return Runtime(
        f"onnxruntime{name and '-' + name}", f"ONNX Runtime{name and ' ' + _SPELLED.get(short, short)}",
        "OnnxRuntime", ("onnxruntime",), ORT_PACKAGES, "pip install onnxruntime", _ORT_KERNELS,
        {"provider": provider}, always=not name, form=name if name in _FORMS else "ort",
    )  # fmt: skip


_ROWS = (
    _onnxruntime("", PROVIDERS["cpu"][0]),
    *(_onnxruntime(name, providers[0]) for name, providers in PROVIDERS.items() if name != "cpu"),
    Runtime(
        "qnn-htp", "ONNX Runtime QNN, HTP", "Qnn", ("onnxruntime", "onnxruntime_qnn"), ("onnxruntime-qnn",),
        "pip install onnxruntime-qnn", _HTP_KERNELS, form="qnn",
    ),
    Runtime(
        "onnxruntime-web", "ONNX Runtime web (wasm)", "onnxruntime-web", (), (), "npm install onnxruntime-web",
        _ORT_KERNELS, {"provider": "wasm"}, program="node",
    ),
    Runtime(
        "onnxruntime-node", "ONNX Runtime node", "onnxruntime-node", (), (), "npm install onnxruntime-node",
        _ORT_KERNELS, {"provider": "cpu"}, program="node",
    ),
    _openvino("openvino", "OpenVINO", "f32"),
    _openvino("openvino-default", "OpenVINO, default floats", ""),
    Runtime(
        "opencv", "OpenCV dnn", "OpenCv", ("cv2",), ("opencv-python-headless", "opencv-python"),
        "pip install opencv-python-headless",
        (r"(Conv|Gemm|MatMul|InnerProduct)\w*Int8", r"(Conv|Deconv|Gemm|MatMul|InnerProduct)(?!\w*Int8)\w*"), form="portable",
    ),
    Runtime(
        "tvm", "TVM", "Tvm", ("tvm", "onnx"), ("apache-tvm",), "pip install apache-tvm onnx",
        (r"(conv\w*|matmul) u?int\d+", r"(conv\w*|matmul) b?float\d+"), form="portable",
    ),
    Runtime(
        "iree", "IREE", "Iree", ("iree.compiler", "iree.runtime", "onnx"), ("iree-base-runtime",),
        "pip install iree-base-compiler[onnx] iree-base-runtime",
        (r"\w+ i\d+(xi\d+)*", r"\w+ b?f\d+(xb?f\d+)*"), form="portable",
    ),
    Runtime("qonnx", "qonnx", "Qonnx", ("qonnx",), ("qonnx",), "pip install qonnx", _AS_WRITTEN, form="qonnx"),
    Runtime("mnn", "MNN", "Mnn", ("MNN",), ("mnn",), "pip install MNN", None, form=""),
    Runtime("ncnn", "ncnn (pnnx)", "Ncnn", ("ncnn", "pnnx"), ("ncnn",), "pip install ncnn pnnx", None, form=""),
    Runtime(
        "tract", "tract", "Tract", ("tract",), ("tract",), "pip install tract",
        (r".* FMA\([IU]\d+\)", r".* FMA\(F\d+\)"), form="",
    ),
    Runtime("onnx-reference", "onnx's reference", "OnnxReference", ("onnx",), ("onnx",), "pip install onnx", _AS_WRITTEN),
)  # fmt: skip
#: All of them by name, in the order of tables.
RUNTIMES = {row.name: row for row in _ROWS}


def installed(name: str) -> bool:
    """Whether the runtime of that name can be imported here; a name without a row is none."""
    row = RUNTIMES.get(name)
    return row is not None and row.program == "python" and all(_is_there(module) for module in row.modules)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
