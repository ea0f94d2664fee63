"""Tools that people run on a file afterwards keep what it computes; docs/other_tools.md has all that were tried.

`pip install 'mrecg-onnx[tools]'` brings those of these tests; the ones that are missing are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.contained import quantized
from helpers.stages import feeds
from helpers.versions import older_runtime, skip_where_too_old

from mrecg_onnx.running import fused_op_counts
from mrecg_onnx.writing import contained, container_of

INTEGER = ("QLinearConv", "QGemm", "QLinearMatMul")


def simplified(source: Path, target: Path) -> None:
    onnxsim = pytest.importorskip("onnxsim", reason="onnxsim is not installed")
    model, right = onnxsim.simplify(onnx.load(source))
    assert right
    onnx.save(model, target)


def slimmed(source: Path, target: Path) -> None:
    onnxslim = pytest.importorskip("onnxslim", reason="onnxslim is not installed")
    onnxslim.slim(str(source), str(target), size_threshold=1)


def in_half_precision(source: Path, target: Path) -> None:
    float16 = pytest.importorskip("onnxconverter_common.float16", reason="onnxconverter-common is not installed")
    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def extracted(source: Path, target: Path) -> None:
    graph = onnx.load(source).graph
    onnx.utils.extract_model(source, target, [v.name for v in graph.input], [v.name for v in graph.output])


def inferred(source: Path, target: Path) -> None:
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(source), strict_mode=True, data_prop=True), target)


def run(path: Path, inputs: dict[str, np.ndarray], **entries: str) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    for name, value in entries.items():
        options.add_session_config_entry(f"session.{name}", value)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, inputs)
    return found


def written(container: str, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    held = contained(quantized("residual", 4, 4, 4), container).model
    onnx.save(held, folder / "model.onnx")
    return folder / "model.onnx", feeds(held, 4)


@pytest.mark.parametrize("container", ["int8", "packed", "typed"])
@pytest.mark.parametrize("tool", [simplified, slimmed, extracted, inferred])
def test_tools_keep_outputs_kernels_and_types(
    tool: Callable[[Path, Path], None], container: str, tmp_path: Path
) -> None:
    source, inputs = written(container, tmp_path)
    skip_where_too_old(onnx.load(source))
    target = tmp_path / "after.onnx"
    tool(source, target)
    for x, y in zip(run(source, inputs), run(target, inputs), strict=True):
        np.testing.assert_array_equal(x, y)
    before, after = fused_op_counts(source), fused_op_counts(target)
    assert [after.get(name, 0) for name in INTEGER] == [before.get(name, 0) for name in INTEGER]
    kinds = [{t.data_type for t in onnx.load(path).graph.initializer} for path in (source, target)]
    assert (onnx.TensorProto.UINT4 in kinds[1]) == (onnx.TensorProto.UINT4 in kinds[0])


def test_extract_model_loses_the_metadata(tmp_path: Path) -> None:
    source, _ = written("packed", tmp_path)
    extracted(source, tmp_path / "after.onnx")
    assert container_of(onnx.load(source)) == "packed"
    assert not onnx.load(tmp_path / "after.onnx").metadata_props


def test_half_precision_leaves_no_integer_kernel(tmp_path: Path) -> None:
    source, _ = written("packed", tmp_path)
    in_half_precision(source, tmp_path / "after.onnx")
    counts = fused_op_counts(tmp_path / "after.onnx")
    assert not any(counts.get(name, 0) for name in INTEGER)


@pytest.mark.skipif(
    older_runtime("1.31"), reason="ONNX Runtime below 1.31 writes both files, then its tool ends with an error"
)
@pytest.mark.parametrize("container", ["int8", "packed"])
def test_the_mobile_format_made_with_default_options_computes_the_same(container: str, tmp_path: Path) -> None:
    source, inputs = written(container, tmp_path)
    command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    fixed, later = tmp_path / "model.ort", tmp_path / "model.with_runtime_opt.ort"
    expected = run(source, inputs)
    for got in (run(fixed, inputs), run(later, inputs, enable_saved_runtime_optimizations="1")):
        for x, y in zip(expected, got, strict=True):
            np.testing.assert_array_equal(x, y)
