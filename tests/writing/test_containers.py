"""Containers: forms of one graph that compute the same, bit for bit, and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.architectures import PATTERNS, conv_clip, residual
from helpers.contained import VERSION, outputs, quantized
from helpers.crossed import crossed
from helpers.stages import feeds, simulated, tensors
from helpers.versions import too_old
from onnx.reference import ReferenceEvaluator
from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.converters.metadata_keys import CONTAINER_KEY
from mrecg_onnx.planning import editable_graph
from mrecg_onnx.running import fused_op_counts
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets.target import load_target
from mrecg_onnx.writing.containers import CONTAINERS, contained, container_of
from mrecg_onnx.writing.qdq import export
from mrecg_onnx.writing.retargeting import retarget

#: Those that ONNX Runtime runs; the other one is made for a target of its own (test_quant_nodes.py).
RUNNING = [name for name, row in CONTAINERS.items() if row.runs]


@pytest.mark.parametrize(
    ("pattern", "bits"),
    [
        *crossed(PATTERNS, ((4, 4, 8), (2, 4, 2))),
        *(("residual", bits) for bits in ((3, 3, 4), (8, 8, 8), (4, 32, 8))),
    ],
)
def test_all_containers_compute_the_same_as_written_and_open_at_the_default_level(
    pattern: str, bits: tuple[int, int, int]
) -> None:
    plain = quantized(pattern, *bits)
    before = plain.SerializeToString()
    for name in RUNNING:
        held = contained(plain, name).model
        assert container_of(held) == name
        onnx.checker.check_model(held, full_check=True)
        for x, y in zip(outputs(plain), outputs(held), strict=True):
            np.testing.assert_array_equal(x, y)
        if too_old(held):
            with pytest.raises(ModelError, match="computes wrong values without an error"):
                outputs(held, "all")
        else:
            outputs(held, "all")
        if name == "packed":
            for x, y in zip(outputs(plain, "all"), outputs(held, "all"), strict=True):
                np.testing.assert_array_equal(x, y)
            assert fused_op_counts(held) == fused_op_counts(plain)
        back = contained(held, "int8").model
        if name != "typed":
            assert back.SerializeToString() == before
        for x, y in zip(outputs(plain), outputs(back), strict=True):
            np.testing.assert_array_equal(x, y)
    assert plain.SerializeToString() == before


def test_opset_and_ir_version_are_those_that_the_types_need() -> None:
    for bits, opset, version in ((2, 25, 13), (4, 21, 10)):
        held = contained(quantized("conv_clip", bits, 4, bits), "packed").model
        assert (held.opset_import[0].version, held.ir_version) == (opset, version)


@pytest.mark.parametrize("first", RUNNING)
@pytest.mark.parametrize("second", RUNNING)
def test_containers_are_reached_from_each_other(first: str, second: str) -> None:
    plain = quantized("residual")
    there = contained(contained(plain, first).model, second).model
    assert container_of(there) == second
    for x, y in zip(outputs(plain), outputs(there), strict=True):
        np.testing.assert_array_equal(x, y)
    if second == "int8":
        assert CONTAINER_KEY not in {entry.key for entry in there.metadata_props}


def test_files_of_other_tools_are_refused() -> None:
    model = conv_clip()
    with pytest.raises(ModelError, match=r"not written by mrecg-onnx"):
        contained(model, "packed")
    strange = quantized("residual")
    strange.metadata_props.add(key=CONTAINER_KEY, value='{"name": "later"}')
    with pytest.raises(ModelError, match="'later' is unknown"):
        contained(strange, "packed")
    strange.metadata_props[-1].value = "["
    with pytest.raises(ModelError, match="cannot be read"):
        contained(strange, "packed")
    with pytest.raises(SettingsError, match="choose among int8, packed, typed"):
        contained(residual(), "int3")


@pytest.mark.parametrize(
    ("pattern", "target"),
    crossed(
        ["residual", "depthwise", "average_pool", "concat", "matmul_add", "hardswish_gate"], ["ort", "openvino", "qnn"]
    ),
)
def test_written_files_run_in_the_reference_evaluator(pattern: str, target: str) -> None:
    model, rules = PATTERNS[pattern](), load_target(target)
    graph = editable_graph(model, Settings(target=target))
    stage = simulated(graph, tensors(model), wbits=4, abits=4, target=target)
    plain = retarget(export(stage.graph, stage.simulation, VERSION).model, rules)
    for container in rules.containers:
        held = contained(plain, container, highest=rules.opset[1]).model
        for x, y in zip(outputs(held), ReferenceEvaluator(held).run(None, feeds(held, 4)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * np.abs(x).max())


@pytest.mark.parametrize("container", RUNNING)
@pytest.mark.parametrize(("pattern", "bits"), [("depthwise", (4, 4, 4)), ("gemm", (2, 4, 8)), ("residual", (4, 32, 8))])
def test_the_runtime_converts_files_to_its_mobile_format(
    pattern: str, bits: tuple[int, int, int], container: str, tmp_path: Path
) -> None:
    held = contained(quantized(pattern, *bits), container).model
    onnx.save(held, tmp_path / "model.onnx")
    convert_onnx_models_to_ort(tmp_path, optimization_styles=[OptimizationStyle.Fixed])
    assert (tmp_path / "model.ort").is_file()
    if container == "typed":  # the format has no 4-bit types: ONNX Runtime 1.32 writes such a file and does not open it
        return
    for x, y in zip(outputs(held, "all"), outputs_of(tmp_path / "model.ort", feeds(held, 4)), strict=True):
        np.testing.assert_array_equal(x, y)


def outputs_of(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, inputs)
    return found
