"""Conv, ConvTranspose, Gemm and MatMul with a constant weight, in one form.

Each module keeps ``weight`` exactly as the ONNX initializer is laid out, and offers ``compute(x, weight, bias)``, so
that whoever calls it can substitute other tensors of the same layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrecg_onnx.converters.errors import ConversionError
from mrecg_onnx.converters.ops.common import (
    OnnxGraph,
    OnnxNode,
    OperationConverterResult,
    constant_of,
    has_input,
    input_name,
    reject,
    result,
    same_pads,
)
from mrecg_onnx.converters.ops.elementwise import Elementwise
from mrecg_onnx.converters.registry import converter

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OnnxConv", "OnnxConvTranspose", "OnnxGemm", "OnnxMatMulConst", "WeightedModule"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
#: torch has oneDNN; and the number of images from which it takes it for any convolution.
_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_MANY = 16


def _pointwise_alone(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """True for 1x1 convolutions of few images on one thread of a CPU, where torch passes its own fastest kernel by.

    It multiplies matrices instead, which takes twice as long as oneDNN (MobileNetV2, two images: all convolutions 12.2 ms against
    7.3); with 16 images, or on two threads, it takes oneDNN itself.
    """
    if weight.shape[2:] != (1, 1) or not 0 < len(x) < _MANY or x.device.type != "cpu" or torch.get_num_threads() > 1:
        return False
    given = (x, weight) if bias is None else (x, weight, bias)
    if not _ONEDNN or any(t.dtype != torch.float32 for t in given) or not x.numel():
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in given))


class WeightedModule(nn.Module):
    """A linear map with a constant weight.

    Attributes:
        weight: The weight in the ONNX initializer's layout.
        bias: The bias as the initializer holds it, None if there is none or it is no constant.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the map with other tensors of the same layout in place of ``weight`` and ``bias``."""
        raise NotImplementedError

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply the map; ``bias`` is given where the graph computes it."""
        return self.compute(x, self.weight, self.bias if bias is None else bias)


class OnnxConv(WeightedModule):
    """ONNX Conv over 1 to 3 spatial axes.

    Attributes:
        weight: (O, I / groups, *kernel).
        bias: (O,).
        stride: One number per spatial axis.
        padding: (begins, ends), each with one number per spatial axis; not used where ``auto_pad`` is set.
        dilation: One number per spatial axis.
        groups: Number of groups.
        auto_pad: NOTSET, VALID, SAME_UPPER or SAME_LOWER; the latter two depend on the size of the input.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: Sequence[int] | None = None,
        padding: tuple[Sequence[int], Sequence[int]] | None = None,
        dilation: Sequence[int] | None = None,
        groups: int = 1,
        auto_pad: str = "NOTSET",
    ) -> None:
        super().__init__(weight, bias)
        axes = weight.ndim - 2
        begins, ends = padding if padding is not None else ((0,) * axes, (0,) * axes)
        self.stride = tuple(stride) if stride else (1,) * axes
        self.padding = (tuple(begins), tuple(ends))
        self.dilation = tuple(dilation) if dilation else (1,) * axes
        self.groups = groups
        self.auto_pad = auto_pad

    def _pads(self, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.auto_pad == "NOTSET":
            return self.padding
        kernel = self.weight.shape[2:]
        pads = same_pads(self.auto_pad, x.shape[2:], kernel, self.stride, self.dilation)
        return tuple(pads[: len(kernel)]), tuple(pads[len(kernel) :])

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve ``x`` (N, I, *sizes) with ``weight``."""
        begins, ends = self._pads(x)
        if begins != ends:
            x = F.pad(x, [pad for pair in zip(reversed(begins), reversed(ends), strict=True) for pad in pair])
            begins = (0,) * len(begins)
        if _pointwise_alone(x, weight, bias):
            padding, stride, dilation = (list(sizes) for sizes in (begins, self.stride, self.dilation))
            return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, self.groups)
        convolve = _CONV[weight.ndim - 2]
        return convolve(x, weight, bias, self.stride, begins, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """Describe the layer as ``print`` shows it."""
        return (
            f"{tuple(self.weight.shape)}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, auto_pad={self.auto_pad}, bias={self.bias is not None}"
        )


class OnnxConvTranspose(WeightedModule):
    """ONNX ConvTranspose over 1 to 3 spatial axes.

    Attributes:
        weight: (I, O / groups, *kernel).
        bias: (O,).
        stride: One number per spatial axis.
        padding: (begins, ends), cut off the full result; not used where ``auto_pad`` or ``output_shape`` is set.
        output_padding: Rows added at the end, one number per spatial axis.
        dilation: One number per spatial axis.
        groups: Number of groups.
        auto_pad: As in :class:`OnnxConv`.
        output_shape: Spatial sizes of the result that are to be met by padding, None if not given.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: Sequence[int] | None = None,
        padding: tuple[Sequence[int], Sequence[int]] | None = None,
        output_padding: Sequence[int] | None = None,
        dilation: Sequence[int] | None = None,
        groups: int = 1,
        auto_pad: str = "NOTSET",
        output_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(weight, bias)
        axes = weight.ndim - 2
        begins, ends = padding if padding is not None else ((0,) * axes, (0,) * axes)
        self.stride = tuple(stride) if stride else (1,) * axes
        self.padding = (tuple(begins), tuple(ends))
        self.output_padding = tuple(output_padding) if output_padding else (0,) * axes
        self.dilation = tuple(dilation) if dilation else (1,) * axes
        self.groups = groups
        self.auto_pad = auto_pad
        self.output_shape = tuple(output_shape) if output_shape else None

    def _pads(self, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what is cut off the full result at the beginnings and ends (negative: zeros are added)."""
        same = self.auto_pad in {"SAME_UPPER", "SAME_LOWER"}
        if self.output_shape is None and not same:
            return self.padding if self.auto_pad == "NOTSET" else ((0,) * len(self.stride),) * 2
        wanted = self.output_shape or [size * stride for size, stride in zip(x.shape[2:], self.stride, strict=True)]
        begins, ends = [], []
        for axis, (size, kernel) in enumerate(zip(x.shape[2:], self.weight.shape[2:], strict=True)):
            full = self.stride[axis] * (size - 1) + self.output_padding[axis] + (kernel - 1) * self.dilation[axis] + 1
            # An explicit shape may be larger than the full result; for SAME_* ONNX Runtime then leaves it as it is.
            total = full - wanted[axis] if self.output_shape else max(full - wanted[axis], 0)
            # ONNX operator specification: SAME_UPPER has the smaller half first, everything else the larger.
            begins.append(total // 2 if self.auto_pad == "SAME_UPPER" else total - total // 2)
            ends.append(total - begins[-1])
        return tuple(begins), tuple(ends)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the transposed convolution to ``x`` (N, I, *sizes)."""
        begins, ends = self._pads(x)
        transpose = _CONV_TRANSPOSE[weight.ndim - 2]
        if begins == ends and not any(self.output_padding):
            return transpose(x, weight, bias, self.stride, begins, 0, self.groups, self.dilation)
        # torch pads both sides alike and limits output_padding, so the full result is made and cut to size.
        full = transpose(x, weight, None, self.stride, 0, 0, self.groups, self.dilation)
        margins = [
            margin
            for axis in reversed(range(weight.ndim - 2))
            for margin in (-begins[axis], self.output_padding[axis] - ends[axis])
        ]
        y = F.pad(full, margins)
        return y if bias is None else y + bias.reshape(-1, *(1,) * (weight.ndim - 2))


class OnnxGemm(WeightedModule):
    """ONNX Gemm, alpha A' B' + beta C, with a constant B.

    Attributes:
        weight: B as stored: (K, N), or (N, K) with ``trans_b``.
        bias: C as stored.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        trans_a: bool = False,
        trans_b: bool = False,
    ) -> None:
        super().__init__(weight, bias)
        self.alpha, self.beta, self.trans_a, self.trans_b = alpha, beta, trans_a, trans_b

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply ``x`` (M, K), or (K, M) with ``trans_a``, by the weight."""
        a = x.t() if self.trans_a else x
        b = weight if self.trans_b else weight.t()
        if self.alpha == 1 and self.beta == 1 and (bias is None or bias.shape == b.shape[:1]):
            return F.linear(a, b, bias)
        y = self.alpha * F.linear(a, b)
        return y if bias is None else y + self.beta * bias


class OnnxMatMulConst(WeightedModule):
    """ONNX MatMul with a constant on one side.

    Attributes:
        weight: The constant as stored: (K, N) on the right, (M, K) on the left; further axes in front broadcast.
        bias: (N,) where an Add behind a (K, N) weight has become part of the layer.
        weight_first: The constant is the left operand.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, weight_first: bool = False) -> None:
        super().__init__(weight, bias)
        self.weight_first = weight_first

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply; a ``bias`` is added to the product."""
        y = torch.matmul(weight, x) if self.weight_first else torch.matmul(x, weight)
        return y if bias is None else y + bias


class DynamicWeight(nn.Module):
    """The same operators where the graph computes the weight: ``module``'s map with the tensors it is called with."""

    def __init__(self, module: WeightedModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply the map."""
        return self.module.compute(x, weight, bias)


def _split_pads(node: OnnxNode) -> tuple[list[int], list[int]] | None:
    pads = node.attributes.get("pads")
    if not pads:
        return None
    half = len(pads) // 2
    return pads[:half], pads[half:]


def _with_bias(module: WeightedModule, node: OnnxNode) -> OperationConverterResult:
    """Call ``module`` with the data, and with the bias if the graph computes it."""
    inputs = [input_name(node, 0)]
    if has_input(node, 2) and module.bias is None:
        inputs.append(input_name(node, 2))
    return result(module, node, inputs)


def _weight_and_bias(node: OnnxNode, graph: OnnxGraph) -> tuple[Tensor, Tensor | None] | None:
    weight = constant_of(node, 1, graph)
    return None if weight is None else (weight, constant_of(node, 2, graph))


@converter("Conv")
def _conv(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return _convolution(OnnxConv, node, graph)


@converter("ConvTranspose")
def _conv_transpose(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    own = {name: node.attributes.get(name) for name in ("output_padding", "output_shape")}
    return _convolution(OnnxConvTranspose, node, graph, **own)


def _convolution(
    kind: type[OnnxConv | OnnxConvTranspose], node: OnnxNode, graph: OnnxGraph, **own: Sequence[int] | None
) -> OperationConverterResult:
    """A module of that kind with the attributes that both have, and its ``own``."""
    parameters = _weight_and_bias(node, graph)
    weight, bias = parameters if parameters is not None else (_placeholder_weight(node, graph), None)
    if not 1 <= weight.ndim - 2 <= 3:
        raise reject(node, f"{weight.ndim - 2} spatial axes")
    module = kind(
        weight,
        bias,
        stride=node.attributes.get("strides"),
        padding=_split_pads(node),
        dilation=node.attributes.get("dilations"),
        groups=node.attributes.get("group", 1),
        auto_pad=node.attributes.get("auto_pad", "NOTSET"),
        **own,
    )
    return _with_bias(module, node) if parameters is not None else result(DynamicWeight(module), node)


def _placeholder_weight(node: OnnxNode, graph: OnnxGraph) -> Tensor:
    """Return zeros of the shape of a computed weight; only the shape is used, to set the defaults."""
    info = graph.value_info.get(input_name(node, 1))
    sizes = [] if info is None else [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    if not sizes or not all(sizes):
        raise ConversionError(f"{node.operation_type} with a computed weight of unknown shape cannot be converted")
    return torch.zeros(sizes)


@converter("Gemm", 7)
def _gemm(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    parameters = _weight_and_bias(node, graph)
    weight, bias = parameters if parameters is not None else (torch.zeros(1, 1), None)
    module = OnnxGemm(
        weight,
        bias,
        alpha=node.attributes.get("alpha", 1.0),
        beta=node.attributes.get("beta", 1.0),
        trans_a=bool(node.attributes.get("transA", 0)),
        trans_b=bool(node.attributes.get("transB", 0)),
    )
    return _with_bias(module, node) if parameters is not None else result(DynamicWeight(module), node)


class OnnxMatMul(nn.Module):
    """ONNX MatMul of two computed tensors."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply."""
        return torch.matmul(a, b)


@converter("MatMul")
def _matmul(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    right = constant_of(node, 1, graph)
    if right is not None and right.is_floating_point():
        return result(OnnxMatMulConst(right, constant_of(node, 2, graph)), node, [input_name(node, 0)])
    left = constant_of(node, 0, graph)
    if left is not None and left.is_floating_point():
        return result(OnnxMatMulConst(left, weight_first=True), node, [input_name(node, 1)])
    return result(OnnxMatMul(), node)


@converter("Einsum", 12)
def _einsum(node: OnnxNode, _graph: OnnxGraph) -> OperationConverterResult:
    equation = node.attributes["equation"]
    return result(Elementwise(lambda *operands: torch.einsum(equation, *operands)), node)
