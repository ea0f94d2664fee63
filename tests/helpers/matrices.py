"""Layers of every kind that multiplies rows by a matrix, with inputs."""

from __future__ import annotations

import torch

from mrecg_onnx.converters.ops.weighted import OnnxConv, OnnxConvTranspose, OnnxGemm, OnnxMatMulConst
from mrecg_onnx.learning.responses import NormalEquations, layout_of, normal_equations
from mrecg_onnx.machine.parallel import Workers

__all__ = ["LAYERS", "equations_of", "normal"]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal random values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


#: Layer, an input, and the axis of the output channels in its weight.
LAYERS: dict[str, tuple[torch.nn.Module, torch.Tensor, int]] = {
    "plain": (OnnxConv(normal(6, 4, 3, 3), stride=(1, 1), padding=((1, 1), (1, 1))), normal(3, 4, 7, 6), 0),
    "strided and lopsided": (
        OnnxConv(normal(6, 4, 3, 2), stride=(2, 3), padding=((0, 1), (2, 0)), dilation=(2, 1)), normal(3, 4, 9, 8), 0,
    ),
    "auto_pad": (OnnxConv(normal(6, 4, 3, 3), stride=(2, 2), auto_pad="SAME_UPPER"), normal(2, 4, 8, 7), 0),
    "grouped": (OnnxConv(normal(6, 2, 3, 3), groups=2), normal(3, 4, 6, 6), 0),
    "depthwise": (OnnxConv(normal(4, 1, 3, 3), groups=4, padding=((1, 1), (1, 1))), normal(3, 4, 6, 6), 0),
    "1-D": (OnnxConv(normal(6, 4, 3), stride=(2,)), normal(3, 4, 11), 0),
    "3-D": (OnnxConv(normal(5, 2, 2, 3, 2)), normal(2, 2, 4, 5, 4), 0),
    "transposed": (
        OnnxConvTranspose(
            normal(4, 6, 3, 2), stride=(2, 3), padding=((1, 0), (0, 1)), output_padding=(1, 2), dilation=(2, 1)
        ), normal(3, 4, 5, 4), 1,
    ),
    "transposed in groups": (OnnxConvTranspose(normal(4, 3, 3, 3), stride=(2, 2), groups=2), normal(3, 4, 4, 4), 1),
    "gemm": (OnnxGemm(normal(5, 8), trans_b=True), normal(9, 8), 0),
    "gemm, both ways": (OnnxGemm(normal(8, 5), trans_a=True), normal(8, 9), 1),
    "tokens": (OnnxMatMulConst(normal(8, 5)), normal(3, 4, 8), 1),
    "from the left": (OnnxMatMulConst(normal(5, 8), weight_first=True), normal(3, 8, 4), 0),
}  # fmt: skip


def equations_of(module, quantized, floating, workers: Workers | None = None) -> NormalEquations:
    """Moments of what a layer reads and answers, in batches of two."""
    generator = torch.Generator().manual_seed(0)
    pairs = zip(quantized.split(2), floating.split(2), strict=True)
    return normal_equations(layout_of(module), module.weight, pairs, generator, *([workers] if workers else []))
