"""What weighted nodes, normalizations and nodes that take sizes are fed has as many axes, and channels, as they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.passes.values import attribute_int, dims, is_standard, rank
from mrecg_onnx.converters.text import printable, quoted

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["require_ranks"]

# Fewest and most axes of inputs by place (ONNX's operator specifications); None: any number from there on.
_AXES: dict[str, dict[int, tuple[int, int | None]]] = {
    "Conv": {0: (3, None), 1: (3, None), 2: (1, 1)},
    "ConvTranspose": {0: (3, None), 1: (3, None), 2: (1, 1)},
    "Gemm": {0: (2, 2), 1: (2, 2), 2: (0, 2)},
    "MatMul": {0: (1, None), 1: (1, None)},
    "BatchNormalization": {0: (2, None), 1: (1, 1), 2: (1, 1), 3: (1, 1), 4: (1, 1)},
    # Lists of sizes and places, which the passes over sizes read one by one.
    "ConstantOfShape": {0: (1, 1)},
    "Expand": {1: (1, 1)},
    "Reshape": {1: (1, 1)},
    "Slice": {1: (1, 1), 2: (1, 1), 3: (1, 1), 4: (1, 1)},
    "Tile": {1: (1, 1)},
}

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def require_ranks(model: ir.Model) -> ir.Model:
    """Refuse nodes that passes read weights or sizes of, fed what cannot be theirs; shapes are inferred before.

    Shape inference is silent about them, as it has to be about what a file merely declares.

    Raises:
        ModelError: one is; with its name and its input.
    """
    for node in model.graph.all_nodes():
        _require_sizes(node)
        _require_elements(node)
        if node.op_type not in _AXES or not is_standard(node):
            continue
        for index, (fewest, most) in _AXES[node.op_type].items():
            value = node.inputs[index] if index < len(node.inputs) else None
            axes = rank(value)
            if value is None or axes is None or (fewest <= axes and (most is None or axes <= most)):
                continue
            takes = str(fewest) if most == fewest else f"{fewest} to {most}" if most else f"{fewest} or more"
            raise ModelError(
                f"node {quoted(node.name or '')}: {node.op_type} takes {takes} axes of input {index + 1}, "
                f"{quoted(value.name or '')} has {axes}; export the model again"
            )
        if node.op_type == "BatchNormalization":
            _require_one_length(node)
        elif node.op_type in {"Conv", "ConvTranspose"}:
            _require_groups(node)
    return model


def _require_sizes(node: ir.Node) -> None:
    for output in node.outputs:
        for size in output.shape or ():
            if isinstance(size, int) and size < 0:
                raise ModelError(
                    f"node {quoted(node.name or '')}: {printable(node.op_type)[:40]} would make {quoted(output.name or '')} of "
                    f"size {size}: its input is too small for it, or the file is damaged; export the model again"
                )


def _require_one_length(node: ir.Node) -> None:
    shapes = [dims(value) for value in node.inputs[1:5]]
    fed = dims(node.inputs[0])
    lengths = {shape[0] for shape in (*shapes, fed[1:2] if fed else None) if shape and shape[0] is not None}
    if len(lengths) > 1:
        found = " and ".join(map(str, sorted(lengths)))
        raise ModelError(
            f"node {quoted(node.name or '')}: BatchNormalization has numbers for {found} channels; export the model again"
        )


def _require_elements(node: ir.Node) -> None:
    """A weight holds numbers; what is only read may hold none."""
    if node.op_type not in _WEIGHTED or not is_standard(node):
        return
    for value in node.inputs[:2]:
        weight = dims(value) if value is not None and value.const_value is not None else None
        if weight is None or 0 not in weight:
            continue
        shape = " x ".join("?" if size is None else str(size) for size in weight[:8])
        raise ModelError(
            f"node {quoted(node.name or '')}: {node.op_type} has a weight of {shape}, which holds no number; export the model "
            "again"
        )


def _require_groups(node: ir.Node) -> None:
    """The weight's channels fit the groups, and those that the layer reads."""
    weight, fed, groups = dims(node.inputs[1]), dims(node.inputs[0]), attribute_int(node, "group", 1)
    if groups < 1:
        raise ModelError(f"node {quoted(node.name or '')}: {node.op_type} of {groups} groups; export the model again")
    if weight is None or weight[0] is None or weight[1] is None:
        return
    takes = weight[1] * groups if node.op_type == "Conv" else weight[0]
    given = fed[1] if fed else None
    if weight[0] % groups or (given is not None and given != takes):
        shape = " x ".join("?" if size is None else str(size) for size in weight[:8])
        raise ModelError(
            f"node {quoted(node.name or '')}: a weight of {shape} in {groups} groups does not fit "
            f"{'its input' if given is None else f'{given} channels'}; export the model again"
        )
