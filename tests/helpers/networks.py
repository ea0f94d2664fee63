"""The zoo: published architectures, narrow and shallow, with random weights; the structure is the published one.

Written here rather than taken from a library of models, which would make the tests depend on that library's version of
each and on its import of seconds. Inputs are 32x32 images unless a row of :data:`NETWORKS` says otherwise.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
import torch
import torch.nn.functional as F
from helpers.architectures import BasicBlock, Bottleneck, MobileNetV2, RegNet, ResNet
from helpers.nhwc import BY_HAND
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CASES", "NETWORKS", "Case", "Row", "initialized"]


def conv_bn(
    cin: int, cout: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, act: type[nn.Module] | None = nn.ReLU
) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([act()] if act else []))


class ShortMobileNetV2(MobileNetV2):
    """Two blocks of stride 1 and 2 each with and without shortcut."""

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2))


class Classifier(nn.Module):
    """A body, the global mean, a linear layer."""

    def __init__(self, body: nn.Module, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.body = body
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.body(x), 1), 1))


# --- convolutional classifiers -------------------------------------------------------------------------------------


class Fire(nn.Module):
    """SqueezeNet's block (Iandola 2016): a 1x1 squeeze read by two convolutions that are concatenated."""

    def __init__(self, cin: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeeze, 1)
        self.left = nn.Conv2d(squeeze, expand, 1)
        self.right = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.left(x).relu(), self.right(x).relu()], 1)


def squeezenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(16, 4, 8), Fire(16, 4, 8),
        nn.Conv2d(16, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class SqueezeExcite(nn.Module):
    """A gate from the global mean (Hu 2018)."""

    def __init__(self, channels: int, reduced: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(channels, reduced, 1), act(), nn.Conv2d(reduced, channels, 1), gate())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(F.adaptive_avg_pool2d(x, 1))


class MBConv(nn.Module):
    """The inverted bottleneck of MobileNetV3 (Howard 2019) and EfficientNet (Tan 2019), with or without a gate."""

    def __init__(
        self,
        channels: tuple[int, int, int],
        kernel: int,
        stride: int,
        act: type[nn.Module],
        excite: Callable[[int], nn.Module] | None,
    ) -> None:
        super().__init__()
        cin, hidden, cout = channels
        layers = [conv_bn(cin, hidden, act=act)] if hidden != cin else []
        layers.append(conv_bn(hidden, hidden, kernel, stride, groups=hidden, act=act))
        if excite is not None:
            layers.append(excite(hidden))
        self.block = nn.Sequential(*layers, conv_bn(hidden, cout, act=None))
        self.shortcut = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.shortcut else self.block(x)


def mobilenet_v3() -> nn.Module:
    """Relu and HardSwish blocks, HardSigmoid gates, and the head whose first layer comes behind the pooling."""

    def excite(channels: int) -> nn.Module:
        return SqueezeExcite(channels, 8, nn.ReLU, nn.Hardsigmoid)

    body = nn.Sequential(
        conv_bn(3, 8, 3, 2, act=nn.Hardswish),
        MBConv((8, 8, 8), 3, 2, nn.ReLU, excite),
        MBConv((8, 24, 12), 3, 2, nn.ReLU, None),
        MBConv((12, 24, 12), 5, 1, nn.Hardswish, excite),
        conv_bn(12, 32, act=nn.Hardswish),
    )
    head = nn.Sequential(nn.Linear(32, 32), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(32, 10))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def efficientnet_b0() -> nn.Module:
    def excite(channels: int) -> nn.Module:
        return SqueezeExcite(channels, 4, nn.SiLU, nn.Sigmoid)

    body = nn.Sequential(
        conv_bn(3, 8, 3, 2, act=nn.SiLU),
        MBConv((8, 8, 8), 3, 1, nn.SiLU, excite),
        MBConv((8, 32, 12), 3, 2, nn.SiLU, excite),
        MBConv((12, 48, 12), 5, 1, nn.SiLU, excite),
        conv_bn(12, 32, act=nn.SiLU),
    )
    return Classifier(body, 32)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's block (Ma 2018): half of the channels pass, or both halves are convolved with stride 2; shuffle."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        half = cout // 2
        self.stride = stride
        if stride == 2:
            self.left = nn.Sequential(conv_bn(cin, cin, 3, 2, groups=cin, act=None), conv_bn(cin, half))
        right_in = cin if stride == 2 else cin // 2
        self.right = nn.Sequential(
            conv_bn(right_in, half), conv_bn(half, half, 3, stride, groups=half, act=None), conv_bn(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            passed, rest = x.chunk(2, dim=1)
            x = torch.cat((passed, self.right(rest)), dim=1)
        else:
            x = torch.cat((self.left(x), self.right(x)), dim=1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2() -> nn.Module:
    body = nn.Sequential(
        conv_bn(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1), ShuffleUnit(8, 16, 2), ShuffleUnit(16, 16, 1), conv_bn(16, 32)
    )
    return Classifier(body, 32)


class DenseLayer(nn.Module):
    """DenseNet's layer (Huang 2017): BatchNormalization and Relu in front of each convolution, its result appended."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(cin), nn.ReLU(), nn.Conv2d(cin, 2 * growth, 1, bias=False),
            nn.BatchNorm2d(2 * growth), nn.ReLU(), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet() -> nn.Module:
    transition = nn.Sequential(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 12, 1, bias=False), nn.AvgPool2d(2))
    body = nn.Sequential(
        conv_bn(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1), DenseLayer(8, 8), DenseLayer(16, 8), transition,
        DenseLayer(12, 8), DenseLayer(20, 8), nn.BatchNorm2d(28), nn.ReLU(),
    )  # fmt: skip
    return Classifier(body, 28)


class LayerNorm2d(nn.LayerNorm):
    """LayerNormalization over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Liu 2022: depthwise 7x7, LayerNorm, two linear layers on the channels with GELU, layer scale, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(0.5 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8))
        down = nn.Sequential(LayerNorm2d(8), nn.Conv2d(8, 16, 2, 2))
        self.stages = nn.Sequential(ConvNeXtBlock(8), down, ConvNeXtBlock(16), ConvNeXtBlock(16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(self.stem(x)).mean([-2, -1])))


# --- transformers ----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Attention of one joint layer for queries, keys and values, the heads on an axis of their own."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``bias`` is added to the scores, and ``mask`` [windows, tokens, tokens] to those of each image's windows."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, bias)
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            scores = scores if bias is None else scores + bias
            if mask is not None:
                scores = scores.view(n // len(mask), len(mask), self.heads, tokens, tokens) + mask[None, :, None]
                scores = scores.view(-1, self.heads, tokens, tokens)
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class EncoderBlock(nn.Module):
    """Normalization, attention, residual; normalization, MLP, residual."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, fused=fused)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Dosovitskiy 2021; with ``distilled`` DeiT (Touvron 2021): one token and one head more, the heads averaged."""

    def __init__(self, *, distilled: bool, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.tokens = nn.Parameter(0.5 * torch.randn(1, 2 if distilled else 1, width))
        self.positions = nn.Parameter(0.5 * torch.randn(1, 16 + self.tokens.shape[1], width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, 2, fused=not distilled) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(self.tokens.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = self.norm(self.blocks(x))
        scores = [head(x[:, i]) for i, head in enumerate(self.heads)]
        return scores[0] if len(scores) == 1 else (scores[0] + scores[1]) / 2


class SwinBlock(nn.Module):
    """Liu 2021: attention in windows, shifted in every other block, with a bias by relative position."""

    def __init__(self, width: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.size, self.window, self.shift = size, window, shift
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, fused=False)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, 2 * width)
        self.table = nn.Parameter(0.5 * torch.randn((2 * window - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = place[:, :, None] - place[:, None] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])
        region = torch.zeros(1, size, size, 1)
        if shift:
            cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
            for i, (rows, columns) in enumerate((a, b) for a in cuts for b in cuts):
                region[:, rows, columns] = i
        region = self.windows(region).squeeze(-1)
        self.register_buffer("mask", torch.where(region[:, None] == region[:, :, None], 0.0, -100.0))

    def windows(self, x: Tensor) -> Tensor:
        """[N, size, size, C] to [N * windows, window^2, C]."""
        n, h, w, c = x.shape
        parts = x.view(n, h // self.window, self.window, w // self.window, self.window, c)
        return parts.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, c)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, c = x.shape
        y = self.norm1(x).view(n, self.size, self.size, c)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        bias = self.table[self.index.view(-1)].view(self.window**2, self.window**2, -1).permute(2, 0, 1)[None]
        y = self.attention(self.windows(y), bias, self.mask if self.shift else None)
        count = self.size // self.window
        y = y.view(n, count, count, self.window, self.window, c).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(n, self.size, self.size, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y.reshape(n, tokens, c)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbours side by side in the channels, normalized and halved."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, _, c = x.shape
        x = x.view(n, self.size, self.size, c)
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.reduce(self.norm(x.view(n, -1, 4 * c)))


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm0 = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.blocks = nn.Sequential(
            SwinBlock(16, 2, 8, 4, 0), SwinBlock(16, 2, 8, 4, 2), PatchMerging(16, 8), SwinBlock(32, 2, 4, 4, 0)
        )
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm0(self.patches(x).flatten(2).transpose(1, 2)))
        return self.head(self.norm(x).transpose(1, 2).mean(2))


class EfficientAttention(nn.Module):
    """SegFormer's attention (Xie 2021): keys and values of a map that a strided convolution has reduced."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.reduce = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(width)

    def split(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        return x.view(n, tokens, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        n, tokens, width = x.shape
        kv = x
        if self.reduce is not None:
            kv = self.reduce(x.transpose(1, 2).reshape(n, width, h, w)).flatten(2).transpose(1, 2)
            kv = self.norm(kv)
        scores = self.split(self.q(x)) @ self.split(self.k(kv)).transpose(-1, -2) / (width // self.heads) ** 0.5
        return self.out((scores.softmax(-1) @ self.split(self.v(kv))).transpose(1, 2).reshape(n, tokens, width))


class MixBlock(nn.Module):
    """Efficient attention and an MLP with a depthwise convolution between its layers."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), EfficientAttention(width, heads, reduction)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = x + self.attention(self.norm1(x), h, w)
        y = self.up(self.norm2(x))
        n, _, hidden = y.shape
        y = self.depthwise(y.transpose(1, 2).reshape(n, hidden, h, w)).flatten(2).transpose(1, 2)
        return x + self.down(F.gelu(y))


class SegFormer(nn.Module):
    """Two stages with overlapping patches and the decoder that brings all stages to one size; output [N, 5, H/4, W/4]."""

    def __init__(self, widths: Sequence[int] = (16, 32)) -> None:
        super().__init__()
        first, second = widths
        self.patches = nn.ModuleList([nn.Conv2d(3, first, 7, 4, 3), nn.Conv2d(first, second, 3, 2, 1)])
        self.norms_in = nn.ModuleList(nn.LayerNorm(w) for w in widths)
        self.blocks = nn.ModuleList([MixBlock(first, 1, 2), MixBlock(second, 2, 1)])
        self.norms_out = nn.ModuleList(nn.LayerNorm(w) for w in widths)
        self.project = nn.ModuleList(nn.Linear(w, 16) for w in widths)
        self.fuse = conv_bn(32, 16)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for i in range(2):
            x = self.patches[i](x)
            n, c, h, w = x.shape
            x = self.blocks[i](self.norms_in[i](x.flatten(2).transpose(1, 2)), h, w)
            x = self.norms_out[i](x).reshape(n, h, w, c).permute(0, 3, 1, 2).contiguous()
            y = self.project[i](x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(n, 16, h, w)
            size = maps[0].shape[2:] if maps else (h, w)
            maps.append(F.interpolate(y, size, mode="bilinear", align_corners=False))
        return self.head(self.fuse(torch.cat(maps[::-1], 1)))


# --- other tasks -----------------------------------------------------------------------------------------------------


def double_conv(cin: int, cout: int) -> nn.Module:
    return nn.Sequential(conv_bn(cin, cout, 3), conv_bn(cout, cout, 3))


class UNet(nn.Module):
    """Ronneberger 2015: down by pooling, up by ConvTranspose, joined with what came from the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = double_conv(3, 8), double_conv(8, 16), double_conv(16, 32)
        self.up2, self.join2 = nn.ConvTranspose2d(32, 16, 2, 2), double_conv(32, 16)
        self.up1, self.join1 = nn.ConvTranspose2d(16, 8, 2, 2), double_conv(16, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.up2(self.bottom(F.max_pool2d(two, 2)))
        x = self.up1(self.join2(torch.cat([two, x], 1)))
        return self.head(self.join1(torch.cat([one, x], 1)))


class SplitBottleneck(nn.Module):
    """YOLOv8's C2f: half of the channels passes, the other goes through residual blocks, all of it is concatenated."""

    def __init__(self, cin: int, cout: int, *, shortcut: bool) -> None:
        super().__init__()
        half = cout // 2
        self.enter, self.leave = conv_bn(cin, cout, act=nn.SiLU), conv_bn(3 * half, cout, act=nn.SiLU)
        self.block = nn.Sequential(conv_bn(half, half, 3, act=nn.SiLU), conv_bn(half, half, 3, act=nn.SiLU))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.enter(x).chunk(2, 1)
        more = self.block(right)
        return self.leave(torch.cat([left, right, right + more if self.shortcut else more], 1))


class PyramidPool(nn.Module):
    """SPPF: three poolings in a row, concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = conv_bn(channels, channels // 2, act=nn.SiLU)
        self.leave = conv_bn(2 * channels, channels, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        one = F.max_pool2d(x, 5, 1, 2)
        two = F.max_pool2d(one, 5, 1, 2)
        return self.leave(torch.cat([x, one, two, F.max_pool2d(two, 5, 1, 2)], 1))


class Yolo(nn.Module):
    """A detector with SiLU, Concat and Resize; output [N, places, 4 + classes]: boxes and sigmoid scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, 3, 2, act=nn.SiLU), conv_bn(8, 16, 3, 2, act=nn.SiLU))
        self.fine = SplitBottleneck(16, 16, shortcut=True)
        self.coarse = nn.Sequential(conv_bn(16, 32, 3, 2, act=nn.SiLU), PyramidPool(32))
        self.top_down = SplitBottleneck(48, 16, shortcut=False)
        self.bottom_up = conv_bn(16, 16, 3, 2, act=nn.SiLU)
        self.last = SplitBottleneck(48, 32, shortcut=False)
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Sequential(conv_bn(c, 16, 3, act=nn.SiLU), nn.Conv2d(16, n, 1)) for n in (4, 3))
            for c in (16, 32)
        )

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        up = self.top_down(torch.cat([F.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine], 1))
        down = self.last(torch.cat([self.bottom_up(up), coarse], 1))
        found = []
        for head, level in zip(self.heads, (up, down), strict=True):
            y = torch.cat([head[0](level), head[1](level).sigmoid()], 1)
            found.append(y.flatten(2).transpose(1, 2))
        return torch.cat(found, 1)


class TwoInputs(nn.Module):
    """An image [N, 3, 32, 32] and a vector [N, 6], joined in front of the classifier; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 16, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.vector = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.classes, self.value = nn.Linear(24, 10), nn.Linear(24, 1)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.image(image), self.vector(vector)], 1)
        return self.classes(x), self.value(x)


def keyword_spotting() -> nn.Module:
    """Depthwise separable convolutions over time (as in Zhang 2017's DS-CNN) on features [N, 20, 51]."""

    def separable(cin: int, cout: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv1d(cin, cin, 9, stride, 4, groups=cin, bias=False), nn.BatchNorm1d(cin), nn.ReLU(),
            nn.Conv1d(cin, cout, 1, bias=False), nn.BatchNorm1d(cout), nn.ReLU(),
        ]  # fmt: skip

    return nn.Sequential(
        nn.Conv1d(20, 16, 3, padding=1, bias=False), nn.BatchNorm1d(16), nn.ReLU(), *separable(16, 24, 2),
        *separable(24, 24, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 12),
    )  # fmt: skip


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One architecture: how to build it, the shapes of its inputs without the batch, the oldest opset that can hold it."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((3, 32, 32),)
    oldest: int = 13


NETWORKS: dict[str, Row] = {
    "resnet18": Row(lambda: ResNet(BasicBlock, (2, 2, 2, 2), 1, 10, width=8)),
    "resnet50": Row(lambda: ResNet(Bottleneck, (1, 2, 1, 1), 4, 10, width=4)),
    "regnet": Row(lambda: RegNet((1, 2), (16, 32), 8, 10)),
    "mobilenet_v2_0.35": Row(lambda: ShortMobileNetV2(0.35, 10)),
    "mobilenet_v2_1.4": Row(lambda: ShortMobileNetV2(1.4, 10)),
    "mobilenet_v3": Row(mobilenet_v3),
    "efficientnet_b0": Row(efficientnet_b0),
    "squeezenet": Row(squeezenet),
    "shufflenet_v2": Row(shufflenet_v2),
    "densenet": Row(densenet),
    "convnext": Row(ConvNeXt),
    "vit": Row(lambda: ViT(distilled=False), oldest=14),  # scaled_dot_product_attention
    "deit": Row(lambda: ViT(distilled=True)),
    "swin": Row(Swin),
    "segformer": Row(SegFormer),
    "unet": Row(UNet),
    "yolo": Row(Yolo),
    "two_inputs": Row(TwoInputs, ((3, 32, 32), (6,))),
    "keyword_spotting": Row(keyword_spotting, ((20, 51),)),
}


def initialized(name: str) -> nn.Module:
    """The network of a row in evaluation mode, BatchNormalization with the statistics of random inputs; seeded."""
    row = NETWORKS[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = row.build()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, 0, 0.2)
                norm.momentum = None  # the statistics become the plain mean over what follows
        module.train()(*(torch.randn(8, *shape) for shape in row.shapes))
    return module.eval()


def exported(name: str, opset: int, *, dynamo: bool, dynamic: bool) -> onnx.ModelProto:
    """A row of :data:`NETWORKS` by one of torch's exporters, with a batch of 2 or one called ``batch``."""
    row = NETWORKS[name]
    names = [f"input{i or ''}" for i in range(len(row.shapes))]
    options: dict[str, object] = {"dynamo": dynamo, "opset_version": opset, "input_names": names}
    if dynamic and dynamo:
        options["dynamic_shapes"] = tuple({0: torch.export.Dim("batch")} for _ in names)
    elif dynamic:
        options["dynamic_axes"] = {name: {0: "batch"} for name in names}
    if dynamo:
        options["verbose"] = False
    file = io.BytesIO()
    torch.onnx.export(initialized(name), tuple(torch.randn(2, *shape) for shape in row.shapes), file, **options)
    return onnx.load_from_string(file.getvalue())


@dataclass(frozen=True)
class Case:
    """One file of the zoo: a network, who writes it, in which opset, and whether with a dynamic batch."""

    network: str
    exporter: str
    opset: int
    dynamic: bool

    def model(self) -> onnx.ModelProto:
        """The float model."""
        if self.exporter == "hand":
            return BY_HAND[self.network].build()
        return exported(self.network, self.opset, dynamo=self.exporter == "torch.export", dynamic=self.dynamic)


def _cases() -> list[Case]:
    """TorchScript's exporter with both kinds of batch, torch.export's in one opset a network, and the graphs written by hand.

    One opset, the next one for the next network: that exporter takes longer than all that is checked.
    """
    cases = []
    for index, (name, row) in enumerate(NETWORKS.items()):
        cases += [Case(name, "torchscript", max(13, row.oldest), True), Case(name, "torchscript", 17, False)]
        cases.append(Case(name, "torch.export", 18 + index % 6, index % 2 == 1))
    return cases + [Case(name, "hand", row.opset, True) for name, row in BY_HAND.items()]


CASES = _cases()
