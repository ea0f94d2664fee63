"""What a page shows and no run had a reason to know: errors of layers, values of the worst tensors, images on which files differ.

All of it on a few dozen images, within a time and a share of memory that do not grow with the model or the data.
"""

from __future__ import annotations

import base64
import io
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image

from mrecg_onnx.converters import load_model
from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.save import openable
from mrecg_onnx.measures import Heads, prediction_output, two_axes
from mrecg_onnx.planning import outputs_without_rows
from mrecg_onnx.reporting.content import Picture, shown
from mrecg_onnx.running import describe, open_session, pad_batch, read_graph, run_outputs, run_padded
from mrecg_onnx.running import fixed_batch as batch_of
from mrecg_onnx.validating import (
    Accuracy,
    LayerErrors,
    float_form,
    int8_form,
    layers_of,
    measure_layers,
    weight_factors,
    with_outputs,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrecg_onnx.converters.module_names import NodeNames
    from mrecg_onnx.data import Dataset, Preprocess
    from mrecg_onnx.running import Model
    from mrecg_onnx.validating import LayerError

__all__ = ["ANSWER_IMAGES", "Answers", "Compared", "Histogram", "Measured", "measure"]

Array = npt.NDArray[Any]
#: Images whose answers are compared, or looked at where it is known which differ; seconds for that, and for values of tensors.
ANSWER_IMAGES, ANSWER_SECONDS, VALUE_SECONDS = 256, 15.0, 6.0
#: Tensors of each kind whose values are shown, images that they are of, bins, and values of a batch that are counted.
WORST, VALUE_IMAGES, BINS, MOST_VALUES = 4, 16, 72, 2_000_000
#: Bins beyond either end of a grid, so that the end is seen as one.
MARGIN = 2
#: Images on which two files differ that are shown, guesses of each, and pixels of the longer side.
SHOWN_IMAGES, GUESSES, SIDE = 12, 3, 112
ROWS = 8


@dataclass(frozen=True)
class Histogram:
    """Values of a tensor between ``edges`` with the grid that it is rounded to.

    Attributes:
        title: what it is of.
        caption: figures of it.
        edges: of the bins; what lies further away is counted in the first and the last.
        counts: values by bin, of a sample.
        cut: those of them that are cut off: more than half a step beyond the ends of the grid, of a weight of its channel's.
        grid: values of codes.
        low: where cutting off begins below, half a step beyond the grid; of channels that end elsewhere the outermost.
        high: likewise above.
        below: share of values cut off below.
        above: likewise above.
        least: the smallest value.
        most: the largest.
        unit: of the values.
    """

    title: str
    caption: str
    edges: tuple[float, ...]
    counts: tuple[float, ...]
    cut: tuple[float, ...]
    grid: tuple[float, ...]
    low: float
    high: float
    below: float
    above: float
    least: float
    most: float
    unit: str


@dataclass(frozen=True)
class Answers:
    """What both files answer on the same images.

    Attributes:
        images: how many were compared.
        of: how many the data have.
        looked: on how many of them both were run for the pictures.
        differing: images compared on which they differ.
        agreement: share of equal answers with its interval; None without class scores.
        pictures: images on which they differ, those of which the float model is surest first.
    """

    images: int
    of: int
    looked: int = 0
    differing: int = 0
    agreement: Accuracy | None = None
    pictures: tuple[Picture, ...] = ()


class Compared(NamedTuple):
    """What a validation found on all images.

    Attributes:
        images: how many they were.
        differing: places of those on which the answers differ; None without class scores.
        output: the output that holds class scores, None without.
        same_data: the places are those of the data that are measured on.
        layers: every layer, where that was asked for.
    """

    images: int
    differing: npt.NDArray[np.int64] | None
    output: str | None
    same_data: bool
    layers: LayerErrors | None = None


@dataclass(frozen=True)
class Measured:
    """All that was measured for a page."""

    layers: LayerErrors
    histograms: tuple[Histogram, ...]
    answers: Answers
    seconds: float


def measure(
    fp32: Model,
    quantized: Model,
    data: Dataset,
    *,
    names: NodeNames,
    threads: int | None = None,
    compared: Compared | None = None,
) -> Measured:
    """Measure a file against its float model on images of ``data``.

    Args:
        fp32: the float model.
        quantized: the file.
        data: images.
        names: shows names of nodes.
        threads: of ONNX Runtime.
        compared: what is known of all images.

    Raises:
        MrecgError: a model or the data cannot be read or run.
    """
    began = time.monotonic()
    layers = compared.layers if compared is not None else None
    if layers is None:
        layers = measure_layers(fp32, quantized, data, threads=threads)
    histograms = (*_weights(fp32, layers, names), *_activations(quantized, layers, data, threads, names))
    answers = _answers(fp32, quantized, data, threads, compared)
    return Measured(layers, histograms, answers, time.monotonic() - began)


# --- values of tensors ------------------------------------------------------------------------------------------------------


def _weights(fp32: Model, layers: LayerErrors, names: NodeNames) -> list[Histogram]:
    """Float weights in steps of their channels' own grids, of the layers whose weights lose most."""
    worst = _lowest([e for e in layers.layers if e.layer.held is not None], lambda e: e.weights_db)
    if not worst:
        return []
    floats = {layer.name: layer for layer in layers_of(float_form(load_model(fp32)))}
    found = []
    for entry in worst:
        layer, own = entry.layer, floats.get(entry.layer.name)
        if own is None or own.shape != layer.shape or layer.held is None:
            continue
        held, plain, written = layer.held, own.weights(), layer.weights()
        fitted = plain * weight_factors(plain, written, layer.op, layer.groups)
        scale = held.along(held.scale).astype(np.float64)
        steps = fitted / scale
        # Codes of a channel are bound by its own smallest and largest: the grid of all is the widest.
        codes = held.codes.astype(np.float64) - held.along(held.zero)
        others = tuple(i for i in range(codes.ndim) if held.axis is None or i != held.axis % codes.ndim)
        low, high = codes.min(axis=others, keepdims=True), codes.max(axis=others, keepdims=True)
        full = high - low >= 2**layer.wbits - 2  # what lies beyond codes that end earlier was not cut off
        under, over = (steps < low - 0.5) & full, (steps > high + 0.5) & full
        cut = float(under.mean()), float(over.mean())
        grid = tuple(np.unique(codes).tolist())
        several = f", {2**layer.wbits} codes a channel (ticks: all channels')" if len(grid) > 2**layer.wbits else ""
        caption = f"{layer.wbits} bits{several}, {layer.params:,} weights, SQNR {entry.weights_db:.1f} dB{_cut(*cut)}"
        title = f"Weights of {shown(names(layer.name), 52)}"
        ends = min(grid) - 0.5, max(grid) + 0.5
        unit = "steps of each channel's scale"
        found.append(_histogram(title, caption, steps, steps[under | over], grid, ends, cut, unit))
    return found


def _activations(
    quantized: Model, layers: LayerErrors, data: Dataset, threads: int | None, names: NodeNames
) -> list[Histogram]:
    """What quantizers are given, of those that lose most by themselves."""
    by_tensor: dict[str, LayerError] = {}
    for entry in layers.layers:
        if entry.layer.fed is not None and entry.layer.fed.of:
            by_tensor.setdefault(entry.layer.fed.of, entry)
    worst = _lowest(list(by_tensor.values()), lambda e: e.rounds_db)
    if not worst:
        return []
    quantizers = {entry.layer.fed.of: entry.layer.fed for entry in worst if entry.layer.fed is not None}
    file = int8_form(load_model(quantized), describe(quantized, "the quantized model"))
    with openable(with_outputs(file, list(quantizers))) as source:
        session = open_session(source, level="off", threads=threads)
    rows, until = batch_of(session) or (1 if outputs_without_rows(file) else ROWS), time.monotonic() + VALUE_SECONDS
    values: dict[str, list[Array]] = {name: [] for name in quantizers}
    cuts: dict[str, list[tuple[float, float]]] = {name: [] for name in quantizers}
    beyond: dict[str, list[Array]] = {name: [] for name in quantizers}
    strides = dict.fromkeys(quantizers, 1)
    for feeds in data.spread(rows, VALUE_IMAGES):
        count = len(next(iter(feeds.values())))
        made = run_outputs(session, {name: pad_batch(x, rows) if batch_of(session) else x for name, x in feeds.items()})
        for name, quantizer in quantizers.items():
            given = quantizer.given(made[name][:count])
            under, over = quantizer.cut(given)
            cuts[name].append((float(under.mean()), float(over.mean())))
            beyond[name].append(given[under | over].astype(np.float32))
            flat = given.astype(np.float32).reshape(-1)
            strides[name] = max(1, len(flat) * VALUE_IMAGES // (rows * MOST_VALUES))
            values[name].append(flat[:: strides[name]])
        if time.monotonic() > until:
            break
    found = []
    for entry in worst:
        layer, codes = entry.layer, entry.layer.fed
        if codes is None or not values[codes.of]:
            continue
        given = np.concatenate(values[codes.of]).astype(np.float64)
        low, _ = codes.ends
        step = float(codes.scale.reshape(-1)[0])
        below, above = np.mean(cuts[codes.of], axis=0)
        cut = float(below), float(above)
        nothing = float((given == 0).mean())
        zeros = f", {nothing:.0%} are 0 (not drawn)" if nothing > 0.02 else ""
        caption = f"{layer.abits} bits, SQNR of rounding {entry.rounds_db:.1f} dB{_cut(*cut)}{zeros}"
        grid = tuple(low + step * i for i in range(codes.high - codes.low + 1))
        title = f"Input of {shown(names(layer.name), 52)}"
        off, ends = np.concatenate(beyond[codes.of]).astype(np.float64), (min(grid) - step / 2, max(grid) + step / 2)
        kept = given[given != 0] if zeros else given
        found.append(_histogram(title, caption, kept, off, grid, ends, cut, "", strides[codes.of]))
    return found


def _lowest(entries: Sequence[LayerError], figure: Any) -> list[LayerError]:
    known = [e for e in entries if figure(e) is not None and np.isfinite(figure(e))]
    return sorted(known, key=figure)[:WORST]


def _cut(below: float, above: float) -> str:
    return f", {100 * (below + above):.2g}% cut off" if below + above > 0 else ", nothing cut off"


def _histogram(
    title: str,
    caption: str,
    values: Array,
    off: Array,
    grid: tuple[float, ...],
    ends: tuple[float, float],
    cut: tuple[float, float],
    unit: str,
    stride: int = 1,
) -> Histogram:
    """Bins that begin and end where cutting off does; ``off`` is all that is cut off, ``values`` one in ``stride`` of all."""
    every = np.concatenate([values.reshape(-1), off.reshape(-1)])
    finite = every[np.isfinite(every)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (min(grid), max(grid))
    (low, high), span = ends, ends[1] - ends[0]
    # A far tail would leave the grid no room: the last bin holds it.
    first, last = max(min(least, low), low - span), min(max(most, high), high + span)
    inner = max(1, round(BINS * span / (last - first)))
    width = span / inner
    before, behind = (
        max(MARGIN if share > 0 else 0, math.ceil(x / width))
        for x, share in zip((low - first, last - high), cut, strict=True)
    )
    edges = low + width * np.arange(-before, inner + behind + 1)

    def counted(part: Array) -> npt.NDArray[np.float64]:
        shown_there = np.clip(part[~np.isnan(part)], (edges[0] + edges[1]) / 2, (edges[-2] + edges[-1]) / 2)
        return np.histogram(shown_there, edges)[0].astype(np.float64)

    red = counted(off.reshape(-1)) / stride
    counts = np.maximum(counted(values.reshape(-1)), red)
    bins, whole, part = (tuple(map(float, x)) for x in (edges, counts, red))
    return Histogram(title, caption, bins, whole, part, grid, low, high, *cut, least, most, unit)


# --- images on which they differ --------------------------------------------------------------------------------------------


def _answers(fp32: Model, quantized: Model, data: Dataset, threads: int | None, compared: Compared | None) -> Answers:
    """Where both files differ at ONNX Runtime's default level: looked for on up to :data:`ANSWER_IMAGES` images.

    Those are some of the images that are known to differ, and of all of them where nothing is known.
    """
    if outputs_without_rows(read_graph(fp32)):  # no class scores, and nothing that several images could be run for
        return Answers(0, len(data))
    if compared is not None and compared.differing is None:
        return Answers(compared.images, len(data))
    places = compared.differing if compared is not None and compared.same_data else None
    asked = np.arange(len(data)) if places is None else places
    held = _run_both(fp32, quantized, data, asked, threads) if len(asked) else []
    output = compared.output if compared is not None else _scores_output(fp32, held)
    if output is None or (not held and compared is None):
        return Answers(len(held), len(data))
    pictures: list[Picture] = []
    same = np.ones(0, bool)
    if held:
        sides = [one for _, one, _ in held], [other for _, _, other in held]
        scores = [np.stack([made[output].reshape(-1) for made in side]).astype(np.float64) for side in sides]
        same = scores[0].argmax(1) == scores[1].argmax(1)
        shares = [_shares(values) for values in scores]
        others = sorted(np.flatnonzero(~same), key=lambda i: -shares[0][i].max())[:SHOWN_IMAGES]
        pictures = [p for i in others if (p := _picture(data, held[i][0], shares[0][i], shares[1][i])) is not None]
    if compared is None or compared.differing is None:
        return Answers(len(held), len(data), len(held), int((~same).sum()), Accuracy.of(same), tuple(pictures))
    count, differ = compared.images, len(compared.differing)
    agreement = Accuracy.of(np.arange(count) >= differ)
    return Answers(count, max(count, len(data)), len(held), differ, agreement, tuple(pictures))


Held = tuple[int, "dict[str, Array]", "dict[str, Array]"]


def _run_both(fp32: Model, quantized: Model, data: Dataset, places: Array, threads: int | None) -> list[Held]:
    """Outputs of both files, by image, of up to :data:`ANSWER_IMAGES` among ``places``, spread evenly over them."""
    sessions = [open_session(model, threads=threads) for model in (fp32, _openable_form(quantized))]
    spread = np.unique(np.linspace(0, len(places) - 1, min(len(places), ANSWER_IMAGES)).round().astype(int))
    chosen = places[spread]
    until, held = time.monotonic() + ANSWER_SECONDS, list[Held]()
    for start in range(0, len(chosen), ROWS):
        indices = chosen[start : start + ROWS]
        try:
            feeds = data.batch(indices)
        except DataError:  # one of them cannot be read: the others of this handful are not needed
            continue
        before, after = (run_padded(session, feeds) for session in sessions)
        for row, index in enumerate(indices):
            one, other = ({n: y[row] for n, y in made.items() if two_axes(y) is not None} for made in (before, after))
            held.append((int(index), one, other))
        if time.monotonic() > until:
            break
    return held


def _scores_output(fp32: Model, held: Sequence[Held]) -> str | None:
    """The output that holds class scores; None where none does."""
    if not held:
        return None
    graph, names = read_graph(fp32), held[0][1]
    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    floats = [value.name for value in graph.graph.output if value.type.tensor_type.elem_type in kinds]
    whole = {name: np.stack([one[1][name].reshape(-1) for one in held]) for name in names}
    # The others count, too, in what is asked.
    whole |= {name: np.zeros((1, 1, 1), np.float32) for name in floats if name not in names}
    return prediction_output(whole, Heads.of_model(graph))


def _openable_form(quantized: Model) -> Any:
    """The file, or what ONNX Runtime runs in its place."""
    from mrecg_onnx.writing import runnable  # noqa: PLC0415 - few files need it

    loaded = read_graph(quantized)
    return quantized if runnable(loaded) is loaded else runnable(load_model(quantized))


def _shares(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities: as they are, or the softmax of logits."""
    if scores.min() >= 0 and np.abs(scores.sum(1) - 1).max() < 5e-3:
        return scores
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def _picture(data: Dataset, index: int, before: Array, after: Array) -> Picture | None:
    fed = next(iter(data.batch([index]).values()))[0]
    pixels = _pixels(fed, data.preprocess)
    if pixels is None:
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    held, small = io.BytesIO(), max(image.size) <= 48
    image.save(held, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
    kind = "png" if small else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode('ascii')}"
    label = str(data.labels[index]) if data.labels is not None else ""
    name = data.files[index].name if data.files is not None else f"row {index}"
    return Picture(source, shown(name, 28), _guesses(before), _guesses(after), label, *image.size)


def _guesses(shares: Array) -> tuple[tuple[str, float], ...]:
    best = np.argsort(-shares, kind="stable")[:GUESSES]
    return tuple((str(int(i)), float(shares[i])) for i in best)


def _pixels(fed: Array, preprocess: Preprocess | None) -> npt.NDArray[np.uint8] | None:
    """What was fed as an image [H, W, 3 or 1 channels squeezed], None where it is none."""
    if fed.ndim != 3:
        return None
    nchw = (preprocess.layout == "nchw") if preprocess is not None and preprocess.layout else fed.shape[0] in {1, 3}
    planes = fed if nchw else np.moveaxis(fed, 2, 0)
    if planes.shape[0] not in {1, 3, 4} or min(planes.shape[1:]) < 4:
        return None
    x = planes.astype(np.float64)
    if preprocess is not None and preprocess.scale and fed.dtype.kind == "f":
        mean, std = (
            np.asarray(v or d, np.float64).reshape(-1, 1, 1)
            for v, d in ((preprocess.mean, (0.0,)), (preprocess.std, (1.0,)))
        )
        x = (x * std + mean) / preprocess.scale
    elif fed.dtype != np.uint8:
        low, high = float(x.min()), float(x.max())
        x = (x - low) / max(high - low, 1e-12) * 255
    pixels = np.clip(np.rint(x), 0, 255).astype(np.uint8)
    if preprocess is not None and preprocess.color == "bgr":
        pixels = pixels[::-1]
    if pixels.shape[0] == 1:
        return np.ascontiguousarray(pixels[0])
    return np.ascontiguousarray(np.moveaxis(pixels[:3], 0, 2))
