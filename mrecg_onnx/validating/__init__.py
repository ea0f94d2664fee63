"""What a quantized file is worth: accuracy, agreement and cost beside its float model, on ONNX Runtime.

Validation on labelled or unlabelled data, warnings about inputs unlike the calibration data, and benchmarks of several files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
