"""The pipeline up to a point, for tests that look at one room at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from mrecg_onnx.converters import normalize, to_torch
from mrecg_onnx.network.steps import Network
from mrecg_onnx.planning import make_plan
from mrecg_onnx.preparation import calibrate
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from torch import Tensor

    from mrecg_onnx.network.simulation import Simulation
    from mrecg_onnx.planning.plan import Plan

__all__ = ["Stage", "feeds", "network_of", "planned", "saved", "simulated", "tensors"]


@dataclass
class Stage:
    """A normalized graph with everything made from it so far."""

    graph: ir.Model
    plan: Plan
    network: Network
    data: dict[str, Tensor]
    simulation: Simulation


def planned(model: onnx.ModelProto | ir.Model, **settings: Any) -> tuple[ir.Model, Plan]:
    """The normalized graph of ``model`` and the plan for it under ``settings``."""
    graph = model if isinstance(model, ir.Model) else normalize(model)
    return graph, make_plan(graph, Settings(**settings))


def feeds(model: onnx.ModelProto, count: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal random inputs by name, ``count`` samples of each; float32."""
    random = np.random.default_rng(seed)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim[1:]] for v in model.graph.input}
    return {name: random.standard_normal([count, *shape]).astype(np.float32) for name, shape in shapes.items()}


def tensors(model: onnx.ModelProto, count: int = 32, seed: int = 0) -> dict[str, Tensor]:
    """:func:`feeds` as torch tensors."""
    return {name: torch.from_numpy(x) for name, x in feeds(model, count, seed).items()}


def network_of(model: onnx.ModelProto | ir.Model) -> Network:
    """The float network of a model."""
    return Network(to_torch(model if isinstance(model, ir.Model) else normalize(model)))


def simulated(model: onnx.ModelProto | ir.Model, data: dict[str, Tensor] | None = None, **settings: Any) -> Stage:
    """Plan, convert and calibrate ``model`` with rounding to nearest."""
    graph, plan = planned(model, **settings)
    network = network_of(graph)
    if data is None:
        assert not isinstance(model, ir.Model), "a graph in memory comes with its data"
        data = tensors(model)
    return Stage(graph, plan, network, data, calibrate(network, plan, data, Settings(**settings)))


def saved(path: Path, **arrays: np.ndarray) -> Path:
    """``path`` with ``arrays`` by name in it, as calibration data lie on the disk."""
    np.savez(path, **arrays)
    return path
