"""What the installed ONNX Runtime is too old for: the lowest version that this package takes does less than the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnxruntime
import pytest
from packaging.version import Version

from mrecg_onnx.targets import Requirement, requirements, unmet

if TYPE_CHECKING:
    import onnx

__all__ = ["older_runtime", "skip_where_too_old", "too_old"]


def too_old(model: onnx.ModelProto) -> list[Requirement]:
    """What ``model`` needs, by the product's table, and the installed version does wrong or refuses."""
    rows = unmet(requirements(model), "onnxruntime", onnxruntime.__version__)
    return [row for row in rows if row.otherwise != "slower"]


def skip_where_too_old(model: onnx.ModelProto) -> None:
    """Skip the rest of a test of ``model``, where the product refuses it on the installed version."""
    for row in too_old(model):
        pytest.skip(f"{row.note()}; onnxruntime {onnxruntime.__version__} is installed")


def older_runtime(version: str) -> bool:
    """Whether the installed ONNX Runtime is older than ``version``."""
    return Version(onnxruntime.__version__) < Version(version)
