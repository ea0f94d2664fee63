"""Images and arrays on disk whose pixels a test can tell, and inputs of models that take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from mrecg_onnx.converters.errors import MrecgError
from mrecg_onnx.data import InputSpec, Preprocess, open_calibration

if TYPE_CHECKING:
    from pathlib import Path

RAW = Preprocess(mean=(0.0,), std=(1.0,), scale=1.0)  # what comes out are the pixels
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def spec(*shape: int | None, dtype: object = np.float32, name: str = "x") -> InputSpec:
    return InputSpec(name, shape, np.dtype(dtype))  # type: ignore[call-overload]


def pixels_of(
    path: Path, *, channels: int = 3, size: tuple[int, int] = (2, 2), preprocess: Preprocess = RAW
) -> np.ndarray:
    """The image at ``path`` as (height, width, channels)."""
    x = open_calibration(path, [spec(None, channels, *size)], preprocess).batch([0])["x"]
    return x[0].transpose(1, 2, 0)


def write(path: Path, color: object = (10, 20, 30), size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)  # type: ignore[arg-type]
    return path


def numbered(folder: Path, count: int) -> list[Path]:
    """Images whose red value is their place in the sorted order."""
    return [write(folder / f"{i:03d}.png", (i, 0, 0)) for i in range(count)]


def first_red(x: np.ndarray) -> list[int]:
    return x[:, 0, 0, 0].astype(int).tolist()


def one_line(error: pytest.ExceptionInfo[MrecgError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def rows(count: int, start: int = 0) -> np.ndarray:
    return np.broadcast_to(np.arange(start, start + count, dtype=np.float32)[:, None, None, None], (count, 3, 4, 4))
