"""Raise an old model to opset 13, or any model to a later one.

Own code rather than ``onnx.version_converter``, which goes through a C++ graph that drops doc strings and metadata and
has no adapter for several of these steps (Upsample, Resize, Softmax over several axes), and rather than onnxscript's,
which starts at opset 18. Of the operators of opset 7 to 12, only the ones below changed their meaning or their form up
to opset 13; all others were merely extended (source: ONNX's Changelog.md). The same holds from 13 to 25.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.passes.gemm import BIAS_NODE
from mrecg_onnx.converters.passes.values import (
    add_initializer,
    attribute_int,
    attribute_ints,
    dims,
    naming,
    unique_name,
)
from mrecg_onnx.converters.versions import is_older

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["TARGET_OPSET", "is_below", "lower_opset", "raise_opset", "require_raisable"]

logger = logging.getLogger(__name__)

TARGET_OPSET = 13
"""QuantizeLinear and DequantizeLinear take per-channel scales from here on."""


def is_below(model: ir.Model, target: int = TARGET_OPSET) -> bool:
    """Tell whether :func:`raise_opset` would change ``model``."""
    version = model.opset_imports.get("")
    return version is not None and version < target


def raise_opset(model: ir.Model, target: int = TARGET_OPSET) -> ir.Model:
    """Raise ``model`` to the opset ``target``, 13 to 25, if it is older; models above stay as they are.

    Node and tensor names stay. Shapes should have been inferred before.

    Raises:
        ModelError: A node's operator does not exist in the target opset, or means something else there.
    """
    if not is_below(model, target):
        return model
    version = model.opset_imports[""]
    for graph in list(model.graphs()):
        with naming(graph):
            for node in list(graph):
                _raise_node(node, version, target)
    _check_operators(model, version, target)
    model.ir_version = max(model.ir_version, _stamp(model, target))
    logger.info("raised opset %d to %d", version, target)
    return model


def _raise_node(node: ir.Node, version: int, target: int) -> None:
    for since, step in (table[node.op_type] for table in (_STEPS, _LATER) if node.op_type in table):
        if node.domain or not version < since <= target:
            continue
        try:
            step(node, version)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError(
                f"node '{node.name}': {node.op_type} cannot be raised from opset {version} to {target}: "
                f"{error}; export the model again with opset {target} or newer"
            ) from error


def require_raisable(model: ir.Model, target: int) -> None:
    """Refuse a model of opset 13 or later that :func:`raise_opset` could not raise to ``target``; nothing is changed.

    Raises:
        ModelError: As there.
    """
    version = model.opset_imports.get("")
    if version is None or version >= target:
        return
    for node in model.graph.all_nodes():
        since, step = _LATER.get(node.op_type, (0, None)) if not node.domain else (0, None)
        if step is _means_something_else and version < since <= target:
            raise ModelError(
                f"node '{node.name}': {node.op_type} cannot be raised from opset {version} to {target}: its definition "
                f"changed in between; export the model again with opset {target} or newer"
            )
    _check_operators(model, version, target)


def lower_opset(model: ir.Model, target: int) -> ir.Model:
    """Stamp ``model`` down to the opset ``target`` if it is newer, where every node means the same there.

    Newer opsets mostly widen the types that an operator takes.

    Raises:
        ModelError: A node is really newer; nothing is changed.
    """
    version = model.opset_imports.get("")
    if version is None or version <= target:
        return model
    for node in model.graph.all_nodes():
        if node.domain:
            continue
        # A bias behind a MatMul is taken off before the file is written.
        inputs = len(node.inputs) - (BIAS_NODE in node.metadata_props)
        if not is_older(node.op_type, set(node.attributes), inputs, len(node.outputs), version, target):
            raise ModelError(f"node '{node.name}' ({node.op_type}) of opset {version} is newer than opset {target}")
    model.ir_version = min(model.ir_version, _stamp(model, target))
    logger.info("stamped opset %d down to %d", version, target)
    return model


def _stamp(model: ir.Model, target: int) -> int:
    """Let the model and the bodies in it import the opset ``target``; returns the IR version that came with it."""
    model.opset_imports[""] = target
    for graph in model.graphs():
        if "" in graph.opset_imports:
            graph.opset_imports[""] = target
    return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", target)]))


def _check_operators(model: ir.Model, version: int, target: int) -> None:
    for graph in model.graphs():
        for node in graph:
            if node.domain:
                continue
            known = onnx.defs.has(node.op_type, target, "")
            if not known or onnx.defs.get_schema(node.op_type, target, "").deprecated:
                raise ModelError(
                    f"node '{node.name}': {node.op_type} of opset {version} does not exist in opset {target}; "
                    f"export the model again with opset {target} or newer"
                )


def _initializer(node: ir.Node, name: str, array: NDArray[np.generic]) -> ir.Value:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return add_initializer(graph, f"{node.name}_{name}", array)


def _set_input(node: ir.Node, index: int, name: str, array: NDArray[np.generic]) -> None:
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, _initializer(node, name, array))


def _attribute_to_input(name: str, index: int) -> Callable[[ir.Node, int], None]:
    """Make the step that moves the integer list ``name`` from the attributes to input ``index``."""

    def step(node: ir.Node, _version: int) -> None:
        values = attribute_ints(node, name)
        if values is None:
            return
        del node.attributes[name]
        _set_input(node, index, name, np.array(values, np.int64))

    return step


def _slice(node: ir.Node, _version: int) -> None:
    for index, name in enumerate(("starts", "ends", "axes"), 1):
        _attribute_to_input(name, index)(node, _version)


def _upsample(node: ir.Node, _version: int) -> None:
    """Upsample 9 is Resize with the coordinates of Resize 10; before, the factors are an attribute."""
    scales = node.attributes.pop("scales", None)
    if scales is not None:
        _set_input(node, 1, "scales", np.array(scales.as_floats(), np.float32))
    node.op_type = "Resize"
    _resize(node, _version)


def _resize(node: ir.Node, _version: int) -> None:
    """Resize 10 has asymmetric coordinates, rounds them down, and no region of interest among its inputs."""
    scales = node.inputs[1]
    node.resize_inputs(3)
    node.replace_input_with(1, None)
    node.replace_input_with(2, scales)
    node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
    node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")


def _batch_norm(node: ir.Node, _version: int) -> None:
    if attribute_int(node, "spatial", 1) != 1:
        raise ValueError("statistics per element, not per channel")
    node.attributes.pop("spatial", None)


def _scan(_node: ir.Node, _version: int) -> None:
    raise ValueError("its inputs and outputs have another form")


def _dropout(node: ir.Node, _version: int) -> None:
    ratio = node.attributes.pop("ratio", None)
    if ratio is not None:
        _set_input(node, 1, "ratio", np.array(ratio.as_float(), np.float32))


def _top_k(node: ir.Node, _version: int) -> None:
    k = node.attributes.pop("k", None)
    if k is not None:
        _set_input(node, 1, "k", np.array([k.as_int()], np.int64))


def _numpy_type(value: ir.Value | None) -> np.dtype[np.generic]:
    """Return the element type of ``value``; float32 where inference found none."""
    return np.dtype(np.float32) if value is None or value.dtype is None else np.dtype(value.dtype.numpy())


def _clip(node: ir.Node, _version: int) -> None:
    dtype = _numpy_type(node.inputs[0])
    for index, name in enumerate(("min", "max"), 1):
        bound = node.attributes.pop(name, None)
        if bound is not None:
            _set_input(node, index, name, np.array(bound.as_float(), dtype))


def _pad(node: ir.Node, version: int) -> None:
    _attribute_to_input("pads", 1)(node, version)
    value = node.attributes.pop("value", None)
    if value is not None:
        _set_input(node, 2, "value", np.array(value.as_float(), _numpy_type(node.inputs[0])))


def _scatter(node: ir.Node, _version: int) -> None:
    node.op_type = "ScatterElements"


def _softmax(node: ir.Node, _version: int) -> None:
    """Before 13, everything from ``axis`` (default 1) on was one axis; from 13 on, ``axis`` (default -1) alone is."""
    axis = attribute_int(node, "axis", 1)
    sizes = dims(node.inputs[0])
    if sizes is not None:
        axis = axis + len(sizes) if axis < 0 else axis
        if all(size == 1 for size in sizes[axis + 1 :]):
            node.attributes["axis"] = ir.AttrInt64("axis", axis)
            return
    elif axis == -1:
        node.attributes["axis"] = ir.AttrInt64("axis", axis)
        return
    _softmax_over_rest(node, axis)


def _softmax_over_rest(node: ir.Node, axis: int) -> None:
    """Compute Softmax over several axes as Flatten, Softmax, Reshape back."""
    graph, x, output = node.graph, node.inputs[0], node.outputs[0]
    assert isinstance(graph, ir.Graph)
    assert x is not None
    wish = output.name
    flat = ir.node("Flatten", [x], {"axis": axis}, name=f"{node.name}_flatten")
    shape = ir.node("Shape", [x], name=f"{node.name}_shape")
    flat.outputs[0].name = unique_name(graph, f"{wish}_flattened")
    shape.outputs[0].name = unique_name(graph, f"{wish}_shape")
    soft = ir.node(node.op_type, [flat.outputs[0]], {"axis": -1}, name=node.name)
    soft.outputs[0].name = unique_name(graph, f"{wish}_flat")
    soft.doc_string = node.doc_string
    soft.metadata_props.update(node.metadata_props)
    back = ir.node("Reshape", [soft.outputs[0], shape.outputs[0]], name=f"{node.name}_unflatten")
    made = back.outputs[0]
    made.shape, made.type = output.shape, output.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], [flat, shape, soft, back], [output], [made])
    made.name = wish


_STEPS: dict[str, tuple[int, Callable[[ir.Node, int], None]]] = {
    "BatchNormalization": (9, _batch_norm),
    "Clip": (11, _clip),
    "Dropout": (12, _dropout),
    "Hardmax": (13, _softmax),
    "LogSoftmax": (13, _softmax),
    "Pad": (11, _pad),
    "ReduceSum": (13, _attribute_to_input("axes", 1)),
    "Resize": (11, _resize),
    "Scan": (9, _scan),
    "Scatter": (11, _scatter),
    "Slice": (10, _slice),
    "Softmax": (13, _softmax),
    "Split": (13, _attribute_to_input("split", 1)),
    "Squeeze": (13, _attribute_to_input("axes", 1)),
    "TopK": (10, _top_k),
    "Unsqueeze": (13, _attribute_to_input("axes", 1)),
    "Upsample": (10, _upsample),
}
"""Operator: the opset that changed it, and what to do to a node from before."""


def _split_evenly(node: ir.Node, _version: int) -> None:
    """Since 18, a Split without sizes says into how many parts."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _grid_sample(node: ir.Node, _version: int) -> None:
    mode = node.attributes.get_string("mode", "bilinear")
    renamed = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    node.attributes["mode"] = ir.AttrString("mode", renamed)


def _roi_align(node: ir.Node, _version: int) -> None:
    """Since 16, the default shifts coordinates by half a pixel."""
    name = "coordinate_transformation_mode"
    node.attributes.setdefault(name, ir.AttrString(name, "output_half_pixel"))


def _means_something_else(_node: ir.Node, _version: int) -> None:
    raise ValueError("its definition changed in between")


_LATER: dict[str, tuple[int, Callable[[ir.Node, int], None]]] = {
    "DFT": (20, _means_something_else),
    "GridSample": (20, _grid_sample),
    "GroupNormalization": (21, _means_something_else),
    "RoiAlign": (16, _roi_align),
    "Split": (18, _split_evenly),
    **{
        f"Reduce{kind}": (18, _attribute_to_input("axes", 1))
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    },
}
"""The same for opsets above 13."""
