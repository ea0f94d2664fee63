"""Graphs for the tests: the four published architectures with random weights, and small graphs of one pattern each.

The architectures are plain ``torch.nn`` with torchvision's module names, so that the exported nodes are called
``/layer1/layer1.0/conv1/Conv`` and the like. Weights are seeded; BatchNormalization's statistics are those of seeded
random inputs, so that activations keep a sensible range at every depth. Everything slow is cached: do not change a
module these functions return. ModelProtos are fresh copies and may be changed.

The pattern graphs are written node by node (no exporter in between), have dynamic batch unless said otherwise, an input
``input`` and an output ``output``, and nodes named after what they are (``conv``, ``relu``, ``add``, ...).
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "ARCHITECTURES",
    "PATTERNS",
    "Graph",
    "average_pool",
    "concat",
    "conv_clip",
    "conv_relu",
    "conv_transpose",
    "depthwise",
    "export",
    "gemm",
    "global_pool",
    "grouped",
    "hardswish_gate",
    "matmul_add",
    "max_pool",
    "mobilenet_v2",
    "regnet_x_600mf",
    "residual",
    "resnet18",
    "resnet50",
    "sigmoid_gate",
    "two_inputs",
    "view_chain",
]


# --- the published architectures ---------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """ResNet-18's block (He 2016): two 3x3 convolutions and a shortcut."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.downsample = _projection(cin, cout, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """ResNet-50's block: 1x1, 3x3 (with the stride), 1x1 at four times the width, and a shortcut."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        width = cout // 4
        self.conv1 = nn.Conv2d(cin, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, cout, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(cin, cout, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stem, four stages of blocks, global pool, classifier."""

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        depths: Sequence[int],
        expansion: int,
        classes: int,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        cin = width
        for stage, depth in enumerate(depths):
            cout = width * 2**stage * expansion
            blocks = [block(cin if i == 0 else cout, cout, 2 if i == 0 and stage else 1) for i in range(depth)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            cin = cout
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(cin, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class RegNetBlock(nn.Module):
    """RegNetX's block (Radosavovic 2020): 1x1, 3x3 in groups, 1x1, all equally wide, and a shortcut."""

    def __init__(self, cin: int, cout: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.proj = _projection(cin, cout, stride)
        self.f = nn.Sequential()
        self.f.add_module("a", _conv_bn(cin, cout, 1, activation=nn.ReLU))
        self.f.add_module("b", _conv_bn(cout, cout, 3, stride, groups=cout // group_width, activation=nn.ReLU))
        self.f.add_module("c", _conv_bn(cout, cout, 1))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation((x if self.proj is None else self.proj(x)) + self.f(x))


class RegNet(nn.Module):
    """Stem, stages that each begin with stride 2, global pool, classifier."""

    def __init__(self, depths: Sequence[int], widths: Sequence[int], group_width: int, classes: int) -> None:
        super().__init__()
        self.stem = _conv_bn(3, 32, 3, 2, activation=nn.ReLU)
        self.trunk_output = nn.Sequential()
        cin = 32
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            blocks = nn.Sequential()
            for i in range(depth):
                blocks.add_module(f"block{stage}-{i}", RegNetBlock(cin, width, 1 if i else 2, group_width))
                cin = width
            self.trunk_output.add_module(f"block{stage}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(cin, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.trunk_output(self.stem(x))), 1))


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler 2018): expand, depthwise, project linearly; a shortcut where the shapes allow."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = cin * expand
        layers = [] if expand == 1 else [_conv_bn(cin, hidden, 1, activation=nn.ReLU6)]
        layers += [
            _conv_bn(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6),
            nn.Conv2d(hidden, cout, 1, bias=False),
            nn.BatchNorm2d(cout),
        ]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """``features`` 0 (stem), 1-17 (blocks), 18 (head), global pool, classifier."""

    # expansion, channels, blocks, stride of the first: table 2 of the paper
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        cin = _round_channels(32 * width)
        layers: list[nn.Module] = [_conv_bn(3, cin, 3, 2, activation=nn.ReLU6)]
        for expand, channels, depth, stride in self.STAGES:
            cout = _round_channels(channels * width)
            for i in range(depth):
                layers.append(InvertedResidual(cin, cout, 1 if i else stride, expand))
                cin = cout
        head = _round_channels(1280 * max(1.0, width))
        self.features = nn.Sequential(*layers, _conv_bn(cin, head, 1, activation=nn.ReLU6))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


@lru_cache
def resnet18(classes: int = 1000, seed: int = 0) -> nn.Module:
    """ResNet-18 in evaluation mode; 11.69 M parameters with 1000 classes."""
    return _initialized(lambda: ResNet(BasicBlock, (2, 2, 2, 2), 1, classes), seed)


@lru_cache
def resnet50(classes: int = 1000, seed: int = 0) -> nn.Module:
    """ResNet-50 in evaluation mode; 25.56 M parameters with 1000 classes."""
    return _initialized(lambda: ResNet(Bottleneck, (3, 4, 6, 3), 4, classes), seed)


@lru_cache
def regnet_x_600mf(classes: int = 1000, seed: int = 0) -> nn.Module:
    """RegNetX-600M in evaluation mode; 6.20 M parameters with 1000 classes."""
    return _initialized(lambda: RegNet((1, 3, 5, 7), (48, 96, 240, 528), 24, classes), seed)


@lru_cache
def mobilenet_v2(width: float = 1.0, classes: int = 1000, seed: int = 0) -> nn.Module:
    """MobileNetV2 in evaluation mode; 3.50 M parameters at width 1 with 1000 classes."""
    return _initialized(lambda: MobileNetV2(width, classes), seed)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "regnet_x_600mf": regnet_x_600mf,
    "mobilenet_v2": mobilenet_v2,
}


def export(
    module: nn.Module, size: int = 64, opset: int = 17, *, dynamic_batch: bool = True, bn_folded: bool = True
) -> onnx.ModelProto:
    """Export by torch's TorchScript exporter: input ``input`` [batch or 1, 3, size, size], output ``output``.

    With ``bn_folded`` the exporter folds BatchNormalization into the convolutions, which also renames their weights
    (``onnx::Conv_193``); without it, weights keep their torch names. The result is a fresh copy of a cached export.
    """
    return onnx.load_from_string(_exported(module, size, opset, dynamic_batch, bn_folded))


@lru_cache
def _exported(module: nn.Module, size: int, opset: int, dynamic_batch: bool, bn_folded: bool) -> bytes:
    buffer = io.BytesIO()
    mode = torch.onnx.TrainingMode.EVAL if bn_folded else torch.onnx.TrainingMode.PRESERVE
    torch.onnx.export(
        module.eval(),
        (torch.zeros(1, 3, size, size),),
        buffer,
        dynamo=False,
        opset_version=opset,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}} if dynamic_batch else None,
        training=mode,
        do_constant_folding=bn_folded,  # the exporter warns about folding in any mode but EVAL
    )
    return buffer.getvalue()


def _conv_bn(
    cin: int, cout: int, kernel: int, stride: int = 1, *, groups: int = 1, activation: type[nn.Module] | None = None
) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([activation(inplace=True)] if activation else []))


def _projection(cin: int, cout: int, stride: int) -> nn.Sequential | None:
    return None if stride == 1 and cin == cout else _conv_bn(cin, cout, 1, stride)


def _round_channels(channels: float) -> int:
    """Nearest multiple of 8, not below 8 and not more than a tenth below what was asked for (MobileNet's rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _initialized(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = build()
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        for conv in (m for m in module.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
            norm.momentum = None  # the statistics become the plain mean over what follows
        module.train()(torch.randn(8, 3, 64, 64))
        for norm in norms:
            norm.momentum = 0.1
    return module.eval()


# --- small graphs of one pattern ---------------------------------------------------------------------------------


class Graph:
    """A graph written node by node; every method returns the name of the tensor it made.

    Weights are normal with variance 2 / fan-in, biases small, both from one seeded generator.
    """

    def __init__(self, seed: int = 0, opset: int = 13) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, channels: int = 8, size: int = 16, name: str = "input", batch: int | str = "batch") -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels, size, size]))
        return name

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, op_type: str, inputs: Sequence[str], name: str, output: str | None = None, **attributes: Any) -> str:
        """A node called ``name``; its output is called ``<name>_out`` unless ``output`` says otherwise."""
        output = output or f"{name}_out"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=name, **attributes))
        return output

    def weight(self, name: str, shape: Sequence[int], fan_in: int) -> str:
        value = self.random.normal(0, np.sqrt(2 / fan_in), shape)
        return self.constant(name, value.astype(np.float32))

    def bias(self, name: str, channels: int) -> str:
        return self.constant(name, self.random.normal(0, 0.2, channels).astype(np.float32))

    def conv(
        self,
        x: str,
        cin: int,
        cout: int,
        name: str = "conv",
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        output: str | None = None,
    ) -> str:
        """A convolution with bias that keeps the size (divided by the stride)."""
        per_group = cin // groups
        weight = self.weight(f"{name}.weight", (cout, per_group, kernel, kernel), per_group * kernel**2)
        inputs = [x, weight, self.bias(f"{name}.bias", cout)]
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.op("Conv", inputs, name, output, group=groups, **shape)

    def relu(self, x: str, name: str = "relu", output: str | None = None) -> str:
        return self.op("Relu", [x], name, output)

    def clip(self, x: str, name: str = "clip", low: float = 0.0, high: float = 6.0, output: str | None = None) -> str:
        bounds = [self.constant(f"{name}.{end}", np.float32(v)) for end, v in (("min", low), ("max", high))]
        return self.op("Clip", [x, *bounds], name, output)

    def gemm(self, x: str, cin: int, cout: int, name: str = "fc", output: str | None = None) -> str:
        inputs = [x, self.weight(f"{name}.weight", (cout, cin), cin), self.bias(f"{name}.bias", cout)]
        return self.op("Gemm", inputs, name, output, transB=1)

    def classifier(self, x: str, channels: int, classes: int = 10) -> str:
        """Global average pool (``pool``), ``flatten`` and a Gemm (``fc``), which gives ``output``."""
        x = self.op("GlobalAveragePool", [x], "pool")
        return self.gemm(self.op("Flatten", [x], "flatten", axis=1), channels, classes, output="output")

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The checked model, shapes inferred; its outputs are ``output`` unless named."""
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs or ("output",)]
        graph = helper.make_graph(self.nodes, "pattern", self.inputs, results, self.initializers)
        opset = helper.make_opsetid("", self.opset)
        model = helper.make_model(graph, opset_imports=[opset], producer_name="tests")
        model.ir_version = helper.find_min_ir_version_for([opset])
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
        return model


def conv_relu(seed: int = 0) -> onnx.ModelProto:
    """conv -> relu -> conv2 -> relu2: a tensor behind a fused Relu between two layers."""
    g = Graph(seed)
    x = g.relu(g.conv(g.input(), 8, 16))
    g.relu(g.conv(x, 16, 8, "conv2"), "relu2", output="output")
    return g.model()


def conv_clip(seed: int = 0) -> onnx.ModelProto:
    """conv -> clip (0 to 6) -> conv2 -> classifier: ReLU6."""
    g = Graph(seed)
    x = g.clip(g.conv(g.input(), 8, 16))
    g.classifier(g.conv(x, 16, 8, "conv2"), 8)
    return g.model()


def depthwise(seed: int = 0) -> onnx.ModelProto:
    """An inverted bottleneck: expand -> clip -> depthwise (stride 2) -> clip2 -> project -> classifier."""
    g = Graph(seed)
    x = g.clip(g.conv(g.input(), 8, 16, "expand", kernel=1))
    x = g.clip(g.conv(x, 16, 16, "depthwise", stride=2, groups=16), "clip2")
    g.classifier(g.conv(x, 16, 8, "project", kernel=1), 8)
    return g.model()


def grouped(seed: int = 0) -> onnx.ModelProto:
    """conv -> relu -> grouped (4 groups) -> relu2 -> classifier."""
    g = Graph(seed)
    x = g.relu(g.conv(g.input(), 8, 16))
    x = g.relu(g.conv(x, 16, 16, "grouped", groups=4), "relu2")
    g.classifier(x, 16)
    return g.model()


def residual(seed: int = 0, *, blocks: int = 1) -> onnx.ModelProto:
    """Stem, blocks with identity shortcut, a block with a projecting one (stride 2), classifier."""
    g = Graph(seed)
    x = g.relu(g.conv(g.input(), 8, 8, "stem"), "stem_relu")
    y = g.relu(g.conv(x, 8, 8, "conv1"), "relu1")
    x = g.relu(g.op("Add", [g.conv(y, 8, 8, "conv2"), x], "add"), "add_relu")
    for i in range(1, blocks):
        y = g.relu(g.conv(x, 8, 8, f"conv1_{i}"), f"relu1_{i}")
        x = g.relu(g.op("Add", [g.conv(y, 8, 8, f"conv2_{i}"), x], f"add_{i}"), f"add_relu_{i}")
    y = g.relu(g.conv(x, 8, 16, "conv3", stride=2), "relu3")
    y = g.conv(y, 16, 16, "conv4")
    x = g.relu(g.op("Add", [y, g.conv(x, 8, 16, "shortcut", kernel=1, stride=2)], "add2"), "add2_relu")
    g.classifier(x, 16)
    return g.model()


def concat(seed: int = 0) -> onnx.ModelProto:
    """stem -> left (with left_relu), right (linear) and the stem itself -> concat -> conv -> classifier."""
    g = Graph(seed)
    x = g.relu(g.conv(g.input(), 8, 8, "stem"), "stem_relu")
    left = g.relu(g.conv(x, 8, 8, "left", kernel=1), "left_relu")
    right = g.conv(x, 8, 8, "right")
    x = g.op("Concat", [left, right, x], "concat", axis=1)
    g.classifier(g.conv(x, 24, 8), 8)
    return g.model()


def max_pool(seed: int = 0) -> onnx.ModelProto:
    """conv -> relu -> maxpool (3x3, stride 2, padded) -> conv2 -> classifier: a ResNet's stem."""
    g = Graph(seed)
    x = g.relu(g.conv(g.input(), 8, 8))
    x = g.op("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    g.classifier(g.relu(g.conv(x, 8, 8, "conv2"), "relu2"), 8)
    return g.model()


def average_pool(seed: int = 0) -> onnx.ModelProto:
    """conv -> relu -> avgpool (2x2, stride 2) -> conv2 -> classifier."""
    g = Graph(seed)
    x = g.relu(g.conv(g.input(), 8, 8))
    x = g.op("AveragePool", [x], "avgpool", kernel_shape=[2, 2], strides=[2, 2])
    g.classifier(g.relu(g.conv(x, 8, 8, "conv2"), "relu2"), 8)
    return g.model()


def global_pool(seed: int = 0) -> onnx.ModelProto:
    """conv -> relu -> pool (global) -> head (1x1 convolution at size 1) -> flatten -> output."""
    g = Graph(seed)
    x = g.op("GlobalAveragePool", [g.relu(g.conv(g.input(), 8, 16))], "pool")
    g.op("Flatten", [g.conv(x, 16, 10, "head", kernel=1)], "flatten", "output", axis=1)
    return g.model()


def gemm(seed: int = 0) -> onnx.ModelProto:
    """flatten -> fc1 -> relu -> fc: Gemm behind Gemm, on [batch, 8, 8, 8]."""
    g = Graph(seed)
    x = g.op("Flatten", [g.input(size=8)], "flatten", axis=1)
    g.gemm(g.relu(g.gemm(x, 512, 16, "fc1")), 16, 10, output="output")
    return g.model()


def matmul_add(seed: int = 0) -> onnx.ModelProto:
    """conv -> relu -> pool -> flatten -> matmul -> matmul_bias (Add of a constant): a linear layer in two nodes."""
    g = Graph(seed)
    x = g.op("GlobalAveragePool", [g.relu(g.conv(g.input(), 8, 16))], "pool")
    x = g.op("Flatten", [x], "flatten", axis=1)
    x = g.op("MatMul", [x, g.weight("matmul.weight", (16, 10), 16)], "matmul")
    g.op("Add", [x, g.bias("matmul.bias", 10)], "matmul_bias", "output")
    return g.model()


def sigmoid_gate(seed: int = 0) -> onnx.ModelProto:
    """Squeeze and excitation: conv -> relu, times (squeeze -> reduce -> reduce_relu -> expand -> sigmoid)."""
    g = Graph(seed)
    x = g.relu(g.conv(g.input(), 8, 16))
    s = g.op("GlobalAveragePool", [x], "squeeze")
    s = g.relu(g.conv(s, 16, 8, "reduce", kernel=1), "reduce_relu")
    s = g.op("Sigmoid", [g.conv(s, 8, 16, "expand", kernel=1)], "sigmoid")
    x = g.op("Mul", [x, s], "scale")
    g.classifier(g.conv(x, 16, 8, "conv2"), 8)
    return g.model()


def hardswish_gate(seed: int = 0) -> onnx.ModelProto:
    """MobileNetV3's activations, opset 14: conv -> HardSwish node -> conv2 -> the same as x * HardSigmoid(x), which is
    how opset 13 writes it, -> gate (HardSigmoid of a 1x1 convolution of the global mean) -> classifier."""
    g = Graph(seed, opset=14)
    x = g.op("HardSwish", [g.conv(g.input(), 8, 16)], "hardswish")
    x = g.conv(x, 16, 16, "conv2")
    x = g.op("Mul", [x, g.op("HardSigmoid", [x], "hardsigmoid", alpha=1 / 6, beta=0.5)], "hardswish2")
    s = g.conv(g.op("GlobalAveragePool", [x], "squeeze"), 16, 16, "excite", kernel=1)
    s = g.op("HardSigmoid", [s], "gate", alpha=1 / 6, beta=0.5)
    g.classifier(g.op("Mul", [x, s], "scale"), 16)
    return g.model()


def conv_transpose(seed: int = 0) -> onnx.ModelProto:
    """conv (stride 2) -> relu -> deconv (ConvTranspose, 2x2, stride 2) -> relu2 -> conv2: the output is a map."""
    g = Graph(seed)
    x = g.relu(g.conv(g.input(), 8, 16, stride=2))
    inputs = [x, g.weight("deconv.weight", (16, 8, 2, 2), 16), g.bias("deconv.bias", 8)]
    x = g.relu(g.op("ConvTranspose", inputs, "deconv", kernel_shape=[2, 2], strides=[2, 2]), "relu2")
    g.conv(x, 8, 4, "conv2", kernel=1, output="output")
    return g.model()


def two_inputs(seed: int = 0) -> onnx.ModelProto:
    """Inputs ``input`` [batch, 8, 16, 16] and ``other`` [batch, 4, 8, 8], one convolution each, added, classifier."""
    g = Graph(seed)
    left = g.conv(g.input(), 8, 8, "conv_left", stride=2)
    right = g.conv(g.input(4, 8, "other"), 4, 8, "conv_right")
    g.classifier(g.relu(g.op("Add", [left, right], "add")), 8)
    return g.model()


def view_chain(seed: int = 0) -> onnx.ModelProto:
    """conv -> relu -> pool -> Shape/Gather/Unsqueeze/Concat -> reshape, as exporters write ``x.view(n, -1)``, -> fc."""
    g = Graph(seed)
    x = g.op("GlobalAveragePool", [g.relu(g.conv(g.input(), 8, 16))], "pool")
    n = g.op("Gather", [g.op("Shape", [x], "shape"), g.constant("zero", np.int64(0))], "gather", axis=0)
    n = g.op("Unsqueeze", [n, g.constant("axes", np.array([0]))], "unsqueeze")
    shape = g.op("Concat", [n, g.constant("rest", np.array([-1]))], "view_shape", axis=0)
    g.gemm(g.op("Reshape", [x, shape], "reshape"), 16, 10, output="output")
    return g.model()


PATTERNS: dict[str, Callable[[], onnx.ModelProto]] = {
    build.__name__: build
    for build in (
        conv_relu,
        conv_clip,
        depthwise,
        grouped,
        residual,
        concat,
        max_pool,
        average_pool,
        global_pool,
        gemm,
        matmul_add,
        sigmoid_gate,
        hardswish_gate,
        conv_transpose,
        two_inputs,
        view_chain,
    )
}
