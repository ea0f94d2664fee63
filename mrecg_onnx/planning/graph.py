"""From a model file to the graph that is quantized: read, checked, normalized, within the target's opsets, planned."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from mrecg_onnx.converters import load_model, normalize
from mrecg_onnx.converters.errors import ConversionError, ModelError
from mrecg_onnx.converters.garbage import collecting_seldom
from mrecg_onnx.converters.normalize import in_float32, restructure
from mrecg_onnx.converters.passes.opset import lower_opset, raise_opset, require_raisable
from mrecg_onnx.converters.passes.shapes import infer_shapes
from mrecg_onnx.converters.passes.values import attribute_ints, constant
from mrecg_onnx.converters.protos import editable
from mrecg_onnx.converters.text import quoted
from mrecg_onnx.converters.versions import require_known_versions, runtime_versions
from mrecg_onnx.data import InputSpec
from mrecg_onnx.planning.branches import branch_narrow_reads
from mrecg_onnx.planning.fallback import mark_fallbacks
from mrecg_onnx.planning.make import make_plan
from mrecg_onnx.planning.plan import BYSTANDER_BITS, WIDE_BITS, Plan
from mrecg_onnx.planning.settings import PlanSettings
from mrecg_onnx.planning.tails import Tail, cut_off
from mrecg_onnx.targets import LOW_BIT_OPSET, load_target

__all__ = ["editable_graph", "graph_inputs", "load_planned", "named"]

logger = logging.getLogger(__name__)

#: Axes of an image without its batch.
IMAGE_AXES = 3
#: Ops whose presence says that activations are quantized; with them all that begin with QLinear.
QUANTIZED_OPS = frozenset({
    "ConvInteger", "DequantizeBFP", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul",
    "GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits",
    "QAttention", "QEmbedLayerNormalization", "QGemm", "QMoE", "QOrderedMatMul", "Quant", "QuantizeBFP", "QuantizeLinear",
})  # fmt: skip


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether an operator of the graph, or of a function in it, quantizes or computes with codes."""
    return any(_has_codes(node.op_type) for owner in (model.graph, *model.functions) for node in owner.node)


def _has_codes(op: str) -> bool:
    return op in QUANTIZED_OPS or op.startswith("QLinear")


def load_planned(
    model: onnx.ModelProto | str | Path, settings: PlanSettings
) -> tuple[onnx.ModelProto, ir.Model, Plan, Tail | None]:
    """Read and plan a float model.

    Returns:
        The model as it is, but in float32 where it was in half precision, and without the tail that has no row for each image;
        the graph that gets its Q/DQ, the plan for it, and the tail, None where there is none.

    Raises:
        MrecgError: the model or the settings do not do; what is wrong with a file has its path in the message.
    """
    with collecting_seldom():
        original = load_model(model)
        with named(model):
            _require_batch(original)
            original, tail = cut_off(in_float32(original))
            graph = editable_graph(original, settings)
            if tail is not None:
                _fit_opset(editable(tail.model), settings)  # it takes the opset of the whole file
            return original, graph, make_plan(graph, settings), tail


@contextlib.contextmanager
def named(model: onnx.ModelProto | str | Path) -> Iterator[None]:
    """Put the path of ``model`` in front of what is said about it."""
    try:
        yield
    except (ModelError, ConversionError) as error:
        if isinstance(model, onnx.ModelProto):
            raise
        raise type(error)(f"{model}: {error}") from error


def editable_graph(original: onnx.ModelProto, settings: PlanSettings, *, free: bool = True) -> ir.Model:
    """The normalized graph that gets its Q/DQ, with the branches that the settings want; with ``free`` for any batch.

    Raises:
        MrecgError: the model or the settings do not do.
    """
    graph = normalize(original, free=free)
    _check(graph)
    require_known_versions(original)
    _fit_opset(graph, settings)
    mark_fallbacks(graph)
    if settings.residual == "wide" and settings.abits < BYSTANDER_BITS:
        branch_narrow_reads(graph, settings)
    return graph


def _require_batch(model: onnx.ModelProto) -> None:
    """Refuse a graph that puts the batch in front of an image itself, as torchvision's detectors do of a list of images.

    Raises:
        ModelError: an input [C, H, W] is what a convolution of [1, C, H, W] is fed with.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape for value in model.graph.input if value.name not in constants]
    if not any(len(shape.dim) == IMAGE_AXES for shape in shapes):
        return
    for value in infer_shapes(restructure(editable(model), opset=False)).graph.inputs:
        if value.shape is None or len(value.shape) != IMAGE_AXES or not _is_given_batch(value):
            continue
        sizes = ", ".join(str(size if isinstance(size, int) else size.value or "?") for size in value.shape)
        raise ModelError(
            f"input {quoted(value.name or '')} [{sizes}] is one image without a batch, which the graph puts in front itself: "
            f"export the model again with a batch of images, [1, {sizes}] (torchvision's detectors take such a tensor, too)"
        )


def _is_given_batch(image: ir.Value) -> bool:
    """Whether ``image`` [C, H, W] gets an axis of size 1 in front before the first convolution."""
    waiting, seen, given = [image], {image}, False
    while waiting:
        for node in {use.node: None for use in waiting.pop().uses()}:
            read = node.inputs[0]
            if node.op_type == "Conv" and read in seen and read is not None and read.shape is not None:
                return given and len(read.shape) == IMAGE_AXES + 1 and read.shape[0] == 1
            given |= node.op_type == "Unsqueeze" and _is_put_in_front(node)
            new = [output for output in node.outputs if output not in seen and node.op_type not in {"Shape", "Size"}]
            seen.update(new)
            waiting[:0] = new
    return False


def _is_put_in_front(unsqueeze: ir.Node) -> bool:
    axes = constant(unsqueeze.inputs[1]) if len(unsqueeze.inputs) > 1 else attribute_ints(unsqueeze, "axes")
    return axes is not None and 0 in np.ravel(axes)


def _check(graph: ir.Model) -> None:
    """Refuse what can be loaded but not quantized.

    Raises:
        ModelError: it is quantized already, or an input or output is no tensor of numbers.
    """
    for node in graph.graph.all_nodes():
        if _has_codes(node.op_type):
            raise ModelError(
                f"the model is quantized already (node '{node.name}', {node.op_type}): give the float model it was made from"
            )
    for kind, values in (("input", graph.graph.inputs), ("output", graph.graph.outputs)):
        for value in values:
            if isinstance(value.type, ir.SequenceType | ir.OptionalType):
                what = "a sequence" if isinstance(value.type, ir.SequenceType) else "optional"
                raise ModelError(f"{kind} '{value.name}' is {what}: export a model whose in- and outputs are tensors")
            if kind == "input" and value.dtype in {None, ir.DataType.UNDEFINED}:
                raise ModelError(
                    f"input '{value.name}' does not say of which type its elements are: export the model again"
                )
            if value.dtype == ir.DataType.STRING:
                raise ModelError(
                    f"{kind} '{value.name}' holds text: export the part of the model that works on numbers"
                )


def _fit_opset(graph: ir.Model, settings: PlanSettings) -> None:
    """Bring ``graph`` between the lowest and highest opset of the target, and refuse what could not be written in the end.

    Raises:
        ModelError: a node is newer than the target's highest opset, or has no form in one that the settings need.
    """
    rules = load_target(settings.target)
    (low, high), opset = rules.opset, graph.opset_imports.get("", 0)
    if rules.name == "ort":  # the installed runtime is the limit
        high = max(high, runtime_versions()[0])
    try:
        lower_opset(graph, high)
    except ModelError as error:
        raise ModelError(
            f"{error}, the newest that target {rules.name} takes; export the model with opset {high} or older"
        ) from error
    needs = {f"target {rules.name}": low}
    if WIDE_BITS in {settings.abits, *(rule.abits for rule in settings.bits)}:
        needs[f"--abits {WIDE_BITS}"] = LOW_BIT_OPSET
    if settings.container != "int8":
        needs[f"--container {settings.container}"] = LOW_BIT_OPSET
    for what, needed in needs.items():
        try:
            require_raisable(graph, needed)
        except ModelError as error:
            raise ModelError(f"{error} ({what} needs it)") from error
    raise_opset(graph, low)
    if graph.opset_imports.get("", 0) < opset:
        logger.info("opset %d is written as %d, the newest that target %s takes", opset, high, rules.name)


def graph_inputs(model: ir.Model) -> list[InputSpec]:
    """What the graph wants to be fed."""
    specs = []
    for value in model.graph.inputs:
        shape = tuple(d if isinstance(d, int) else None for d in value.shape) if value.shape is not None else ()
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        specs.append(InputSpec(value.name or "", shape, np.dtype(dtype)))
    return specs
