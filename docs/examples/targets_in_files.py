"""Images in a folder, boxes in COCO's JSON, masks in a folder: what --labels takes, with a network made by hand."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import mrecg_onnx


class Colours(nn.Module):
    """Classes of pixels, [N, 3, H, W]: grey, red, blue; and boxes of 8 x 8 cells, [N, 16, 4], with their scores, [N, 16, 2]."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)
        self.first.weight.data[:, :, 0, 0] = torch.tensor([[1.0, 0, -1], [-1, 0, 1]])
        self.second.weight.data[:, :, 0, 0] = torch.tensor([[0.0, 0], [5, 0], [0, 5]])
        self.first.bias.data, self.second.bias.data = torch.zeros(2), torch.tensor([1.2, 0, 0])
        x, y = torch.meshgrid(torch.arange(4) * 8.0, torch.arange(4) * 8.0, indexing="xy")
        self.register_buffer("cells", torch.stack([x, y, x + 8, y + 8], -1).reshape(1, 16, 4))

    def forward(self, images):
        pixels = self.second(torch.relu(self.first(images)))
        scores = torch.softmax(torch.nn.functional.avg_pool2d(pixels, 8), 1)[:, 1:].flatten(2).transpose(1, 2)
        return pixels, self.cells + 0 * scores[..., :1], scores


random = np.random.default_rng(0)
images, boxes = [], []
for folder in ("val", "masks"):
    Path(folder).mkdir()
for number in range(40):  # pictures of 64 x 64 pixels with three squares each
    pixels, mask = random.integers(60, 90, (64, 64, 3)).astype(np.uint8), np.zeros((64, 64), np.uint8)
    for cell in random.choice(16, 3, replace=False):
        x, y, kind = int(cell % 4) * 16, int(cell // 4) * 16, int(random.integers(2))
        pixels[y : y + 16, x : x + 16, 2 * kind] = 240
        mask[y : y + 16, x : x + 16] = kind + 1
        boxes.append({"image_id": number, "category_id": (3, 8)[kind], "bbox": [x, y, 16, 16], "iscrowd": 0})
    Image.fromarray(pixels).save(f"val/{number}.png")
    Image.fromarray(mask).save(f"masks/{number}.png")
    images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
categories = [{"id": 3, "name": "red"}, {"id": 8, "name": "blue"}]
Path("instances.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))

free = ({0: torch.export.Dim("batch", min=1)},)
names = {"input_names": ["images"], "output_names": ["classes", "boxes", "scores"]}
torch.onnx.export(
    Colours().eval(), (torch.rand(2, 3, 32, 32),), "colours.onnx", dynamo=True, dynamic_shapes=free, **names
)

unit = mrecg_onnx.Preprocess((0.0,), (1.0,), resize=(32, 32))  # boxes and masks go the way of the pixels
settings = mrecg_onnx.Settings(wbits=8, abits=8, method="nearest", preprocess=unit)
result = mrecg_onnx.quantize("colours.onnx", "val", settings, output="colours_w8a8.onnx")
found = result.validate("val", labels="masks", metric="mIoU")
print(f"mIoU: FP32 {found.fp32.score:.3f}, quantized {found.quantized.score:.3f}")
if importlib.util.find_spec("pycocotools"):
    found = result.validate("val", labels="instances.json:order", metric="mAP")  # classes 0 and 1, not 3 and 8
    print(f"mAP: FP32 {found.fp32.score:.3f}, quantized {found.quantized.score:.3f}")
