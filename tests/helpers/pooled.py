"""A network with a pool that an integer kernel of ONNX Runtime gets wrong."""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["counting_pads", "pooled"]


def pooled() -> onnx.ModelProto:
    """Two convolutions with a pool between whose windows hang over the edge, and a map beside it as a second output."""
    random = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "w2": (6, 8, 3, 3), "w3": (2, 8, 1, 1)}
    weights = {name: random.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w3"], ["beside"], "third"), helper.make_node("AveragePool", ["b"], ["p"], "pool", **pool),
        helper.make_node("Conv", ["p", "w2"], ["y"], "second", pads=[1] * 4),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("beside", 1, None), helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def counting_pads(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the pool written as torch does: the same as written, wrong in ONNX Runtime's integer kernel."""
    result = copy.deepcopy(model)
    pool = next(node for node in result.graph.node if node.op_type == "AveragePool")
    for attribute in [a for a in pool.attribute if a.name == "count_include_pad"]:
        pool.attribute.remove(attribute)
    pool.attribute.append(helper.make_attribute("count_include_pad", 1))
    return result
