"""Where the error of a finished file arises: every layer's weights and output against the float model's, run as written.

Equalization rescales channels: a layer of the file then computes what the float model's layer does times a factor a channel.
Where the file's settings allow that, and factors of their own explain the channels much better than one for all does, each
channel of the float model is multiplied by the factor that fits best before it is compared: the error counts as the file's next
layers see it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from mrecg_onnx.converters import load_model, normalize
from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.metadata_keys import SETTINGS_KEY
from mrecg_onnx.converters.passes.gemm import split_matmul_bias
from mrecg_onnx.converters.save import openable
from mrecg_onnx.measures import OutputSums, add_sums, decibels
from mrecg_onnx.planning import outputs_without_rows
from mrecg_onnx.running import describe, fixed_batch, open_session, pad_batch, read_graph, run_outputs
from mrecg_onnx.validating.written_layers import WrittenLayer, int8_form, layers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnxruntime as ort

    from mrecg_onnx.data import Dataset
    from mrecg_onnx.running import Model

__all__ = ["LayerError", "LayerErrors", "float_form", "measure_layers", "with_outputs"]

Array = npt.NDArray[Any]
#: Images on which layers are compared at most, seconds that it takes, images at a time, and bytes of outputs held at once.
IMAGES, SECONDS, ROWS, HELD_BYTES = 64, 20.0, 8, 256 << 20
#: Bytes an image that a tensor of unknown sizes is taken for.
UNKNOWN_BYTES = 4 << 20
#: Channels were rescaled where factors of their own leave at most this share of the error that one factor for all leaves.
RESCALED = 0.7


@dataclass(frozen=True)
class LayerError:
    """One layer of a file against the float model's; ratios in dB, signal over error, None where there is no counterpart.

    Attributes:
        layer: as the file has it.
        weights_db: of the weights.
        reads_db: of what it reads.
        makes_db: of what it makes.
        rounds_db: of what the quantizer in front of it is given to what its own rounding and its bounds change; None for floats.
        rescaled: channels of the float model's output were multiplied by a factor each to be compared.
    """

    layer: WrittenLayer
    weights_db: float | None
    reads_db: float | None
    makes_db: float | None
    rounds_db: float | None
    rescaled: bool

    @property
    def added(self) -> float | None:
        """Error energy behind the layer over that in front of it, both relative to their signals; above 1 it arises here."""
        if self.reads_db is None or self.makes_db is None or not math.isfinite(self.reads_db - self.makes_db):
            return None
        return float(10 ** ((self.reads_db - self.makes_db) / 10))

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``json.dumps(allow_nan=False)`` takes."""
        finite = {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in (
                ("weights_db", self.weights_db),
                ("reads_db", self.reads_db),
                ("makes_db", self.makes_db),
                ("rounds_db", self.rounds_db),
            )
        }
        layer = self.layer
        described = {"name": layer.name, "op": layer.op, "wbits": layer.wbits, "abits": layer.abits}
        return {**described, **finite, "rescaled": self.rescaled, "in_float": layer.in_float}


@dataclass(frozen=True)
class LayerErrors:
    """Outcome of :func:`measure_layers`.

    Attributes:
        layers: in the order of the graph.
        images: on how many they were compared; the fewest, where time ran out.
        seconds: how long that took.
    """

    layers: tuple[LayerError, ...]
    images: int
    seconds: float

    @property
    def worst_first(self) -> tuple[LayerError, ...]:
        """By what they make; those without a counterpart come last."""
        return tuple(sorted(self.layers, key=lambda e: math.inf if e.makes_db is None else e.makes_db))


class _Sums:
    """Of a pair of tensors, by channel: enough to compare them under any factor a channel."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.f, self.ff, self.q, self.qq, self.fq = (np.zeros(channels) for _ in range(5))

    def add(self, plain: Array, quantized: Array, axis: int) -> None:
        f, q = (np.moveaxis(x.astype(np.float64), axis, 0).reshape(x.shape[axis], -1) for x in (plain, quantized))
        self.count += f.shape[1]
        self.f, self.q = self.f + f.sum(1), self.q + q.sum(1)
        self.ff, self.qq, self.fq = self.ff + (f * f).sum(1), self.qq + (q * q).sum(1), self.fq + (f * q).sum(1)

    def compared(self, *, rescaled: bool, shifted: bool) -> tuple[float, bool]:
        """The ratio in dB, and whether channels were multiplied by factors; the arguments say what may have been done to them."""
        n = max(1, self.count)
        f, q = (self.f, self.q) if shifted else (0 * self.f, 0 * self.q)
        ff, qq, fq = self.ff - f * f / n, self.qq - q * q / n, self.fq - f * q / n
        factor, changed = np.ones(len(ff)), False
        if rescaled:
            factor, changed = factors(ff, fq, float(qq.sum()))
        noise = float((qq - 2 * factor * fq + factor**2 * ff).sum())
        energy = float((factor**2 * self.ff).sum())
        signal = energy - float((factor * self.f).sum()) ** 2 / max(1, n * len(self.ff))
        return decibels(signal if signal > 1e-12 * energy else energy, max(noise, 0.0)), changed


def factors(
    ff: npt.NDArray[np.float64], fq: npt.NDArray[np.float64], qq: float
) -> tuple[npt.NDArray[np.float64], bool]:
    """The factor a channel that fits best, all 1 where they are no better than one for all.

    Args:
        ff: sums of squares of the float model's channels.
        fq: sums of their products with the file's.
        qq: sum of the file's squares over all channels.
    """
    own, one = _ratio(fq, ff), max(float(fq.sum()), 0.0) / max(float(ff.sum()), 1e-300)
    left, common = (qq - 2 * float((a * fq).sum()) + float((a * a * ff).sum()) for a in (own, np.full(len(ff), one)))
    changed = left < RESCALED * common
    return (own if changed else np.ones(len(ff))), changed


def float_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float model as the graph that quantized files are made of (BatchNormalization in its layers), as ONNX again."""
    graph = normalize(model, free=False)
    for node in list(graph.graph):
        if node.op_type == "MatMul" and len(node.inputs) > 2:
            split_matmul_bias(node)
    return ir.to_proto(graph)


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """``model`` with those tensors as its outputs, and nothing else."""
    grown = onnx.ModelProto()
    grown.CopyFrom(model)
    kinds = {v.name: v for v in (*model.graph.value_info, *model.graph.output, *model.graph.input)}
    del grown.graph.output[:]
    for name in names:
        known = kinds.get(name)
        kind = known.type.tensor_type.elem_type if known is not None else 0
        grown.graph.output.append(
            onnx.helper.make_tensor_value_info(name, kind or onnx.TensorProto.FLOAT, None)  # sizes are not needed
        )
    return grown


def measure_layers(
    fp32: Model,
    quantized: Model,
    data: Dataset,
    *,
    images: int = IMAGES,
    seconds: float = SECONDS,
    threads: int | None = None,
) -> LayerErrors:
    """Compare every layer of a quantized file with the same layer of its float model, both run as written.

    Args:
        fp32: the float model.
        quantized: the file; layers of another tool's count where nodes or tensors kept their names.
        data: inputs.
        images: at most so many of them, spread evenly.
        seconds: from which on no further image is taken; one batch is always run.
        threads: of ONNX Runtime.

    Raises:
        ModelError: a model cannot be opened or run.
        DataError: the data cannot be read.
    """
    began = time.monotonic()
    where = describe(quantized, "the quantized model")
    plain, file = float_form(_loaded(fp32)), int8_form(_loaded(quantized), where)
    settings, floats = _settings_of(file), {layer.name: layer for layer in layers_of(plain)}
    layers = [_behind_clamp(layer, floats.get(layer.name)) for layer in layers_of(file, where)]
    pairs = [(layer, floats[layer.name]) for layer in layers if layer.name in floats]
    rescaled, shifted = settings.get("equalize") != "off" and bool(settings), settings.get("absorb") == "auto"
    rescaled |= settings.get("method") == "aciq"
    sums: dict[tuple[str, str], _Sums] = {}
    rounded: dict[str, OutputSums] = {}
    groups = _groups(pairs, plain)
    least = images
    for number, group in enumerate(groups):
        until = began + seconds * (number + 1) / len(groups)
        least = min(least, _run(group, plain, file, data, sums, rounded, images, until, threads))
    found = []
    for layer in layers:
        own = floats.get(layer.name)
        ratios = []
        for side in ("reads", "makes"):
            held = sums.get((layer.name, side))
            ratios.append(held.compared(rescaled=rescaled, shifted=shifted) if held is not None else (None, False))
        weights = _weights_db(own, layer, rescaled=rescaled) if own is not None else None
        own_rounding = rounded[layer.fed.of].sqnr_db if layer.fed is not None and layer.fed.of in rounded else None
        found.append(LayerError(layer, weights, ratios[0][0], ratios[1][0], own_rounding, ratios[1][1]))
    return LayerErrors(tuple(found), least if pairs else 0, time.monotonic() - began)


def _behind_clamp(layer: WrittenLayer, own: WrittenLayer | None) -> WrittenLayer:
    """``layer`` whose quantizer knows of the clamp that became bounds of its codes, from the float model's ``own``."""
    if layer.fed is None or own is None:
        return layer
    return dataclasses.replace(layer, fed=layer.fed.behind(own.clamp))


def _loaded(model: Model) -> onnx.ModelProto:
    return load_model(read_graph(model) if isinstance(model, bytes) else model)


def _settings_of(model: onnx.ModelProto) -> Mapping[str, Any]:
    """What the file says that it was made with; nothing where it does not, or no sense."""
    stored = next((entry.value for entry in model.metadata_props if entry.key == SETTINGS_KEY), "{}")
    try:
        found = json.loads(stored)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _groups(
    pairs: list[tuple[WrittenLayer, WrittenLayer]], plain: onnx.ModelProto
) -> list[list[tuple[WrittenLayer, WrittenLayer]]]:
    """Layers whose tensors are held together: as many as the memory set aside takes."""
    sizes = {}
    for value in plain.graph.value_info:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        sizes[value.name] = 4 * math.prod(max(1, d) for d in dims[1:]) if all(dims[1:]) and dims else UNKNOWN_BYTES
    groups: list[list[tuple[WrittenLayer, WrittenLayer]]] = []
    room = 0
    for pair in pairs:
        needed = (
            2 * ROWS * sum(sizes.get(name, UNKNOWN_BYTES) for name in (pair[1].reads, pair[1].reads, pair[1].makes))
        )
        if not groups or needed > room:
            groups.append([])
            room = HELD_BYTES
        groups[-1].append(pair)
        room -= needed
    return groups


def _opened(model: onnx.ModelProto, names: list[str], threads: int | None) -> ort.InferenceSession:
    with openable(with_outputs(model, names)) as source:
        return open_session(source, level="off", threads=threads)


def _run(
    group: list[tuple[WrittenLayer, WrittenLayer]],
    plain: onnx.ModelProto,
    file: onnx.ModelProto,
    data: Dataset,
    sums: dict[tuple[str, str], _Sums],
    rounded: dict[str, OutputSums],
    images: int,
    until: float,
    threads: int | None,
) -> int:
    """Compare the tensors of a group; returns the images it took."""
    quantizers = {
        layer.fed.of: layer.fed for layer, _ in group if layer.fed is not None and layer.fed.of not in rounded
    }
    quantizers.pop("", None)
    names = [list(dict.fromkeys(n for pair in group for n in (pair[i].reads, pair[i].makes))) for i in (0, 1)]
    names[0] = list(dict.fromkeys([*names[0], *quantizers]))
    sessions = _opened(file, names[0], threads), _opened(plain, names[1], threads)
    rows = fixed_batch(sessions[0]) or fixed_batch(sessions[1]) or (1 if outputs_without_rows(plain) else ROWS)
    done = 0
    for feeds in data.spread(rows, images):
        count = len(next(iter(feeds.values())))
        if count < rows and fixed_batch(sessions[0]) is not None:
            feeds = {name: pad_batch(x, rows) for name, x in feeds.items()}  # noqa: PLW2901
        made = [run_outputs(session, feeds) for session in sessions]
        for name, codes in quantizers.items():
            given = codes.given(made[0][name])
            add_sums(rounded, {name: OutputSums.of(given, codes.rounded(given))})
        for layer, own in group:
            for side, axis in (("reads", _axis(layer)), ("makes", _axis(layer))):
                q, f = made[0].get(getattr(layer, side)), made[1].get(getattr(own, side))
                if q is None or f is None or q.shape != f.shape or f.dtype.kind != "f" or not q.ndim:
                    continue
                if not (np.isfinite(q).all() and np.isfinite(f).all()):
                    raise ModelError(f"layer '{layer.name}' gives NaN or Inf")
                axis = axis if axis < q.ndim else q.ndim - 1  # noqa: PLW2901
                held = sums.setdefault((layer.name, side), _Sums(q.shape[axis]))
                if len(held.ff) == q.shape[axis]:
                    held.add(f, q, axis)
        done += count
        if time.monotonic() > until:
            break
    return done


def _axis(layer: WrittenLayer) -> int:
    """Of the channels in what a layer reads and makes."""
    return 1 if layer.op in {"Conv", "ConvTranspose", "Gemm"} else -1


def _weights_db(own: WrittenLayer, layer: WrittenLayer, *, rescaled: bool) -> float | None:
    """Ratio of the float weights to the error of the file's, under a factor for each output and each input channel."""
    if own.shape != layer.shape:
        return None
    f, q = own.weights(), layer.weights()
    if rescaled:
        f = f * weight_factors(f, q, layer.op, layer.groups)
    return decibels(float(np.square(f).sum()), float(np.square(f - q).sum()))


def weight_factors(
    f: npt.NDArray[np.float64], q: npt.NDArray[np.float64], op: str, groups: int
) -> npt.NDArray[np.float64]:
    """The factors of output and input channels that turn ``f`` into ``q`` best, by alternating least squares; shape of ``f``.

    1 where they are all alike.
    """
    if op == "MatMul" and f.ndim > 2:
        return np.ones(f.shape)
    first = f.shape[0] // groups
    shape = (groups, first, f.shape[1], -1)
    one, other = f.reshape(shape), q.reshape(shape)
    ff, fq = np.square(one).sum(3), (one * other).sum(3)  # [groups, first, second]
    u, v = np.ones(ff.shape[:2]), np.ones((groups, ff.shape[2]))
    for _ in range(20):
        u = _ratio((fq * v[:, None]).sum(2), (ff * v[:, None] ** 2).sum(2))
        v = _ratio((fq * u[:, :, None]).sum(1), (ff * u[:, :, None] ** 2).sum(1))
    both = u[:, :, None] * v[:, None]
    for_all = max(float(fq.sum()), 0.0) / max(float(ff.sum()), 1e-300)
    left, common = (float(np.square(other - a * one).sum()) for a in (both[..., None], for_all))
    if not left < RESCALED * common:
        return np.ones(f.shape)
    return np.broadcast_to(both[..., None], one.shape).reshape(f.shape)


def _ratio(over: npt.NDArray[np.float64], under: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 where nothing is known, or the sign is turned."""
    known = (over > 0) & (under > 0)
    return np.where(known, over / np.where(known, under, 1.0), 1.0)
