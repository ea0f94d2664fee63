"""A file for one batch size: every shape is known, and what it computes is what the file with a free batch does."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from helpers.architectures import PATTERNS, Graph
from helpers.crossed import crossed
from helpers.stages import feeds
from helpers.targets import quantized
from helpers.written import initializers, run

from mrecg_onnx.converters.errors import ExportError, ModelError, SettingsError
from mrecg_onnx.writing.containers import contained
from mrecg_onnx.writing.fixed_batch import fix_batch


def unknown(model: onnx.ModelProto) -> list[str]:
    """Values with a size that is no number."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    return [v.name for v in values if not all(d.HasField("dim_value") for d in v.type.tensor_type.shape.dim)]


def chain() -> onnx.ModelProto:
    """As older exporters flatten: Shape, Gather, Unsqueeze, Concat and Reshape."""
    g = Graph()
    x = g.relu(g.conv(g.input(), 8, 8))
    size = g.op("Gather", [g.op("Shape", [x], "shape"), g.constant("first", np.int64(0))], "gather", axis=0)
    row = g.op("Unsqueeze", [size, g.constant("zero", np.array([0]))], "unsqueeze")
    target = g.op("Concat", [row, g.constant("rest", np.array([2048]))], "concat", axis=0)
    flat = g.op("Reshape", [x, target], "reshape")
    g.gemm(flat, 2048, 10, output="output")
    return g.model()


@pytest.mark.parametrize(("pattern", "batch"), crossed(PATTERNS, [1, 3]))
def test_every_shape_is_known_and_nothing_else_changes(pattern: str, batch: int) -> None:
    model = quantized(pattern)
    before = model.SerializeToString()
    fixed = fix_batch(model, batch)
    assert model.SerializeToString() == before
    onnx.checker.check_model(fixed, full_check=True)
    assert not unknown(fixed)
    assert {v.type.tensor_type.shape.dim[0].dim_value for v in (*fixed.graph.input, *fixed.graph.output)} == {batch}
    assert [n.SerializeToString() for n in fixed.graph.node if n.op_type.endswith("uantizeLinear")] == [
        n.SerializeToString() for n in model.graph.node if n.op_type.endswith("uantizeLinear")
    ]
    fed = feeds(model, batch)
    for optimized in (False, True):
        for x, y in zip(run(model, fed, optimized=optimized), run(fixed, fed, optimized=optimized), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("container", ["packed", "typed"])
def test_containers_of_a_fixed_batch(container: str) -> None:
    fixed = fix_batch(quantized("residual"), 2)
    held = contained(fixed, container).model
    assert fix_batch(held, 2) is held
    fed = feeds(fixed, 2)
    for x, y in zip(run(fixed, fed), run(held, fed), strict=True):
        np.testing.assert_array_equal(x, y)
    if container == "packed":
        assert contained(held, "int8").model.SerializeToString(deterministic=True) == fixed.SerializeToString(
            deterministic=True
        )


@pytest.mark.parametrize("container", ["packed", "typed"])
def test_a_container_stays_what_it_is(container: str) -> None:
    held = contained(quantized("residual"), container).model
    fixed = fix_batch(held, 2)
    assert [t.data_type for t in fixed.graph.initializer] == [t.data_type for t in held.graph.initializer]
    fed = feeds(fixed, 2)
    for x, y in zip(run(held, fed), run(fixed, fed), strict=True):
        np.testing.assert_array_equal(x, y)


def test_arithmetic_on_shapes_becomes_constants() -> None:
    model = chain()
    fixed = fix_batch(model, 5)
    assert {n.op_type for n in fixed.graph.node} <= {"Conv", "Relu", "Reshape", "Gemm"}
    assert not unknown(fixed)
    targets = [initializers(fixed)[n.input[1]] for n in fixed.graph.node if n.op_type == "Reshape"]
    assert [sorted(np.abs(target)) for target in targets] in ([[5, 2048]], [[0, 2048]])
    for x, y in zip(run(model, feeds(model, 5)), run(fixed, feeds(fixed, 5)), strict=True):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(Exception, match="Got: 4 Expected: 5"):
        run(fixed, feeds(model, 4))


def test_the_batch_is_followed_by_its_name() -> None:
    """An inner size of another name is left free, outputs that call the batch otherwise are not."""
    g = Graph()
    x = g.op("Relu", [g.input(batch="n")], "relu")
    g.op("Reshape", [x, g.constant("flat", np.array([0, -1]))], "reshape", "output")
    model = g.model()
    model.graph.output[0].type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
    for name in ("rows", "columns"):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = name
    fixed = fix_batch(model, 4)
    assert [d.dim_value for d in fixed.graph.output[0].type.tensor_type.shape.dim] == [4, 2048]


def test_what_cannot_be_fixed_is_said_in_one_line() -> None:
    model = quantized("conv_relu")
    with pytest.raises(SettingsError, match=r"^batch 0: at least one item is needed$"):
        fix_batch(model, 0)
    fixed = fix_batch(model, 2)
    assert fix_batch(fixed, 2) is fixed
    with pytest.raises(
        ModelError, match=r"^file: input 'input' has the fixed batch 2: fix that of a file with a free one$"
    ):
        fix_batch(fixed, 3, "file")
    scalar = onnx.ModelProto()
    scalar.CopyFrom(model)
    del scalar.graph.input[0].type.tensor_type.shape.dim[:]
    with pytest.raises(ModelError, match="input 'input' has no batch dimension to fix"):
        fix_batch(scalar, 2)
    g = Graph()
    g.op("ReduceMean", [g.input()], "mean", "output", axes=[0], keepdims=1)
    with pytest.raises(
        ExportError, match=re.escape("output 'output' has 1 rows at a batch of 3: its batch cannot be fixed")
    ):
        fix_batch(g.model(), 3)
