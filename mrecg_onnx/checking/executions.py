"""The executions that are compared: the float network, the simulation, the file as written and at its runtime's default level."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import Tensor

from mrecg_onnx.checking.outputs import Arrays
from mrecg_onnx.checking.tracing import Run
from mrecg_onnx.converters.save import openable
from mrecg_onnx.machine import give_back
from mrecg_onnx.network import Simulation, forward_batches
from mrecg_onnx.progress import tell
from mrecg_onnx.running import Level, installed, open_session, open_with, run_padded
from mrecg_onnx.targets import Target

__all__ = ["default_runtime", "onnx_runtime", "run_at_default", "run_file", "run_simulation"]

#: Images that a runtime other than ONNX Runtime is given; qonnx goes from node to node in Python.
RUNTIME_IMAGES, FEW_IMAGES = 64, 8


def run_simulation(simulation: Simulation, data: Mapping[str, Tensor], batch_size: int) -> tuple[Arrays, Arrays]:
    """Outputs of the float network and of the simulation, ``batch_size`` images at a time."""
    parts: tuple[dict[str, list[npt.NDArray[np.generic]]], ...] = ({}, {})
    weight = simulation.weight_hook()
    done, count = 0, len(next(iter(data.values())))
    for batch in forward_batches(data, batch_size, simulation.network.device):
        with torch.no_grad():
            made = simulation.network.run(batch), simulation.run(batch, weight=weight)
        for part, outputs in zip(parts, made, strict=True):
            for name, value in outputs.items():
                part.setdefault(name, []).append(value.cpu().numpy())
        done += len(next(iter(batch.values())))
        tell(done, count, "images in the simulation")
    floating, simulated = ({name: np.concatenate(rows) for name, rows in part.items()} for part in parts)
    return floating, simulated


def run_file(model: onnx.ModelProto, level: Level, data: Mapping[str, Tensor], batch_size: int) -> Arrays:
    """Outputs of a file in ONNX Runtime at ``level``, ``batch_size`` images at a time."""
    session = _opened(model, level)
    parts: dict[str, list[npt.NDArray[np.generic]]] = {}
    count = len(next(iter(data.values())))
    for start in range(0, count, batch_size):
        feeds = {name: x[start : start + batch_size].numpy() for name, x in data.items()}
        for name, value in run_padded(session, feeds).items():
            parts.setdefault(name, []).append(value)
        tell(min(count, start + batch_size), count, "images in the file")
    del session
    give_back()  # its arena: what comes next needs the room
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def _opened(model: onnx.ModelProto, level: Level) -> ort.InferenceSession:
    """On as many threads as torch has here: more would wait for each other on a machine that gives no more."""
    with openable(model) as source:
        return open_session(source, level=level, threads=torch.get_num_threads())


def run_at_default(
    written: onnx.ModelProto,
    target: Target | None,
    data: Mapping[str, Tensor],
    batch_size: int,
    file: onnx.ModelProto | None = None,
) -> tuple[Arrays, str, list[str]]:
    """Outputs of the file at the default level of its runtime, of ONNX Runtime where that is not installed; its name; a note.

    ``written`` is what ONNX Runtime runs of ``file``, where that is another.
    """
    notes = []
    if target is not None and target.runtime != "onnxruntime":
        count = FEW_IMAGES if target.runtime == "qonnx" else RUNTIME_IMAGES
        few = {n: x[:count].numpy() for n, x in data.items()}
        opened = open_with(target, file or written, few, written=written)
        notes.append(f"target {target.name}: {opened.line()}")
        if opened.outputs:
            return opened.outputs, opened.runtime, notes
    return run_file(written, "all", data, batch_size), "ONNX Runtime", notes


def onnx_runtime(level: Level) -> Run:
    """ONNX Runtime, for one model after the other; what runs the same model again finds it open."""
    last: list[tuple[onnx.ModelProto, ort.InferenceSession]] = []

    def run(model: onnx.ModelProto, data: Arrays) -> Arrays:
        if not last or last[0][0] is not model:
            last[:] = [(model, _opened(model, level))]
        return run_padded(last[0][1], data, several=True)

    return run


def default_runtime(target: Target | None) -> Run:
    """The runtime of ``target`` where it has one of its own that is installed, else ONNX Runtime at its default level."""
    if target is None or target.runtime == "onnxruntime" or not installed(target.runtime):
        return onnx_runtime("all")
    return lambda model, data: open_with(target, model, data).outputs
