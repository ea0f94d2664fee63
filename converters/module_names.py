"""Names of nodes as a user knows them: those that an exporter made up, with the module that torch wrote beside them.

torch's exporter calls nodes ``node_conv2d_1`` and writes the modules around each into its metadata, outermost first, the operator
last. A Conv into which a BatchNormalization went carries the scopes of that: the name of its weight goes before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx

__all__ = ["NARROW", "NodeNames", "module_names", "module_of", "names_meant"]

SCOPES = "pkg.torch.onnx.name_scopes"
#: Text of metadata that is looked at: what is longer names no module of a network that anybody wrote.
LONGEST = 4096
_QUOTED = re.compile(r"'([^']*)'")
#: What joins the names of units.
_BETWEEN = re.compile(r"( \+ | \.{2,3} |, )")
_WEIGHT = ".weight"
#: Ends the name of a copy that is quantized to fewer bits than the tensor itself.
NARROW = "_narrow"


def module_names(model: onnx.ModelProto, weights: Mapping[str, str] | None = None) -> dict[str, str]:
    """Modules by the names of nodes, and of what they make, that do not say them.

    Args:
        model: a float model, or a file that was made of one.
        weights: by node, how the float model calls the weight of a file whose nodes read codes.
    """
    found: dict[str, str] = {}
    for node in model.graph.node:
        weight = (weights or {}).get(node.name) or next(iter(node.input[1:2]), "")
        module = module_of(weight, {entry.key: entry.value for entry in node.metadata_props})
        for name in (node.name, *node.output):
            if (
                module and name and module not in name and not name.startswith("/")
            ):  # paths of modules, by older exporters
                found[name] = module
    return found


def module_of(weight: str, metadata: Mapping[str, str]) -> str:
    """The module that a node was made of, by the name of its second input and its metadata; "" if nothing says."""
    if weight.endswith(_WEIGHT):
        return weight.removesuffix(_WEIGHT)
    scopes = metadata.get(SCOPES, "")
    modules = _QUOTED.findall(scopes)[:-1] if len(scopes) <= LONGEST else []
    return str(modules[-1]) if modules else ""


def names_meant(pattern: str, names: Iterable[str], modules: Mapping[str, str]) -> list[str]:
    """Those of ``names`` that a regular expression matches; where it matches none, those whose module, by name, it matches."""
    names = list(names)
    return [name for name in names if re.search(pattern, name)] or [
        name for name in names if modules.get(name) and re.search(pattern, modules[name])
    ]


class NodeNames:
    """Shows names with their modules.

    Args:
        modules: by name, as :func:`module_names` gives them.
    """

    def __init__(self, modules: Mapping[str, str] | None = None) -> None:
        self.modules = modules or {}

    def __call__(self, name: str) -> str:
        """``node_conv2d_1 (layer1.0.conv1)``; a name that says its module, or has none, as it is. Joined names one by one."""
        return "".join(map(self._shown, _BETWEEN.split(name)))

    def _shown(self, name: str) -> str:
        module = self.modules.get(name) or self.modules.get(name.removesuffix(NARROW))
        return f"{name} ({module})" if module else name
