"""A file for one batch size: some compilers (IREE 3.13) take no free one."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import ExportError, ModelError, SettingsError
from mrecg_onnx.converters.passes.shape_values import Size, resolve_shapes
from mrecg_onnx.converters.passes.shapes import infer_shapes
from mrecg_onnx.converters.passes.structure import remove_unused

__all__ = ["fix_batch"]


def fix_batch(model: onnx.ModelProto, batch: int, where: str = "the model") -> onnx.ModelProto:
    """``model`` with ``batch`` as the first size of every input, and every shape in it what follows from that.

    Arithmetic on shapes that is known now becomes constants; nothing else is computed differently. ``model`` is not changed, and
    is returned where it has that batch already.

    Raises:
        SettingsError: ``batch`` is below 1.
        ModelError: an input has no batch, or another fixed one.
        ExportError: an output has another number of rows.
    """
    if batch < 1:
        raise SettingsError(f"batch {batch}: at least one item is needed")
    graph = ir.from_proto(model)
    free: set[str] = set()
    fixed = True
    for value in graph.graph.inputs:
        if value.shape is None or not len(value.shape):
            raise ModelError(f"{where}: input '{value.name}' has no batch dimension to fix")
        first = value.shape[0]
        if isinstance(first, int):
            if first != batch:
                raise ModelError(
                    f"{where}: input '{value.name}' has the fixed batch {first}: fix that of a file with a free one"
                )
            continue
        fixed = False
        if first.value is not None:
            free.add(first.value)
        value.shape = ir.Shape([batch, *list(value.shape)[1:]])
    if fixed:
        return model
    values = [*graph.graph.inputs, *(v for node in graph.graph for v in node.outputs)]
    for value in values:
        value.shape = _numbered(value.shape, free, batch)
    outputs = {value: value.shape for value in graph.graph.outputs}
    for value in outputs:
        value.shape = None  # what is inferred wins: a name of its own may stand there for the batch
    while True:
        infer_shapes(graph)
        if not resolve_shapes(graph):
            break
        remove_unused(graph)
    for value, declared in outputs.items():
        value.shape = _known(value.shape, declared, batch)
        if value.shape is not None and len(value.shape) and value.shape[0] != batch:
            raise ExportError(
                f"{where}: output '{value.name}' has {value.shape[0]} rows at a batch of {batch}: its batch cannot be fixed"
            )
    _in_order(graph.graph, [tensor.name for tensor in model.graph.initializer])
    proto = ir.to_proto(graph)
    # The file says as much of its inner values as before: containers change types of codes, which others infer.
    named = {entry.name for entry in model.graph.value_info}
    kept = [entry for entry in proto.graph.value_info if entry.name in named]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    return proto


def _in_order(graph: ir.Graph, names: list[str]) -> None:
    """Initializers as the file had them, which containers rely on; new ones last."""
    held = dict(graph.initializers)
    graph.initializers.clear()
    for name in dict.fromkeys((*names, *held)):
        if name in held:
            graph.register_initializer(held[name])


def _numbered(shape: ir.Shape | None, free: set[str], batch: int) -> ir.Shape | None:
    """``shape`` with the sizes called as in ``free``, or multiples of them, as numbers."""
    if shape is None:
        return None
    sizes: list[int | str | None] = []
    for size in shape:
        name = None if isinstance(size, int) else size.value
        read = Size.read(name) if name is not None else None
        known = read is not None and read.name in free
        sizes.append(size if isinstance(size, int) else read.times * batch if known and read is not None else name)
    return ir.Shape(sizes)


def _known(inferred: ir.Shape | None, declared: ir.Shape | None, batch: int) -> ir.Shape | None:
    """What is inferred of an output, else what it declares, with the batch in front where that has no number."""
    if inferred is None or (declared is not None and len(inferred) != len(declared)):
        inferred = declared
    if inferred is None or not len(inferred):
        return inferred
    held = list(declared) if declared is not None else [None] * len(inferred)
    sizes = [new if isinstance(new, int) else old for new, old in zip(inferred, held, strict=True)]
    return ir.Shape([size if i or isinstance(size, int) else batch for i, size in enumerate(sizes)])
