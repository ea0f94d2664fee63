"""A small detector, trained on squares and discs, quantized and measured by mean average precision."""

import importlib.util

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import mrecg_onnx

GRID, CELL = 4, 8  # an image has 4 x 4 cells of 8 x 8 pixels
CENTRES = torch.stack(torch.meshgrid(*[torch.arange(GRID) * CELL + CELL / 2] * 2, indexing="xy"), -1).reshape(-1, 2)


class Detector(nn.Module):
    """Every cell finds one thing at most: boxes [N, 16, 4] as corners in pixels, scores [N, 16, 2] for square and disc."""

    def __init__(self):
        super().__init__()
        widths = (3, 16, 32, 64)
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()) for a, b in zip(widths, widths[1:])]
        self.body = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU())
        self.head = nn.Conv2d(64, 6, 1)
        self.register_buffer("centres", CENTRES)

    def forward(self, images):
        found = self.head(self.body(images)).flatten(2).transpose(1, 2)
        centres = self.centres + CELL * found[..., :2]
        half = CELL * F.softplus(found[..., 2:4])
        return torch.cat([centres - half, centres + half], 2), torch.sigmoid(found[..., 4:])


def draw(count, random):
    """Images with one or two things, and for each image the dict of boxes and labels that torchvision's detectors know."""
    images, targets = random.normal(0.2, 0.1, (count, 3, 32, 32)), []
    y, x = np.mgrid[:32, :32] + 0.5
    for image in images:
        boxes, labels = [], []
        for cell in random.choice(GRID * GRID, random.integers(1, 3), replace=False):
            cx, cy = CENTRES[cell].numpy() + random.uniform(-3, 3, 2)
            half, label = random.uniform(2, 5), int(random.integers(2))
            inside = np.hypot(x - cx, y - cy) < half if label else np.maximum(abs(x - cx), abs(y - cy)) < half
            image[:, inside] += random.uniform(0.4, 0.8, (3, 1))
            boxes.append([cx - half, cy - half, cx + half, cy + half])
            labels.append(label)
        targets.append({"boxes": np.array(boxes), "labels": np.array(labels)})
    return images.astype(np.float32), targets


def train(model, random, steps=500):
    """Scores by cross-entropy in all cells, boxes by their distance where something is."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        images, targets = draw(32, random)
        boxes, scores = model(torch.from_numpy(images))
        wanted, loss = torch.zeros_like(scores), 0.0
        for i, target in enumerate(targets):
            for box, label in zip(torch.tensor(target["boxes"]).float(), target["labels"]):
                cell = (CENTRES - (box[:2] + box[2:]) / 2).norm(dim=1).argmin()
                wanted[i, cell, label] = 1.0
                loss = loss + F.smooth_l1_loss(boxes[i, cell], box) / 32
        optimizer.zero_grad()
        (loss + 20 * F.binary_cross_entropy(scores, wanted)).backward()
        optimizer.step()
    return model.eval()


def overlap(outputs, targets):
    """A metric for where pycocotools is missing: how well the surest box of an image fits one of its things."""
    best = []
    for boxes, scores, target in zip(outputs["boxes"], outputs["scores"], targets):
        a, b = boxes[scores.max(1).argmax()], target["boxes"]
        inner = np.clip(np.minimum(a[2:], b[:, 2:]) - np.maximum(a[:2], b[:, :2]), 0, None).prod(1)
        best.append((inner / ((a[2:] - a[:2]).prod() + (b[:, 2:] - b[:, :2]).prod(1) - inner)).max())
    return float(np.mean(best))


torch.manual_seed(0)
random = np.random.default_rng(0)
model = train(Detector(), random)
free = ({0: torch.export.Dim("batch", min=1)},)
names = {"input_names": ["images"], "output_names": ["boxes", "scores"]}
torch.onnx.export(model, (torch.rand(2, 3, 32, 32),), "detector.onnx", dynamo=True, dynamic_shapes=free, **names)

metric = "mAP50" if importlib.util.find_spec("pycocotools") else overlap

calib, _ = draw(128, random)
images, targets = draw(200, random)
settings = mrecg_onnx.Settings(wbits=4, abits=8, method="brecq", iters=100)
result = mrecg_onnx.quantize("detector.onnx", calib, settings, output="detector_w4a8.onnx")
found = result.validate(list(zip(images, targets)), metric=metric)
print(f"{found.metric.name}: FP32 {found.fp32.score:.3f}, quantized {found.quantized.score:.3f}")
