"""Names of a model's nodes on the screen, and which of them a pattern means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import onnx

    from mrecg_onnx.converters.module_names import NodeNames

__all__ = ["SHOWN", "Names"]

#: Names of a list that are shown.
SHOWN = 8


class Names:
    """Shows the names of one model with their modules; the file is read when the first name is asked for."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._graph: onnx.ModelProto | None = None
        self._names: NodeNames | None = None

    def _read(self) -> onnx.ModelProto:
        if self._graph is None:
            from mrecg_onnx.running import read_graph

            self._graph = read_graph(self._model)
        return self._graph

    def __call__(self, name: str) -> str:
        """``node_conv2d_1 (layer1.0.conv1)``; a name that says its module, or has none, as it is. Joined names one by one."""
        if self._names is None:
            from mrecg_onnx.converters.module_names import NodeNames

            self._names = NodeNames(self._modules())
        return self._names(name)

    def _modules(self) -> dict[str, str]:
        from mrecg_onnx.converters.module_names import module_names

        return module_names(self._read())

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
        from mrecg_onnx.converters.module_names import names_meant

        graph, modules = self._read(), self._modules()
        nodes = list(layers) if only_layers else list(dict.fromkeys([*layers, *(n.name for n in graph.graph.node)]))
        lines = []
        for pattern in patterns:
            hits = names_meant(pattern, nodes, modules)
            lines.append(f"{option} '{pattern}' matched {len(hits)}: {self.some(hits)}")
        return lines
