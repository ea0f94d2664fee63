"""Two small networks whose rounding the tests learn, and what they ask of the result."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from helpers.architectures import Graph
from helpers.stages import feeds
from onnx import numpy_helper

from mrecg_onnx.learning.prefix import Inputs, Prefix
from mrecg_onnx.machine.cache import Pool, Store
from mrecg_onnx.measures import sqnr_db
from mrecg_onnx.quantization import QuantizationResult, quantize
from mrecg_onnx.running import open_session, run_padded
from mrecg_onnx.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.stages import Stage

__all__ = ["activation_scales", "codes", "distance", "prefix_of", "results", "small", "tiny"]


@lru_cache
def _small() -> bytes:
    """Stem, a residual block, a strided layer and a classifier on 4 x 12 x 12."""
    g = Graph(seed=5)
    x = g.relu(g.conv(g.input(4, size=12), 4, 8, "stem"), "stem_relu")
    y = g.relu(g.conv(x, 8, 12, "a1"), "a1_relu")
    x = g.relu(g.op("Add", [g.conv(y, 12, 8, "a2"), x], "a_add"), "a_out")
    x = g.relu(g.conv(x, 8, 16, "b1", stride=2), "b1_relu")
    g.classifier(x, 16)
    return g.model().SerializeToString()


def small() -> onnx.ModelProto:
    """A network of few layers."""
    return onnx.load_from_string(_small())


@lru_cache
def _tiny() -> bytes:
    """Stem, two residual blocks (the second strided, with a depthwise layer), classifier, on 4 x 16 x 16."""
    g = Graph(seed=3)
    x = g.relu(g.conv(g.input(4), 4, 8, "stem"), "stem_relu")
    y = g.relu(g.conv(x, 8, 8, "a1"), "a1_relu")
    x = g.relu(g.op("Add", [g.conv(y, 8, 8, "a2"), x], "a_add"), "a_out")
    y = g.clip(g.conv(x, 8, 16, "b1", kernel=1), "b1_clip")
    y = g.clip(g.conv(y, 16, 16, "b2", stride=2, groups=16), "b2_clip")
    y = g.conv(y, 16, 8, "b3", kernel=1)
    x = g.op("Add", [y, g.conv(x, 8, 8, "b_short", kernel=1, stride=2)], "b_add")
    x = g.relu(g.conv(x, 8, 16, "c1", kernel=1), "c1_relu")
    g.classifier(x, 16)
    return g.model().SerializeToString()


def tiny() -> onnx.ModelProto:
    """A network of more kinds of layers."""
    return onnx.load_from_string(_tiny())


def results(folder: Path) -> Callable[..., QuantizationResult]:
    """Results by settings, each made once; short runs at W2A4 unless told otherwise."""
    np.savez(folder / "calib.npz", **feeds(small(), 64))

    @cache
    def result(method: str, **more: Any) -> QuantizationResult:
        chosen = {"wbits": 2, "abits": 4, "iters": 80, "batch_size": 16, "equalize": "off"} | more
        return quantize(small(), folder / "calib.npz", Settings(method=method, **chosen))

    return result


def distance(model: onnx.ModelProto, network: Callable[[], onnx.ModelProto] = small) -> float:
    """Output SQNR against the float ``network`` on images that were not seen, in dB."""
    fed = feeds(network(), 64, seed=99)
    return sqnr_db(*(run_padded(open_session(m, level="off"), fed)["output"] for m in (network(), model)))


def _constants(result: QuantizationResult) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}


def codes(result: QuantizationResult) -> dict[str, np.ndarray]:
    """Integer weights by layer."""
    values = _constants(result)
    return {layer.name: values[f"{layer.weight}_quantized"].astype(int) for layer in result.plan.layers}


def activation_scales(result: QuantizationResult) -> dict[str, float]:
    """Scale of every activation quantizer."""
    values = _constants(result)
    return {entry.name: float(values[f"{entry.name}_scale"]) for entry in result.plan.activations}


def prefix_of(stage: Stage, *, quantize_activations: bool = True, **options: Any) -> Prefix:
    """The quantized prefix in front of a network's first unit."""
    grids = stage.simulation.activations if quantize_activations else {}
    inputs = Inputs(
        {n: Store.of(x) for n, x in stage.data.items()},
        {n: Store.of(x, grids.get(n)) for n, x in stage.data.items()},
        len(stage.data["input"]),
    )
    units = stage.plan.units
    return Prefix(stage.simulation, units, inputs, Pool(), quantize_activations=quantize_activations, **options)
