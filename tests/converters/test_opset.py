"""Models raised to a later opset."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from mrecg_onnx.converters.passes.opset import raise_opset
from mrecg_onnx.running import open_session


def test_a_model_is_raised_above_13_where_operators_changed() -> None:
    text = """<ir_version: 7, opset_import: ["" : 13]>
    g (float[2, 4] x) => (float[2, 1] m, float[2, 2] a, float[2, 2] b) {
        m = ReduceMean <axes = [1]> (x)
        a, b = Split <axis = 1> (x)
    }"""
    model = onnx.parser.parse_model(text)
    raised = ir.to_proto(raise_opset(ir.from_proto(model), 25))
    onnx.checker.check_model(raised, full_check=True)
    feed = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    for x, y in zip(open_session(model).run(None, feed), open_session(raised).run(None, feed), strict=True):
        np.testing.assert_array_equal(x, y)
