"""What would be done to a model, and which of its tensors suffer most from it, without training anything."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mrecg_onnx.converters import check_parity, load_model, normalize, to_torch
from mrecg_onnx.converters.load import standard_opset
from mrecg_onnx.equalization import Equalized, apply_scale, choose_scales, find_streams
from mrecg_onnx.images import Dataset, Preprocess, open_calibration
from mrecg_onnx.network import Network
from mrecg_onnx.quantization import (
    EQUALIZED_TOLERANCE,
    PARITY_IMAGES,
    Progress,
    calibrate,
    graph_inputs,
    make_plan,
    pick_device,
)
from mrecg_onnx.runtime import describe
from mrecg_onnx.sensitivity import Sensitivity, measure_sensitivity
from mrecg_onnx.settings import Settings
from mrecg_onnx.validation import size_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import onnx
    import onnx_ir as ir

    from mrecg_onnx.plan import Plan
    from mrecg_onnx.quantization import Report

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
    """

    images: int
    skipped: tuple[str, ...]
    preprocess: Preprocess | None
    parity: float
    streams: tuple[Equalized, ...]
    sensitivities: tuple[Sensitivity, ...]


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect` found.

    Attributes:
        source: the float model.
        settings: what the plan was made for.
        plan: the plan before any training; merges of the scheme "loss" are not in it, a probing run decides them.
        measured: None without calibration images.
    """

    source: SourceInfo
    settings: Settings
    plan: Plan
    measured: Measured | None = None

    @property
    def merges_pending(self) -> bool:
        """True where ``quantize`` would merge units after its probing run."""
        return self.settings.method == "mrecg" and self.settings.scheme == "loss"

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
            "measured": measured,
        }


def inspect(
    model: onnx.ModelProto | str | Path,
    settings: Settings | None = None,
    calib: str | Path | Dataset | None = None,
    report: Report | None = None,
) -> Inspection:
    """Plan the quantization of a float model; with images also measure each activation quantizer alone.

    Args:
        model: the float model; not changed.
        settings: every choice, as for :func:`mrecg_onnx.quantize`.
        calib: folder of images, ``.npy``/``.npz`` file of ready inputs, or an open data set. Without it nothing is run.
        report: called as the work proceeds.

    Returns:
        The plan with everything found on the way.

    Raises:
        MrecgError: as :func:`mrecg_onnx.quantize`.
    """
    settings = settings or Settings()
    _tell(report, Progress("load"))
    original = load_model(model)
    graph = normalize(original)
    source = _source(model, original, graph)
    plan = make_plan(graph, settings)
    if calib is None:
        return Inspection(source, settings, plan)
    dataset = (
        calib
        if isinstance(calib, Dataset)
        else open_calibration(
            calib, graph_inputs(graph), settings.preprocess, samples=settings.samples, seed=settings.seed
        )
    )
    settings = dataclasses.replace(settings, preprocess=dataset.preprocess or settings.preprocess)
    found = Inspection(source, settings, plan)
    return dataclasses.replace(found, measured=_measure(found, original, graph, dataset, report))


def _measure(
    planned: Inspection, original: onnx.ModelProto, graph: ir.Model, dataset: Dataset, report: Report | None
) -> Measured:
    """Equalize as ``quantize`` does, search ranges and switch on one quantizer after the other; changes ``graph``."""
    plan, settings = planned.plan, planned.settings
    device = pick_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    arrays = dataset.load()
    data = {name: torch.from_numpy(array) for name, array in arrays.items()}
    few = {name: array[:PARITY_IMAGES] for name, array in arrays.items()}
    module = to_torch(graph)
    parity = check_parity(original, module, few)
    network = Network(module, device)
    streams: list[Equalized] = []
    if settings.equalize == "auto" and plan.activations:
        _tell(report, Progress("equalize"))
        streams = choose_scales(network, find_streams(graph), plan.activations, data)
        for entry in (e for e in streams if e.alpha):
            apply_scale(graph, entry.stream, entry.scale)
        module = to_torch(graph)
        check_parity(original, module, few, EQUALIZED_TOLERANCE)
        network = Network(module, device)
    _tell(report, Progress("calibrate"))
    simulation = calibrate(network, plan, data, settings)
    _tell(report, Progress("sensitivity"))
    found = measure_sensitivity(
        simulation, data, lambda done, total: _tell(report, Progress("sensitivity", done=done, total=total))
    )
    return Measured(
        images=len(next(iter(arrays.values()))),
        skipped=tuple(f"{path} ({reason})" for path, reason in dataset.skipped),
        preprocess=dataset.preprocess,
        parity=parity,
        streams=tuple(streams),
        sensitivities=tuple(found),
    )


def _source(model: onnx.ModelProto | str | Path, original: onnx.ModelProto, graph: ir.Model) -> SourceInfo:
    constants = [value.const_value for value in graph.graph.initializers.values()]
    return SourceInfo(
        name=describe(model),
        size_bytes=size_bytes(model),
        opset=standard_opset(original) or 0,
        producer=f"{original.producer_name} {original.producer_version}".strip(),
        nodes=len(graph.graph),
        parameters=sum(math.prod(c.shape.numpy()) for c in constants if c is not None and c.dtype.is_floating_point()),
        inputs=_tensors(graph.graph.inputs),
        outputs=_tensors(graph.graph.outputs),
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


def _tell(report: Report | None, progress: Progress) -> None:
    if report is not None:
        report(progress)
