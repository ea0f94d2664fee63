"""What would be done to a model, and which of its tensors suffer most from it, without training anything."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import onnx_ir as ir

from mrecg_onnx.calibrating import Sensitivity, measure_sensitivity
from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.load import standard_opset
from mrecg_onnx.converters.made import Made, model_of
from mrecg_onnx.converters.results import Result
from mrecg_onnx.converters.text import first_of
from mrecg_onnx.data import Data, Preprocess
from mrecg_onnx.inspecting.finished import FinishedFile, inspect_result, is_result
from mrecg_onnx.machine import Run, byte_size, full_precision
from mrecg_onnx.planning import fallbacks, load_planned, told_cut
from mrecg_onnx.preparation import calibrate, prepare
from mrecg_onnx.progress import Clock
from mrecg_onnx.rewriting import Equalized
from mrecg_onnx.running import describe, size_bytes
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import onnx

    from mrecg_onnx.planning import Plan, Tail
    from mrecg_onnx.progress import Report

__all__ = ["Inspection", "Measured", "SourceInfo", "TensorInfo", "inspect"]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of the graph; a free size is its symbol, or None where it has none."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str


@dataclass(frozen=True)
class SourceInfo:
    """The float model.

    Attributes:
        name: its path, or "the model".
        size_bytes: the file with its external data.
        opset: version of the standard domain.
        producer: what wrote the file, "" if it does not say.
        nodes: nodes left after constants are folded and BatchNormalization is in the Conv in front.
        parameters: numbers in its float constants after that.
        inputs: what it is fed.
        outputs: what it gives.
    """

    name: str
    size_bytes: int
    opset: int
    producer: str
    nodes: int
    parameters: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Measured:
    """What calibration images tell, forward only.

    Attributes:
        images: how many were used.
        skipped: images that could not be read, with the reason.
        preprocess: what was done to them; None for arrays.
        parity: relative error between ONNX Runtime and torch on the float model.
        streams: decision for every stream of the equalization, empty with ``equalize="off"``.
        sensitivities: activation quantizers by how much each hurts alone, after equalization; the worst first.
        origin: how the images were made, None where they were given.
    """

    images: int
    skipped: tuple[str, ...]
    preprocess: Preprocess | None
    parity: float
    streams: tuple[Equalized, ...]
    sensitivities: tuple[Sensitivity, ...]
    origin: dict[str, Any] | None = None


@dataclass(frozen=True, repr=False)
class Inspection(Result):
    """What :func:`inspect` found.

    Attributes:
        source: the float model.
        settings: what the plan was made for.
        plan: the plan before any training; merges of the scheme "loss" are not in it, a probing run decides them.
        measured: None without calibration images.
        fallbacks: nodes that ONNX Runtime runs inside the torch module, by name, and why.
        cut: where the model is cut, and why; "" where all of it has a row for each image.
    """

    source: SourceInfo
    settings: Settings
    plan: Plan
    measured: Measured | None = None
    fallbacks: dict[str, str] = field(default_factory=dict)
    cut: str = ""

    @property
    def merges_pending(self) -> bool:
        """True where ``quantize`` would merge units after its probing run."""
        return self.settings.method == "mrecg" and self.settings.scheme == "loss"

    def __str__(self) -> str:
        """The model, what would be quantized, in which units, and what stays in float."""
        source, plan = self.source, self.plan
        floats = [layer.name for layer in plan.layers if layer.excluded]
        lines = [
            (
                f"{source.name}: {source.parameters:,} parameters in {source.nodes} nodes, {byte_size(source.size_bytes)}, "
                f"opset {source.opset}"
            ),
            (
                f"{self.settings.widths} by {self.settings.method}: {len(plan.quantized_layers)} layers, "
                f"{len(plan.activations)} activations, {len(plan.merged_units())} units"
            ),
        ]
        lines += [f"in float: {first_of(floats, 5)}"] if floats else []
        lines += [f"cut: {self.cut}"] if self.cut else []
        if self.measured is not None:
            lines.append(
                f"torch agrees with ONNX Runtime within {self.measured.parity:.1g} on {self.measured.images} images"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary."""
        measured = None
        if self.measured is not None:
            preprocess = self.measured.preprocess
            measured = dataclasses.asdict(self.measured) | {"preprocess": preprocess and preprocess.to_json()}
        return {
            "source": dataclasses.asdict(self.source),
            "settings": self.settings.to_json(),
            "plan": self.plan.to_json(),
            "merges_pending": self.merges_pending,
            "fallbacks": self.fallbacks,
            "cut": self.cut,
            "measured": measured,
        }


@overload
def inspect(
    model: onnx.ModelProto | str | Path | Made,
    calib: Data,
    settings: Settings | None = None,
    *,
    progress: Report | None = None,
) -> Inspection: ...
@overload
def inspect(
    model: onnx.ModelProto | str | Path | Made,
    calib: None = None,
    settings: Settings | None = None,
    *,
    progress: Report | None = None,
) -> Inspection | FinishedFile: ...
@takes(settings=Settings, preprocess=Preprocess)
@full_precision()
def inspect(
    model: onnx.ModelProto | str | Path | Made,
    calib: Data | None = None,
    settings: Settings | None = None,
    *,
    progress: Report | None = None,
) -> Inspection | FinishedFile:
    """Plan the quantization of a float model; with images also measure each activation quantizer alone.

    Of a file that :func:`mrecg_onnx.quantize` made, or of what it returned, given alone: what that says of itself, as
    :func:`mrecg_onnx.inspect_result` reads it.

    Args:
        model: the float model; not changed.
        calib: as for :func:`mrecg_onnx.quantize`. Without it nothing is run.
        settings: every choice, as for :func:`mrecg_onnx.quantize`.
        progress: called as the work proceeds (:class:`mrecg_onnx.Progress`).

    Returns:
        The plan with everything found on the way; a :class:`mrecg_onnx.FinishedFile` of a result.

    Raises:
        MrecgError: as :func:`mrecg_onnx.quantize`; a result that comes with ``calib`` or ``settings`` is quantized already.
    """
    model = model_of(model)
    if calib is None and settings is None and is_result(model):
        return inspect_result(model)
    settings = settings or Settings()
    clock = Clock(progress)
    if calib is None:
        with clock.stage("load"):
            original, graph, plan, tail = load_planned(model, settings)
            source, cut = _source(model, original, graph, tail), told_cut(graph.metadata_props)
            return Inspection(source, settings, plan, fallbacks=fallbacks(graph), cut=cut)
    ready = prepare(model, calib, settings, Run(clock=clock))
    with clock.stage("calibrate"):
        simulation = calibrate(ready.network, ready.plan, ready.data, ready.settings, ready.ranging)
    with clock.stage("sensitivity"):
        found = measure_sensitivity(simulation, ready.data)
    measured = Measured(
        images=len(next(iter(ready.data.values()))),
        skipped=tuple(f"{path} ({reason})" for path, reason in ready.dataset.skipped),
        preprocess=ready.dataset.preprocess,
        parity=ready.parity,
        streams=tuple(ready.equalized),
        sensitivities=tuple(found),
        origin=ready.dataset.origin,
    )
    source = _source(model, ready.original, ready.graph, ready.tail)
    cut = told_cut(ready.graph.metadata_props)
    return Inspection(source, ready.settings, ready.plan, measured, fallbacks(ready.graph), cut)


def _source(
    model: onnx.ModelProto | str | Path, original: onnx.ModelProto, graph: ir.Model, tail: Tail | None
) -> SourceInfo:
    """Of the whole model: what is planned, and what is left behind it as it is."""
    parts = [graph] if tail is None else [graph, ir.from_proto(tail.model)]
    constants = [value.const_value for part in parts for value in part.graph.initializers.values()]
    inputs, outputs = (graph.graph.inputs, graph.graph.outputs)
    if tail is not None:
        inputs, outputs = ([ir.from_proto(value) for value in values] for values in (tail.inputs, tail.outputs))
    return SourceInfo(
        name=describe(model),
        size_bytes=size_bytes(model),
        opset=standard_opset(original) or 0,
        producer=f"{original.producer_name} {original.producer_version}".strip(),
        nodes=sum(len(part.graph) for part in parts),
        parameters=sum(math.prod(c.shape.numpy()) for c in constants if c is not None and c.dtype.is_floating_point()),
        inputs=_tensors(inputs),
        outputs=_tensors(outputs),
    )


def _tensors(values: Iterable[ir.Value]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            value.name or "",
            tuple(size if isinstance(size, int) else size.value for size in value.shape or ()),
            value.dtype.name.lower() if value.dtype is not None else "",
        )
        for value in values
    )
