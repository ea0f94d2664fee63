"""Make the sample: two small networks that read handwritten digits, and the images to calibrate and validate them.

Run ``python samples/make_sample.py`` in the root of the repository (about three minutes on one core). It writes, beside
itself,

- ``digits_resnet8.onnx``: a residual network of the usual kind and of a size (323 kB) at which a quantized file is smaller and
  faster;
- ``digits.onnx``: a narrow residual network with depthwise blocks (36 kB), which 4 bits hurt;
- ``calib/*.png``: calibration images without labels, drawn from the training part;
- ``val/<digit>/*.png``: labelled images, none of which was trained on or calibrated with, the same number per digit.

Networks have opset 17, dynamic batch, input ``image`` (N, 3, 32, 32), output ``logits`` (N, 10). BatchNormalization is
left in the graph, as an exporter that preserves training would leave it. A name behind the script trains that network alone.

The images are the 1,797 handwritten digits (8x8 pixels, 17 grey levels) that scikit-learn ships. Each is enlarged to
32x32 by bilinear interpolation and, so that the task is not too easy for a small network, **perturbed at random**:
rotated by up to 20 degrees, shifted by up to 3 of the 32 pixels in both directions, scaled by up to 10 %, and covered
with Gaussian noise of standard deviation 0.15 (white is 1). In training every epoch draws new perturbations; the
calibration and validation files hold one fixed, seeded draw of the same perturbations. Accuracy on these files is thus
not comparable with accuracy on the unperturbed digits.

Size of the narrow network, length of its training and strength of the perturbations were picked from a few dozen
combinations so that FP32 accuracy is high while rounding to nearest at 4 bits costs several points. The pick looked at
the validation part: these accuracies compare quantizations of one network and say little about digits in general.

Split, perturbation, initial weights and order of the mini-batches are seeded: on one machine the same versions of the
libraries give the same files.
"""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
SEED = 0
SIZE = 32
CLASSES = 10
VAL_PER_CLASS = 45
CALIB_IMAGES = 256

# The default image pipeline of the tool: RGB, /255, ImageNet's mean and standard deviation, NCHW.
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

MAX_ROTATION = 20.0  # degrees
MAX_SHIFT = 3.0  # pixels of 32
MAX_ZOOM = 0.10
NOISE = 0.15  # standard deviation; white is 1

BATCH_SIZE = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4


class Split(NamedTuple):
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,) of the training and the validation part."""

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity, ReLU behind the sum: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(x + self.bn2(self.conv2(y)))
        return out


class InvertedBottleneck(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 (linear): (N, C_in, H, W) -> (N, C_out, H / stride, W / stride).

    The identity is added where shape allows it, as in MobileNetV2 (arXiv 1801.04381).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int = 2) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.expand = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.expand_bn = nn.BatchNorm2d(hidden)
        self.expand_relu = nn.ReLU6()
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(hidden)
        self.depthwise_relu = nn.ReLU6()
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        h = self.expand_relu(self.expand_bn(self.expand(x)))
        h = self.depthwise_relu(self.depthwise_bn(self.depthwise(h)))
        y: Tensor = self.project_bn(self.project(h))
        return x + y if self.residual else y


class DigitsNet(nn.Module):
    """Stem, one plain residual block, six inverted bottlenecks, head: (N, 3, 32, 32) -> logits (N, 10).

    Deliberately narrow (2,430 parameters): with the usual expansion by 4 and twice the channels, rounding to nearest at
    4 bits costs nothing on this task, and the sample would show nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(4)
        self.stem_relu = nn.ReLU()
        self.blocks = nn.Sequential(
            BasicBlock(4),
            InvertedBottleneck(4, 4, stride=2),
            InvertedBottleneck(4, 4, stride=1),
            InvertedBottleneck(4, 6, stride=2),
            InvertedBottleneck(6, 6, stride=1),
            InvertedBottleneck(6, 8, stride=2),
            InvertedBottleneck(8, 8, stride=1),
        )
        self.head = nn.Conv2d(8, 16, 1, bias=False)
        self.head_bn = nn.BatchNorm2d(16)
        self.head_relu = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images that went through :func:`normalize`."""
        x = self.stem_relu(self.stem_bn(self.stem(image)))
        x = self.blocks(x)
        x = self.head_relu(self.head_bn(self.head(x)))
        logits: Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


class Downsampling(nn.Module):
    """A residual block that halves the map: (N, C_in, H, W) -> (N, C_out, H / 2, W / 2), the skip path a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
        self.skip_bn = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(self.skip_bn(self.skip(x)) + y)
        return out


class ResNet8(nn.Module):
    """ResNet-8 as in MLPerf Tiny (arXiv 2106.07597): (N, 3, 32, 32) -> logits (N, 10), 78,042 parameters.

    Three residual blocks of plain convolutions with 16, 32 and 64 channels, wide enough for integer kernels to pay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(16)
        self.stem_relu = nn.ReLU()
        self.blocks = nn.Sequential(BasicBlock(16), Downsampling(16, 32), Downsampling(32, 64))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images that went through :func:`normalize`."""
        x = self.blocks(self.stem_relu(self.stem_bn(self.stem(image))))
        logits: Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


class Recipe(NamedTuple):
    """How one of the sample's networks is made: its module and how long it is trained."""

    module: type[nn.Module]
    epochs: int


#: By the name of the file.
NETWORKS = {"digits_resnet8": Recipe(ResNet8, 60), "digits": Recipe(DigitsNet, 400)}


def load_split() -> Split:
    """Load the digits and set ``VAL_PER_CLASS`` random images of each digit aside for validation."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(16.0).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    order = np.random.default_rng(SEED).permutation(len(labels))
    val = np.sort(np.concatenate([order[labels.numpy()[order] == c][:VAL_PER_CLASS] for c in range(CLASSES)]))
    train = np.setdiff1d(order, val)
    return Split(images[train], labels[train], images[val], labels[val])


def perturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Enlarge and perturb: images (N, 1, 8, 8) in [0, 1] -> grey levels (N, 1, 32, 32), uint8."""

    def uniform(bound: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * bound

    angle = uniform(math.radians(MAX_ROTATION))
    zoom = 1 + uniform(MAX_ZOOM)
    unit = 2 / SIZE  # affine_grid spans the image with [-1, 1]
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    dx, dy = uniform(MAX_SHIFT * unit), uniform(MAX_SHIFT * unit)
    theta = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    grid = F.affine_grid(theta, [len(images), 1, SIZE, SIZE], align_corners=False)
    large = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    noisy = large + NOISE * torch.randn(large.shape, generator=generator)
    return (noisy.clamp(0, 1) * 255).round().to(torch.uint8)


def normalize(grey: Tensor) -> Tensor:
    """Apply the tool's default pipeline: uint8 (N, 1, 32, 32) -> float32 (N, 3, 32, 32)."""
    return (grey.float().div(255).expand(-1, 3, -1, -1) - MEAN) / STD


def train(split: Split, recipe: Recipe) -> nn.Module:
    """Train a network on the training part, every epoch with new perturbations; return the network in evaluation mode."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED + 1)
    net = recipe.module()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    steps = recipe.epochs * (len(split.train_labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for epoch in range(recipe.epochs):
        inputs = normalize(perturb(split.train_images, generator))
        order = torch.randperm(len(inputs), generator=generator)
        total = 0.0
        for batch in order[: len(order) // BATCH_SIZE * BATCH_SIZE].view(-1, BATCH_SIZE):
            loss = F.cross_entropy(net(inputs[batch]), split.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 20 == 0:
            print(f"epoch {epoch + 1:3d}/{recipe.epochs}  loss {total * BATCH_SIZE / len(order):.4f}", flush=True)
    return net.eval()


def write_images(images: Tensor, labels: Tensor | None, folder: Path) -> None:
    """Write uint8 grey levels (N, 1, 32, 32) as PNG files; with labels (N,), into one folder per class.

    ``folder`` is emptied first, so that no image of an earlier run stays behind.
    """
    if folder.exists():
        shutil.rmtree(folder)
    for i, grey in enumerate(images):
        path = folder / (f"{i:04d}.png" if labels is None else f"{labels[i].item()}/{i:04d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey[0].numpy()).save(path, optimize=True)


def export(net: nn.Module, path: Path) -> None:
    """Write the network as ONNX, opset 17, dynamic batch, with its BatchNormalization nodes as they are."""
    torch.onnx.export(
        net,
        (torch.zeros(1, 3, SIZE, SIZE),),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        opset_version=17,
        do_constant_folding=False,
        # EVAL would fold BatchNormalization into the convolutions; the tool is to show that it does that itself.
        training=torch.onnx.TrainingMode.PRESERVE,
        dynamo=False,
    )


def top1_on_files(model: Path, folder: Path) -> tuple[int, int]:
    """Classify ``folder``'s PNG files, read back from disk, on ONNX Runtime; return (correct, all)."""
    files = sorted(folder.glob("*/*.png"))
    grey = torch.stack(
        [torch.from_numpy(np.array(Image.open(f, formats=["PNG"]).convert("L"))) for f in files]
    ).unsqueeze(1)
    labels = np.array([int(f.parent.name) for f in files])
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": normalize(grey).numpy()})
    return int((logits.argmax(1) == labels).sum()), len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"which: {', '.join(NETWORKS)}; default: all")
    names = parser.parse_args().networks or list(NETWORKS)
    if unknown := [name for name in names if name not in NETWORKS]:
        parser.error(f"no network '{unknown[0]}': choose from {', '.join(NETWORKS)}")
    torch.set_num_threads(1)  # sums are ordered by thread: with one, the files do not depend on the number of cores
    split = load_split()

    generator = torch.Generator().manual_seed(SEED + 2)
    chosen = torch.randperm(len(split.train_labels), generator=generator)[:CALIB_IMAGES]
    write_images(perturb(split.train_images[chosen], generator), None, HERE / "calib")
    write_images(perturb(split.val_images, generator), split.val_labels, HERE / "val")
    for name in names:
        net = train(split, NETWORKS[name])
        model = HERE / f"{name}.onnx"
        export(net, model)
        correct, total = top1_on_files(model, HERE / "val")
        parameters = sum(p.numel() for p in net.parameters())
        print(f"{model.name}: {parameters} parameters, {model.stat().st_size} bytes")
        print(f"FP32 top-1 on val/, ONNX Runtime: {correct}/{total} = {correct / total:.4f}")


if __name__ == "__main__":
    main()
