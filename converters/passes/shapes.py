"""Shape and type inference."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import onnx_ir.passes.common as ir_passes

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["infer_shapes"]

logger = logging.getLogger(__name__)


def infer_shapes(model: ir.Model) -> ir.Model:
    """Infer every value's shape and type, with data propagation; what the user declared for in- and outputs stays.

    Symbolic shapes of inner values are inferred anew, because names that an earlier run made up (``unk__0``) hide the
    user's own (``batch``) which become visible once shape arithmetic has been folded. Where inference has nothing to
    say (custom operators), the old shape stays.
    """
    kept = [(value, value.shape, value.type) for value in (*model.graph.inputs, *model.graph.outputs)]
    fixed = {id(value) for value, _, _ in kept}
    old: list[tuple[ir.Value, ir.Shape]] = []
    for node in model.graph:
        for output in node.outputs:
            if id(output) not in fixed and output.shape is not None and not output.shape.is_static():
                old.append((output, output.shape))
                output.shape = None
    ir_passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for value, shape in old:
        if value.shape is None:
            value.shape = shape
    for value, shape_, type_ in kept:
        if shape_ is not None:
            value.shape = shape_
        if type_ is not None:
            value.type = type_
    return model
