"""Names of nodes as a user knows them: those that an exporter made up, with the module that torch wrote beside them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from mrecg_onnx.converters.modules import module_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import onnx

__all__ = ["Names", "module_names"]

#: What joins the names of units.
_BETWEEN = re.compile(r"( \+ | \.{2,3} |, )")
#: Names of a list that are shown.
SHOWN = 8


def module_names(model: onnx.ModelProto) -> dict[str, str]:
    """Modules by the names of nodes, and of what they make, that do not say them."""
    found: dict[str, str] = {}
    for node in model.graph.node:
        module = module_of(node.input, {entry.key: entry.value for entry in node.metadata_props})
        for name in (node.name, *node.output):
            if (
                module and name and module not in name and not name.startswith("/")
            ):  # paths of modules, by older exporters
                found[name] = module
    return found


class Names:
    """Shows the names of one model; the file is read when the first name is asked for."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._graph: onnx.ModelProto | None = None
        self._modules: dict[str, str] = {}

    def _read(self) -> onnx.ModelProto:
        if self._graph is None:
            from mrecg_onnx.runtimes import read_graph

            self._graph = read_graph(self._model)
            self._modules = module_names(self._graph)
        return self._graph

    def __call__(self, name: str) -> str:
        """``node_conv2d_1 (layer1.0.conv1)``; a name that says its module, or has none, as it is. Joined names one by one."""
        self._read()
        return "".join(
            f"{part} ({self._modules[part]})" if part in self._modules else part for part in _BETWEEN.split(name)
        )

    def precision(self) -> str:
        """What its weights are: "FP32", or "FP16" where most of their bytes are of half precision."""
        import onnx

        counted: dict[int, int] = {}
        for tensor in self._read().graph.initializer:
            counted[tensor.data_type] = counted.get(tensor.data_type, 0) + math.prod(tensor.dims)
        half, single = (counted.get(kind, 0) for kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT))
        return "FP16" if half > single else "FP32"

    def some(self, names: Sequence[str]) -> str:
        """The first of ``names``, and how many more there are."""
        more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
        return ", ".join([*map(self, names[:SHOWN]), *more])

    def matched(self, option: str, patterns: Iterable[str], layers: Sequence[str], *, only_layers: bool) -> list[str]:
        """A line for each pattern of ``option``: how many nodes it matched, and which."""
        graph = self._read()
        nodes = list(layers) if only_layers else list(dict.fromkeys([*layers, *(n.name for n in graph.graph.node)]))
        lines = []
        for pattern in patterns:
            # As mrecg_onnx.planning does it: modules where no name matches.
            hits = [name for name in nodes if re.search(pattern, name)]
            hits = hits or [name for name in nodes if re.search(pattern, self._modules.get(name, ""))]
            lines.append(f"{option} '{pattern}' matched {len(hits)}: {self.some(hits)}")
        return lines
