"""Learned low-bit post-training quantization from ONNX to ONNX.

    import mrecg_onnx
    result = mrecg_onnx.quantize("model.onnx", "images/", mrecg_onnx.Settings(wbits=4, abits=4), output="model_mrecg_w4a4.onnx")
    report = mrecg_onnx.validate("model.onnx", "model_mrecg_w4a4.onnx", "labelled_images/")
    found = mrecg_onnx.compare("model.onnx", "images/", "labelled_images/", "out/", methods=["nearest", "mrecg"], bits=["W4A4"])

Names are resolved on first use (``__init__.pyi`` says where they live), so that importing the package does not import torch.
"""

import os
import sys
from importlib import metadata

import lazy_loader

# ONNX Runtime 1.29 and later reports on models (file and graph name, producer, hashes) and on the machine to its makers,
# and keeps an identifier in the home folder; it decides when it is imported. Who wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# A thread of GNU's OpenMP, which torch computes with on Linux, looks for work 300,000 times before it sleeps, and holds a core
# for as long as others let it: beside other programs a run of small operators takes many times as long. 3,000 outlast the gaps
# between operators (benchmarks/results/shared_cores.md). It is read when torch is loaded; who sets it has the last word.
WAITS_LONG = False
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
    WAITS_LONG = "torch" in sys.modules and sys.platform == "linux"
    if not WAITS_LONG:
        os.environ["GOMP_SPINCOUNT"] = "3000"

_lazily, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    try:
        return _lazily(name)
    except AttributeError as error:
        if name.startswith("_"):
            raise
        from mrecg_onnx.converters.text import did_you_mean  # noqa: PLC0415 - a checkout finds it once this is whole

        raise AttributeError(f"mrecg_onnx has no '{name}'{did_you_mean(name, __all__)}") from error


try:
    __version__ = metadata.version("mrecg-onnx")
except metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+checkout"
