"""Windows and Fourier transforms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from onnx import TensorProto
from torch import Tensor, nn

from mrecg_onnx.converters.ops.common import (
    OnnxGraph,
    OnnxNode,
    OperationConverterResult,
    constant_ints,
    has_input,
    input_name,
    integers,
    reject,
    result,
    torch_dtype,
)
from mrecg_onnx.converters.registry import converter

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OnnxDFT", "OnnxWindow"]

# Coefficients a_k of sum_k (-1)^k a_k cos(2 pi k n / N): ONNX operator specification, Hann-, Hamming- and BlackmanWindow.
_COSINES = {
    "HannWindow": (0.5, 0.5),
    "HammingWindow": (25 / 46, 21 / 46),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


class OnnxWindow(nn.Module):
    """ONNX HannWindow, HammingWindow and BlackmanWindow: a sum of cosines.

    Attributes:
        cosines: Their coefficients.
        periodic: The window's period is its size, not its size less one.
        dtype: Type of the result.
    """

    def __init__(self, cosines: Sequence[float], periodic: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.cosines, self.periodic, self.dtype = cosines, periodic, dtype

    def forward(self, size: Tensor) -> Tensor:
        """Return the window of a size."""
        (count,) = integers(size)
        angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / (count if self.periodic else count - 1))
        total = torch.zeros(count, dtype=torch.float64)
        for order, factor in enumerate(self.cosines):
            total += (-1) ** order * factor * torch.cos(order * angles)
        return total.to(self.dtype)


@converter("HannWindow", 17)
@converter("HammingWindow", 17)
@converter("BlackmanWindow", 17)
def _window(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    dtype = torch_dtype(node.attributes.get("output_datatype", TensorProto.FLOAT))
    periodic = bool(node.attributes.get("periodic", 1))
    return result(OnnxWindow(_COSINES[node.operation_type], periodic, dtype), node)


class OnnxDFT(nn.Module):
    """ONNX DFT: signals of shape (..., 1) if real, (..., 2) if complex.

    Attributes:
        axis: The axis transformed; the last one holds real and imaginary part.
        inverse: Transform back.
        onesided: Return the first half and one, of a real signal.
    """

    def __init__(self, axis: int, inverse: bool, onesided: bool) -> None:
        super().__init__()
        self.axis, self.inverse, self.onesided = axis, inverse, onesided

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Transform; ``length`` cuts the signal or fills it up with zeros."""
        size = x.shape[self.axis] if length is None else integers(length)[0]
        signal = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else torch.complex(x[..., 0], 0 * x[..., 0])
        # Negative axes count the one of the parts, which is gone.
        axis = self.axis if self.axis >= 0 else self.axis + 1
        y = (torch.fft.ifft if self.inverse else torch.fft.fft)(signal, size, axis)
        return torch.view_as_real(y.narrow(axis, 0, size // 2 + 1) if self.onesided else y)


def _dft_result(node: OnnxNode, axis: int) -> OperationConverterResult:
    inverse, onesided = bool(node.attributes.get("inverse", 0)), bool(node.attributes.get("onesided", 0))
    if inverse and onesided:
        raise reject(node, "inverse and onesided")
    return result(OnnxDFT(axis, inverse, onesided), node, [input_name(node, 0), input_name(node, 1)])


@converter("DFT", 17, 19)
def _old_dft(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    return _dft_result(node, node.attributes.get("axis", 1))


@converter("DFT", 20)
def _dft(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    axes = constant_ints(node, 2, graph) if has_input(node, 2) else [-2]
    if axes is None:
        raise reject(node, "a computed axis")
    return _dft_result(node, axes[0])
