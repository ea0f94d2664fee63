"""The form of the graph: constants as initializers, no functions, a name for everything, sorted, nothing unused."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from mrecg_onnx.converters.errors import ModelError

__all__ = [
    "constants_to_initializers",
    "initializers_out_of_inputs",
    "inline_functions",
    "name_all",
    "remove_unused",
    "sort",
    "standard_domain",
]


def standard_domain(model: ir.Model) -> ir.Model:
    """Write the standard domain as ``""`` wherever the file spells it ``ai.onnx``."""
    for graph in model.graphs():
        for node in graph:
            if node.domain == "ai.onnx":
                node.domain = ""
    for function in model.functions.values():
        for node in function.all_nodes():
            if node.domain == "ai.onnx":
                node.domain = ""
        _merge_imports(function.opset_imports)
    _merge_imports(model.opset_imports)
    return model


def _merge_imports(imports: dict[str, int]) -> None:
    if "ai.onnx" in imports:
        imports[""] = max(imports.pop("ai.onnx"), imports.get("", 0))


def initializers_out_of_inputs(model: ir.Model) -> ir.Model:
    """Drop initializers from the graph's inputs: they are constants here, no defaults to be overridden."""
    ir_passes.RemoveInitializersFromInputsPass()(model)
    return model


def constants_to_initializers(model: ir.Model) -> ir.Model:
    """Turn Constant nodes into initializers of the same name; a Constant that is a graph output stays a node."""
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


def inline_functions(model: ir.Model) -> ir.Model:
    """Replace each call of a model-local function by the function's body.

    Raises:
        ModelError: A function cannot be put in place.
    """
    if model.functions:
        try:
            ir_passes.InlinePass()(model)
        except (ValueError, ir.passes.PassError) as error:
            cause = error.__cause__ or error
            raise ModelError(f"a local function cannot be put in place of its calls: {cause}") from error
        ir_passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        _require_arity(model)
    return model


def _require_arity(model: ir.Model) -> None:
    """Refuse nodes with more or fewer inputs than their operators take: a call may leave out what its function needs."""
    version = model.opset_imports.get("", 0)
    for node in model.graph.all_nodes():
        if node.domain or not onnx.defs.has(node.op_type, version):
            continue
        schema, given = onnx.defs.get_schema(node.op_type, version), len(node.inputs)
        # An input that a call leaves out is none in the function.
        given = next((i for i, value in enumerate(node.inputs[: schema.min_input]) if value is None), given)
        if not schema.min_input <= given <= schema.max_input or len(node.outputs) > schema.max_output:
            raise ModelError(
                f"a local function calls {node.op_type} with {given} inputs and {len(node.outputs)} outputs: it takes "
                f"{schema.min_input} or more and makes {schema.max_output} at most; export the model again"
            )


def name_all(model: ir.Model) -> ir.Model:
    """Give every node and value a unique, non-empty name; those that have one keep it.

    A node without a name is called after its operator and its first output.
    """
    for graph in model.graphs():
        for node in graph:
            if not node.name:
                node.name = f"{node.op_type}_{node.outputs[0].name}" if node.outputs else node.op_type
    ir_passes.NameFixPass()(model)
    return model


def remove_unused(model: ir.Model) -> ir.Model:
    """Remove nodes and initializers that reach no output.

    onnx-ir 1.1 leaves those that only the branches of a removed If read: these count as readers until they read nothing.
    """
    while True:
        holders = [node for node in model.graph.all_nodes() if _subgraphs(node)]
        ir_passes.RemoveUnusedNodesPass()(model)
        gone = [
            inner for node in holders if node.graph is None for graph in _subgraphs(node) for inner in graph.all_nodes()
        ]
        for inner in gone:
            for place in range(len(inner.inputs)):
                inner.replace_input_with(place, None)
        if not gone:
            return model


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    return [
        a.as_graph() for a in node.attributes.values() if isinstance(a, ir.Attr) and a.type == ir.AttributeType.GRAPH
    ]


def sort(model: ir.Model) -> ir.Model:
    """Sort the nodes topologically, keeping the file's order where it already is one."""
    ir_passes.TopologicalSortPass()(model)
    return model
