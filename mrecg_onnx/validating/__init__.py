"""What a quantized file is worth: accuracy, agreement and cost beside its float model, on ONNX Runtime.

Validation on labelled or unlabelled data, warnings about inputs unlike the calibration data, and benchmarks of several files.
"""
