"""Every reader of dequantized values has a DequantizeLinear of its own where the target wants it, and old files get them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.architectures import PATTERNS, Graph
from helpers.crossed import crossed
from helpers.stages import feeds
from helpers.targets import outputs, quantized
from helpers.written import run

from mrecg_onnx.running import fused_op_counts
from mrecg_onnx.targets.target import TARGET_NAMES, load_target
from mrecg_onnx.writing.containers import contained
from mrecg_onnx.writing.readers import part_readers
from mrecg_onnx.writing.retargeting import retarget

#: Targets that want them: qonnx reads one quantizer for all readers.
OWN = [name for name in TARGET_NAMES if load_target(name).dequantizers == "own"]


def shared(model: onnx.ModelProto) -> list[str]:
    """Names of dequantized values that more than one input of a node, or one and an output of the graph, read."""
    made = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    read = Counter(name for n in model.graph.node for name in n.input)
    read.update(v.name for v in model.graph.output)
    return [name for name in made if read[name] > 1]


def joined(model: onnx.ModelProto) -> onnx.ModelProto:
    """As older versions wrote it: DequantizeLinear nodes of the same inputs are one."""
    old = onnx.ModelProto()
    old.CopyFrom(model)
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    ends = {v.name for v in old.graph.output}
    kept = []
    for node in sorted(old.graph.node, key=lambda n: n.output[0] not in ends):  # an output keeps its name
        if node.op_type == "DequantizeLinear":
            key = onnx.NodeProto(input=node.input, attribute=node.attribute).SerializeToString(deterministic=True)
            if key in first:
                same[node.output[0]] = first[key]
                continue
            first[key] = node.output[0]
        kept.append(node)
    for node in kept:
        node.input[:] = [same.get(name, name) for name in node.input]
    del old.graph.node[:]
    old.graph.node.extend(kept)
    graph = ir.from_proto(old)
    graph.graph.sort()
    return ir.to_proto(graph)


@pytest.mark.parametrize(("pattern", "target"), crossed([*PATTERNS, "padded"], OWN))
def test_no_dequantized_values_are_shared(pattern: str, target: str) -> None:
    rules = load_target(target)
    plain = quantized(pattern, target)
    aimed = retarget(plain, rules) if target != "ort" else plain
    for container in rules.containers:
        assert not shared(contained(aimed, container, highest=rules.opset[1]).model)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_onnx_runtime_makes_the_same_of_both_forms(pattern: str) -> None:
    """Not one bit and not one kernel differs at either level."""
    model = quantized(pattern)
    old = joined(model)
    for level in ("off", "all"):
        for x, y in zip(outputs(old, level), outputs(model, level), strict=True):
            np.testing.assert_array_equal(x, y)
    assert fused_op_counts(old) == fused_op_counts(model)


@pytest.mark.parametrize("target", [name for name in OWN if name != "ort"])
def test_files_of_older_versions_get_them_with_another_target(target: str) -> None:
    old = joined(quantized("residual", target))
    assert shared(old)
    aimed = retarget(old, load_target(target))
    assert not shared(aimed)
    for x, y in zip(outputs(old), outputs(aimed), strict=True):
        np.testing.assert_array_equal(x, y)


def test_files_of_older_versions_keep_their_form_in_other_containers() -> None:
    """What comes back from a container is the file, bit for bit, as it was."""
    old = joined(quantized("residual"))
    back = contained(contained(old, "packed").model, "int8").model
    assert back.SerializeToString(deterministic=True) == old.SerializeToString(deterministic=True)
    for x, y in zip(outputs(old), outputs(contained(old, "typed").model), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_node_that_reads_twice_and_an_output_are_readers() -> None:
    g = Graph()
    x = g.op("QuantizeLinear", [g.input(), g.constant("s", np.float32(0.1)), g.constant("z", np.uint8(128))], "q")
    x = g.op("DequantizeLinear", [x, "s", "z"], "d", "values")
    g.op("Mul", [x, x], "square", "output")
    model = g.model("output", "values")
    graph = ir.from_proto(model)
    assert part_readers(graph) == 2
    assert part_readers(graph) == 0
    parted = ir.to_proto(graph)
    assert not shared(parted)
    assert [v.name for v in parted.graph.output] == ["output", "values"]
    for x_, y in zip(outputs(model), outputs(parted), strict=True):
        np.testing.assert_array_equal(x_, y)


@pytest.mark.parametrize("pattern", ["conv_clip", "residual"])
def test_opencv_opens_what_it_did_not(pattern: str) -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv-python-headless 5 is not installed")
    if int(cv2.__version__.split(".")[0]) < 5:
        pytest.skip(f"OpenCV {cv2.__version__} has no DequantizeLinear")
    model = quantized(pattern)
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
    (x,) = feeds(model, 1).values()
    net.setInput(x)
    np.testing.assert_allclose(net.forward(), run(model, {model.graph.input[0].name: x})[0], rtol=0, atol=1e-3)
