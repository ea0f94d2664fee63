"""Bring a model and its local functions, which may import other versions of an operator set, to one version of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from mrecg_onnx.converters.passes.opset import TARGET_OPSET, raise_opset
from mrecg_onnx.converters.passes.structure import standard_domain

if TYPE_CHECKING:
    import onnx

__all__ = ["align_functions", "are_aligned"]


def are_aligned(model: onnx.ModelProto) -> bool:
    """Tell whether all functions of ``model`` import what the model does."""
    own = {entry.domain: entry.version for entry in model.opset_import}
    return all(
        own.get(entry.domain) == entry.version for function in model.functions for entry in function.opset_import
    )


def align_functions(model: ir.Model) -> ir.Model:
    """Raise the model and its functions to the newest version that one of them imports of each domain.

    A node means what the operator set of its own graph says. ONNX Runtime takes the model's for all of them, which is the
    same where it accepts it. Domains other than the standard one get the newest number without a change to their nodes.

    Raises:
        ModelError: A node cannot be raised.
    """
    standard_domain(model)
    everyone = [model.opset_imports, *(function.opset_imports for function in model.functions.values())]
    newest: dict[str, int] = {}
    for imports in everyone:
        for domain, version in imports.items():
            newest[domain] = max(version, newest.get(domain, 0))
    if len({imports[""] for imports in everyone if "" in imports}) > 1:
        target = newest[""] = max(newest[""], TARGET_OPSET)
        raise_opset(model, target)
        for function in model.functions.values():
            body = ir.Model(function.graph, ir_version=model.ir_version)
            body.opset_imports.update(function.opset_imports)
            raise_opset(body, target)
            _constants_to_nodes(function.graph)
    for imports in everyone:
        imports.update({domain: newest[domain] for domain in imports})
    for domain, version in newest.items():
        model.opset_imports.setdefault(domain, version)
    return model


def _constants_to_nodes(graph: ir.Graph) -> None:
    """A function has no initializers: what was an attribute and is an input now comes out of a Constant."""
    for value in list(graph.initializers.values()):
        assert value.const_value is not None
        assert value.name is not None
        name, tensor = value.name, value.const_value
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], num_outputs=1)
        graph.insert_before(graph[0], node)
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        del graph.initializers[name]
        value.name = None
        node.outputs[0].name = name
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
