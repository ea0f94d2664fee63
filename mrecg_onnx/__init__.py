"""Learned low-bit post-training quantization from ONNX to ONNX.

    import mrecg_onnx
    result = mrecg_onnx.quantize("model.onnx", "images/", mrecg_onnx.Settings(wbits=4, abits=4), output="model_mrecg_w4a4.onnx")
    report = mrecg_onnx.validate("model.onnx", "model_mrecg_w4a4.onnx", "labelled_images/")
    found = mrecg_onnx.compare("model.onnx", "images/", "labelled_images/", "out/", methods=["nearest", "mrecg"], bits=["W4A4"])

Names are resolved on first use (``__init__.pyi`` says where they live), so that importing the package does not import torch.
"""

import os
from importlib import metadata

import lazy_loader

# ONNX Runtime 1.29 and later reports on models (file and graph name, producer, hashes) and on the machine to its makers,
# and keeps an identifier in the home folder; it decides when it is imported. Who wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = metadata.version("mrecg-onnx")
except metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+checkout"
