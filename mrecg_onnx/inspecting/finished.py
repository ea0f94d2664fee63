"""What a finished file says of itself: its widths, form, settings and needs are all in its metadata and its graph."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx

from mrecg_onnx.converters import load_model
from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.load import standard_opset
from mrecg_onnx.converters.made import Made, model_of
from mrecg_onnx.converters.metadata_keys import (
    CALIBRATION_KEY,
    CONTAINER_KEY,
    JUDGED_KEY,
    PREPROCESS_KEY,
    PROTECTED_KEY,
    SETTINGS_KEY,
    SOURCE_KEY,
    UNITS_KEY,
    VERSION_KEY,
    not_ours,
)
from mrecg_onnx.converters.module_names import module_names
from mrecg_onnx.converters.results import Result
from mrecg_onnx.converters.text import bounded, first_of
from mrecg_onnx.machine import byte_size, figure
from mrecg_onnx.planning import told_cut
from mrecg_onnx.running import describe, read_graph, size_bytes
from mrecg_onnx.targets import requirements, stored_note, stored_requirements
from mrecg_onnx.validating import int8_form, layers_of, preprocess_of, stored_bits
from mrecg_onnx.writing import target_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mrecg_onnx.data import Preprocess
    from mrecg_onnx.targets import Requirement
    from mrecg_onnx.validating import WrittenLayer

__all__ = ["FinishedFile", "inspect_result", "is_result"]

#: Largest number of an entry that is shown: anybody may have written it.
_MOST = 1e30
#: Bits of a weight that stayed in float.
FLOAT_BITS = 32


@dataclass(frozen=True, repr=False)
class FinishedFile(Result):
    """A file of :func:`mrecg_onnx.quantize`, as it describes itself.

    Attributes:
        name: its path, or "the model".
        size_bytes: with external data.
        opset: version of the standard domain.
        version: of this package, that made it.
        target: where it is meant to run.
        container: how its codes are stored.
        source_sha256: of the float model's file; "" where that was no file.
        settings: what it was made with, as stored.
        preprocess: how its images become inputs; None for one that was calibrated on arrays.
        origin: how its calibration images were made; None where they were given.
        needs: versions of runtimes that it needs.
        layers: weighted layers in the order of the graph.
        activations: width of every quantized activation.
        units: layers that were learned together, in order.
        protected: activations raised to 8 bits.
        modules: of torch, by the names of nodes and tensors that do not say them.
        cut: where its model was cut, and why; "" where it was not.
        judged: with ``max_drop`` what the widths were searched by: ``name`` of the metric, ``percent``, ``lower_is_better``,
            what the ``fp32`` model and the ``quantized`` one were worth, and on how many ``images``.
    """

    name: str
    size_bytes: int
    opset: int
    version: str
    target: str
    container: str
    source_sha256: str
    settings: Mapping[str, Any]
    preprocess: Preprocess | None
    origin: Mapping[str, Any] | None
    needs: tuple[Requirement, ...]
    layers: tuple[WrittenLayer, ...]
    activations: Mapping[str, int]
    units: tuple[tuple[str, ...], ...]
    protected: tuple[str, ...]
    cut: str = ""
    modules: Mapping[str, str] = field(default_factory=dict)
    judged: Mapping[str, Any] | None = None

    @property
    def worth(self) -> str:
        """What it was worth where its widths were searched by that, for people; "" where they were not."""
        found = self.judged or {}
        values: list[Any] = [found.get(name) for name in ("fp32", "quantized")]
        if not all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= _MOST for x in values):
            return ""
        before, after = (f"{x:.2%}" if found.get("percent") is True else figure(x, values) for x in values)
        count = found.get("images")
        images = f" on {count} images" if isinstance(count, int) and 0 <= count <= _MOST else ""
        less = " (less is better)" if found.get("lower_is_better") is True else ""
        name = bounded(str(found.get("name", "?")), 60)
        return f"{name}{less} {after}, FP32 {before}{images}, by which the widths were searched"

    @property
    def widths(self) -> str:
        """``W4A4`` or ``mixed``, as the settings say."""
        settings = self.settings
        mixed = any(settings.get(name) is not None for name in ("size_budget", "avg_wbits", "max_drop"))
        weights = "mixed " if mixed or settings.get("allocate") == "milp" else f"W{settings.get('wbits', '?')}"
        return f"{weights}A{settings.get('abits', '?')}"

    def __str__(self) -> str:
        """Widths, method, target, container, size, what it is worth where that is known, and what it needs."""
        settings = self.settings
        floats = [layer.name for layer in self.layers if layer.wbits == FLOAT_BITS]
        count = f"{len(self.layers) - len(floats)} of {len(self.layers)} layers"
        lines = [
            (
                f"{self.name}: {self.widths} by {bounded(str(settings.get('method', '?')), 40)} for {self.target}, container "
                f"{self.container}, {byte_size(self.size_bytes)}"
            ),
            f"{count} and {len(self.activations)} activations quantized, made by version {self.version}",
        ]
        lines += [f"in float: {first_of([bounded(name, 60) for name in floats], 5)}"] if floats else []
        lines += [f"worth: {self.worth}"] if self.worth else []
        lines += [f"cut: {self.cut}"] if self.cut else []
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        names = ("name", "op", "shape", "groups", "params", "wbits", "abits", "in_float")
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return plain | {
            "preprocess": self.preprocess and self.preprocess.to_json(),
            "needs": [dataclasses.asdict(row) for row in self.needs],
            "layers": [{name: getattr(layer, name) for name in names} for layer in self.layers],
        }


def is_result(model: onnx.ModelProto | str | Path) -> bool:
    """Whether a model says that :func:`mrecg_onnx.quantize` made it; False for what cannot be read."""
    try:
        found = read_graph(model)
    except ModelError:
        return False
    return any(entry.key == VERSION_KEY for entry in found.metadata_props)


@takes()
def inspect_result(model: onnx.ModelProto | str | Path | Made) -> FinishedFile:
    """Read what a finished file, or what :func:`mrecg_onnx.quantize` returned, says of itself; nothing is run.

    Raises:
        ModelError: it cannot be read, :func:`mrecg_onnx.quantize` did not make it, or its metadata make no sense.
    """
    model = model_of(model)
    where = describe(model)
    read = load_model(model)
    metadata = {entry.key: entry.value for entry in read.metadata_props}
    if VERSION_KEY not in metadata:
        raise ModelError(not_ours(where))
    layers = tuple(layers_of(int8_form(read, where), where))
    weights = {layer.weight for layer in layers}
    return FinishedFile(
        name=where,
        size_bytes=size_bytes(model),
        opset=standard_opset(read) or 0,
        version=metadata[VERSION_KEY],
        target=target_of(read, where),
        container=str(stored_note(metadata, CONTAINER_KEY, where).get("name", "int8")),
        source_sha256=metadata.get(SOURCE_KEY, ""),
        settings=_entry(metadata, SETTINGS_KEY, dict, where),
        preprocess=preprocess_of(metadata, where) if PREPROCESS_KEY in metadata else None,
        origin=_entry(metadata, CALIBRATION_KEY, dict, where) or None,
        needs=stored_requirements(metadata) or requirements(read),
        layers=layers,
        activations={name: bits for name, bits in stored_bits(metadata).items() if name not in weights},
        units=tuple(_names(unit, where) for unit in _entry(metadata, UNITS_KEY, list, where)),
        protected=_names(_entry(metadata, PROTECTED_KEY, list, where), where),
        modules=module_names(read, {layer.name: layer.weight for layer in layers}),
        cut=told_cut(metadata),
        judged=_entry(metadata, JUDGED_KEY, dict, where) or None,
    )


def _entry(metadata: Mapping[str, str], key: str, kind: type, where: str) -> Any:
    """An entry of the metadata; empty where there is none.

    Raises:
        ModelError: it is something else.
    """
    if key not in metadata:
        return kind()
    try:
        found = json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: its metadata entry {key} cannot be read") from error
    if not isinstance(found, kind):
        raise ModelError(f"{where}: its metadata entry {key} cannot be read")
    return found


def _names(found: Any, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ModelError(f"{where}: its metadata name layers in a form that cannot be read")
    return tuple(found)
