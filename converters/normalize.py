"""Bring a float model into the one form the rest of the package knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import onnx
import onnx_ir as ir

from mrecg_onnx.converters.passes.batch import free_batch
from mrecg_onnx.converters.passes.batchnorm import bridge_batchnorm, fold_affine, fold_batchnorm, merge_batchnorm
from mrecg_onnx.converters.passes.clamps import fuse_clamps
from mrecg_onnx.converters.passes.constants import fold_constants
from mrecg_onnx.converters.passes.empties import drop_empties
from mrecg_onnx.converters.passes.gemm import fuse_matmul_add, join_matmul_bias, plain_gemm
from mrecg_onnx.converters.passes.half import widen_half
from mrecg_onnx.converters.passes.identity import remove_identities
from mrecg_onnx.converters.passes.matmul import squeeze_weights
from mrecg_onnx.converters.passes.opset import is_below, raise_opset
from mrecg_onnx.converters.passes.pads import pad_all_axes
from mrecg_onnx.converters.passes.pooling import mean_to_pool, plain_pools
from mrecg_onnx.converters.passes.ranks import require_ranks
from mrecg_onnx.converters.passes.rows import keep_rows
from mrecg_onnx.converters.passes.sequences import unpack_sequences
from mrecg_onnx.converters.passes.shape_values import resolve_shapes
from mrecg_onnx.converters.passes.shapes import drop_stale, infer_shapes
from mrecg_onnx.converters.passes.structure import (
    constants_to_initializers,
    initializers_out_of_inputs,
    inline_functions,
    name_all,
    remove_unused,
    sort,
    standard_domain,
)
from mrecg_onnx.converters.passes.transposes import cancel_transposes
from mrecg_onnx.converters.passes.values import naming
from mrecg_onnx.converters.protos import editable, graphs

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["editable", "in_float32", "normalize", "restructure"]

_Made = TypeVar("_Made")
# What a round does; each tells whether it changed anything.
_ROUND = (
    fold_constants,
    resolve_shapes,
    unpack_sequences,
    remove_identities,
    cancel_transposes,
    pad_all_axes,
    keep_rows,
    drop_empties,
    squeeze_weights,
)
# Each round folds what the shapes found by the round before made constant; exports need three or four, however deep.
_MAX_ROUNDS = 30


def normalize(model: onnx.ModelProto, *, keep_batchnorm: bool = False, free: bool = True) -> ir.Model:
    """Return ``model`` as a simplified, typed, sorted graph of opset 13 or higher that computes the same.

    Constants are initializers; functions are inlined; Identity and Dropout are gone; shape arithmetic is folded where
    it is constant; Transposes that undo each other are gone, and what takes the axis of a batch of 1 off and puts it back;
    BatchNormalization is in the Conv in front or behind, or a depthwise Conv of its own; a mean over the spatial axes is
    GlobalAveragePool; clamps in a row are one; an AveragePool has the pads that count in front; MatMul + Add is Gemm, or with
    more than two axes a MatMul whose third input is the bias, which is no ONNX and which the exporter takes apart again. In-
    and outputs with their shapes and types, the names of the nodes that remain and of their outputs, doc strings and metadata
    are the user's. Half precision is float32, with a Cast at the in- and outputs that are half. Values carry shapes and types
    as far as inference goes.

    Args:
        model: A valid model with its tensors in memory (see :func:`mrecg_onnx.converters.load_model`); not changed.
        keep_batchnorm: Leave BatchNormalization, and other per-channel maps behind layers, as nodes of their own.
        free: Take the number of a fixed batch out of constants, so that the graph runs on other batches, too.

    Raises:
        ModelError: A node cannot be raised to opset 13, or is fed what it cannot take.
    """
    graph = require_ranks(restructure(editable(model)))
    if widen_half(graph):
        infer_shapes(graph)
    for _ in range(_MAX_ROUNDS):
        changed = [_named(step, graph) for step in _ROUND]
        remove_unused(graph)
        if not any(changed):
            break
        infer_shapes(graph)
    require_ranks(graph)
    folds = () if keep_batchnorm else (fold_batchnorm, fold_affine, plain_gemm, merge_batchnorm, bridge_batchnorm)
    layers = (plain_gemm, fuse_matmul_add, *folds)
    maps = (fuse_clamps, mean_to_pool, plain_pools, cancel_transposes)
    for step in (*layers, *maps, *((free_batch,) if free else ())):
        _named(step, graph)
    for finish in (remove_unused, sort, name_all, infer_shapes):
        finish(graph)
    # Last: inference knows no MatMul of three inputs.
    _named(join_matmul_bias, graph)
    return name_all(remove_unused(graph))


def _named(step: Callable[[ir.Model], _Made], graph: ir.Model) -> _Made:
    with naming(graph.graph):
        return step(graph)


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with half precision computed in float32 between its borders; ``model`` itself where none is in it.

    Raises:
        ModelError: The model is damaged.
    """
    if not any(_makes_half(graph) for graph in graphs(model)):
        return model
    graph = restructure(editable(model), opset=False)
    return ir.to_proto(graph) if widen_half(graph) else model


def _makes_half(graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    """Tell whether half precision comes into ``graph``: with a constant, an input or a Cast."""
    kinds = [attribute.i for node in graph.node for attribute in node.attribute if node.op_type == "Cast"]
    kinds += [attribute.t.data_type for node in graph.node for attribute in node.attribute]
    if isinstance(graph, onnx.GraphProto):
        kinds += [tensor.data_type for tensor in graph.initializer]
        kinds += [value.type.tensor_type.elem_type for value in graph.input]
    return any(kind in {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16} for kind in kinds)


def restructure(model: ir.Model, *, opset: bool = True) -> ir.Model:
    """Bring ``model`` into form, in place, without changing which operators it is made of.

    Every node of the user's graph but Constant is still there under its name.

    Args:
        model: The model; it is changed.
        opset: Raise the opset to 13 if it is older.
    """
    for step in (
        standard_domain,
        inline_functions,
        name_all,
        initializers_out_of_inputs,
        constants_to_initializers,
        drop_stale,
    ):
        step(model)
    if opset and is_below(model):
        raise_opset(model)
        name_all(model)
        infer_shapes(model)
    return sort(model)
