"""``python -m mrecg_onnx`` and ``torchrun -m mrecg_onnx``: the same as ``mrecg-onnx``."""

from mrecg_onnx.commands import main

main(prog_name="mrecg-onnx")
