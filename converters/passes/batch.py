"""Free a fixed batch inside the graph, so that calibration can run many samples at a time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mrecg_onnx.converters.passes.values import attribute_int, constant, dims, is_standard, set_constant

__all__ = ["free_batch"]


def free_batch(model: ir.Model) -> ir.Model:
    """Write the batch in a Reshape's constant shape as 0, "as in the input", where it is the model's fixed batch.

    Exporters write ``Reshape(x, [1, 512])`` for a model with batch 1. The function of the file does not change; without
    the number the same nodes also run on a batch of 32.
    """
    batches = {(dims(value) or [None])[0] for value in model.graph.inputs}
    if len(batches) != 1 or None in batches:
        return model
    batch = batches.pop()
    for node in model.graph:
        if not is_standard(node, "Reshape"):
            continue
        shape, source = constant(node.inputs[1]), dims(node.inputs[0])
        if shape is None or not source or not len(shape) or source[0] != batch or int(shape[0]) != batch:
            continue
        if attribute_int(node, "allowzero", 0):
            if 0 in shape:
                continue  # an empty dimension, not "as in the input"
            # torch.export's exporter always writes allowzero; without a 0 in the shape it says nothing.
            node.attributes.pop("allowzero")
        set_constant(node, 1, np.asarray([0, *(int(d) for d in shape[1:])], np.int64), f"{node.name}_shape")
    return model
