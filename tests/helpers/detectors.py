"""A small detector made by hand, and images with what it finds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

#: An image has GRID x GRID cells of CELL pixels.
GRID, CELL = 4, 8
_TEXT = """
<ir_version: 9, opset_import: ["" : 17]>
detector (float[N, 3, 32, 32] images) => (float[N, 16, 4] boxes, float[N, 16, 2] scores)
{
    features_ = Conv <strides = [8, 8], kernel_shape = [8, 8]> (images, w1, b1)
    features = Relu (features_)
    spread_ = Conv (features, w2)
    spread = Relu (spread_)
    offsets4 = Conv (spread, w3)
    offsets3 = Reshape (offsets4, four)
    offsets = Transpose <perm = [0, 2, 1]> (offsets3)
    boxes = Add (offsets, cells)
    logits4 = Conv (spread, w4, b4)
    logits3 = Reshape (logits4, two)
    logits = Transpose <perm = [0, 2, 1]> (logits3)
    scores = Sigmoid (logits)
}
"""


def cells() -> np.ndarray:
    """Corners of all cells, ``[16, 4]``."""
    y, x = np.mgrid[:GRID, :GRID] * CELL
    return np.stack([x, y, x + CELL, y + CELL], -1).reshape(-1, 4).astype(np.float32)


def detector() -> onnx.ModelProto:
    """Every cell is a box, its classes are red and blue: how much more of the one colour there is than of the other."""
    random = np.random.default_rng(0)
    w1 = np.zeros((4, 3, CELL, CELL), np.float32)
    w1[0, 0] = w1[1, 2] = 1 / CELL**2  # how red, how blue
    w1[0, 2] = w1[1, 0] = -1 / CELL**2
    w1[2:] = random.normal(0, 0.02, w1[2:].shape)
    w4 = np.zeros((2, 4, 1, 1), np.float32)
    w4[0, 0] = w4[1, 1] = 12
    weights = {
        "w1": w1,
        "b1": np.zeros(4, np.float32),
        "w2": (np.eye(4) + random.normal(0, 0.02, (4, 4)))[:, :, None, None].astype(np.float32),
        "w3": random.normal(0, 0.2, (4, 4, 1, 1)).astype(np.float32),
        "w4": w4,
        "b4": np.full(2, -4, np.float32),
        "four": np.array([0, 4, GRID**2]),
        "two": np.array([0, 2, GRID**2]),
        "cells": cells()[None],
    }
    model = onnx.parser.parse_model(_TEXT)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def headed() -> onnx.ModelProto:
    """The detector with one output as YOLO's head has it: box and a score for each class, [N, 16, 6]."""
    model = detector()
    model.graph.node.append(helper.make_node("Concat", ["boxes", "scores"], ["pred"], axis=2))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("pred", TensorProto.FLOAT, ["N", 16, 6]))
    onnx.checker.check_model(model, full_check=True)
    return model


_TAIL = """
<ir_version: 9, opset_import: ["" : 17]>
tail (float[N, 16, 4] boxes, float[N, 16, 2] scores) => (float[K, 4] found_boxes, float[K] found_scores, int64[K] found_labels)
{
    by_class = Transpose <perm = [0, 2, 1]> (scores)
    most = Constant <value = int64[1] {20}> ()
    overlap = Constant <value = float[1] {0.5}> ()
    least = Constant <value = float[1] {0.3}> ()
    chosen = NonMaxSuppression (boxes, by_class, most, overlap, least)
    zero = Constant <value = int64[1] {0}> ()
    first = Constant <value = int64[1] {1}> ()
    second = Constant <value = int64[1] {2}> ()
    third = Constant <value = int64[1] {3}> ()
    which = Slice (chosen, second, third, first)
    which_box = Squeeze (which, first)
    label = Slice (chosen, first, second, first)
    found_labels = Squeeze (label, first)
    flat_boxes = Squeeze (boxes, zero)
    found_boxes = Gather <axis = 0> (flat_boxes, which_box)
    flat_scores = Squeeze (by_class, zero)
    pairs = Concat <axis = 1> (label, which)
    found_scores = GatherND (flat_scores, pairs)
}
"""


def finished_detector(batch: int | str = 1) -> onnx.ModelProto:
    """The detector with NonMaxSuppression behind it, as programs run it: image by image, as many boxes as there are."""
    model, tail = detector(), onnx.parser.parse_model(_TAIL)
    model.graph.node.extend(tail.graph.node)
    del model.graph.output[:]
    model.graph.output.extend(tail.graph.output)
    if isinstance(batch, int):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    onnx.checker.check_model(model, full_check=True)
    return model


def write_scenes(folder: Path, count: int, *, side: int = 64) -> tuple[Path, Path, Path]:
    """Images of ``side`` pixels with red and blue cells: their folder, COCO's boxes (ids 3 and 8), and masks (1 and 2)."""
    random = np.random.default_rng(count)
    (folder / "scenes").mkdir()
    (folder / "masks").mkdir()
    scale = side // (GRID * CELL)
    images, drawn = [], []
    for number in range(count):
        pixels = random.integers(60, 90, (side, side, 3)).astype(np.uint8)
        mask = np.zeros((side, side), np.uint8)
        for cell in random.choice(GRID**2, 3, replace=False):
            x, y, right, bottom = (int(v) * scale for v in cells()[cell])
            kind = int(random.integers(2))
            pixels[y:bottom, x:right, 2 * kind] = random.integers(220, 255)
            mask[y:bottom, x:right] = kind + 1
            box = [x, y, right - x, bottom - y]
            drawn.append(
                {"id": len(drawn) + 1, "image_id": number, "category_id": (3, 8)[kind], "bbox": box, "iscrowd": 0}
            )
        Image.fromarray(pixels).save(folder / "scenes" / f"{number:03d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03d}.png")
        images.append({"id": number, "file_name": f"{number:03d}.png", "width": side, "height": side})
    categories = [{"id": 8, "name": "blue"}, {"id": 3, "name": "red"}]
    content = {"images": images, "annotations": drawn, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "scenes", folder / "instances.json", folder / "masks"


def furnish(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, models: dict[str, onnx.ModelProto]) -> Path:
    """The current folder is ``folder`` with these models, 24 scenes, and the module ``mine`` of metrics."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(module)
    for name, model in models.items():
        onnx.save(model, name)
    write_scenes(folder, 24)
    return folder


def read(path: str) -> Any:
    """A file of JSON."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


_SEGMENTER = """
<ir_version: 9, opset_import: ["" : 17]>
segmenter (float[N, 3, 32, 32] images) => (float[N, 3, 32, 32] classes)
{
    features_ = Conv (images, w1, b1)
    features = Relu (features_)
    classes = Conv (features, w2, b2)
}
"""


def segmenter() -> onnx.ModelProto:
    """The class of every pixel: 0, red, blue."""
    w1 = np.array([[1, 0, -1], [-1, 0, 1], [0.1, 0.1, 0.1]], np.float32)[:, :, None, None]
    w2 = np.array([[0, 0, 0.2], [5, 0, 0], [0, 5, 0]], np.float32)[:, :, None, None]
    weights = {"w1": w1, "b1": np.zeros(3, np.float32), "w2": w2, "b2": np.array([1.2, 0, 0], np.float32)}
    model = onnx.parser.parse_model(_SEGMENTER)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


_LISTED = """
<ir_version: 9, opset_import: ["" : 17]>
listed (float[1, 3, 32, 32] images) => (float[1, 3, 32, 32] stacked)
{
    image = Squeeze (images, zero)
    centred = Sub (image, mean)
    scaled = Div (centred, deviation)
    with_axis = Unsqueeze (scaled, zero)
    resized_ = Resize <mode = "linear"> (with_axis, none, none, size)
    resized = Gather <axis = 0> (resized_, first)
    padded = Pad (resized, pads)
    alone = Unsqueeze (padded, zero)
    stacked = Concat <axis = 0> (alone)
}
"""


def listed_detector(*, batch: bool = True, padded: int = 0) -> onnx.ModelProto:
    """The finished detector behind what torchvision's detectors begin with: a list of one image, its mean, size, and padding.

    Args:
        batch: the input is a batch of one image [1, 3, 32, 32], else the image itself, [3, 32, 32].
        padded: rows and columns of zeros around the image, in place of those of its border.
    """
    model, front = finished_detector(1), onnx.parser.parse_model(_LISTED)
    size = 32 - 2 * padded
    constants = {
        "zero": np.array([0]),
        "mean": np.full((3, 1, 1), 0.1, np.float32),
        "deviation": np.full((3, 1, 1), 0.9, np.float32),
        "none": np.zeros(0, np.float32),
        "size": np.array([1, 3, size, size]),
        "first": np.array(0),
        "pads": np.array([0, padded, padded, 0, padded, padded]),
    }
    nodes = list(front.graph.node)
    for node in nodes:  # nodes of the tail have such names
        node.input[:] = [f"front_{name}" if name in constants else name for name in node.input]
    if not batch:
        nodes[1].input[0] = "images"
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", TensorProto.FLOAT, [3, 32, 32]))
        del nodes[0]
    parts = list(model.graph.node)
    for node in parts:
        node.input[:] = ["stacked" if name == "images" else name for name in node.input]
    split = helper.make_node("Split", ["boxes"], ["boxes_of_one"], axis=0)  # and a list of what heads found
    for node in parts:
        node.input[:] = ["boxes_of_one" if name == "boxes" else name for name in node.input]
    where = next(i for i, node in enumerate(parts) if "boxes" in node.output)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *parts[: where + 1], split, *parts[where + 1 :]])
    model.graph.initializer.extend(numpy_helper.from_array(v, f"front_{name}") for name, v in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return model
