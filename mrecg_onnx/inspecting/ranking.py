"""Which layers and tensors a model's accuracy hangs on, the loss of each at every width, and what more bits or float bring back.

Losses are those of the bit allocation (:mod:`mrecg_onnx.widths.costs`): one quantizer alone, all else float. What a
suggestion brings back is measured on the whole network quantized as the settings say, rounded to nearest: with the
suggestion and without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.errors import DataError, SettingsError
from mrecg_onnx.converters.parity import run_onnx
from mrecg_onnx.converters.text import with_arguments
from mrecg_onnx.data import Data, Labels, Preprocess, Source, check_classes, given, open_validation
from mrecg_onnx.inspecting.ranked import Quality, Ranked, Ranking, Suggestion
from mrecg_onnx.inspecting.suggesting import possible, suggested, variant
from mrecg_onnx.machine import Run, full_precision
from mrecg_onnx.measures import Heads, Metric, Scorer, mcnemar_p, metric_of, output_error, prediction_output, two_axes
from mrecg_onnx.network import Simulation, forward_batches
from mrecg_onnx.planning import Plan, told_cut
from mrecg_onnx.preparation import Prepared, calibrate, prepare
from mrecg_onnx.progress import Clock, told
from mrecg_onnx.running import describe
from mrecg_onnx.settings import Settings
from mrecg_onnx.validating import guesses, worth_nothing
from mrecg_onnx.widths import IMAGES, WIDTHS, cost_images, measure_costs

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    import onnx
    from torch import Tensor

    from mrecg_onnx.measures import AnyMetric
    from mrecg_onnx.progress import Report

__all__ = ["sensitivity"]


@takes(settings=Settings, preprocess=Preprocess, metric=Metric)
@full_precision()
def sensitivity(
    model: onnx.ModelProto | str | Path,
    calib: Data,
    settings: Settings | None = None,
    *,
    data: Data | None = None,
    labels: Labels | None = None,
    limit: int = 256,
    top: int = 8,
    metric: AnyMetric = None,
    progress: Report | None = None,
) -> Ranking:
    """Rank layers and tensors of a float model by what their quantization costs, and try more bits, or float, for the first ones.

    Args:
        model: the float model; not changed.
        calib: as for :func:`mrecg_onnx.quantize`.
        settings: widths, method and all else.
        data: images to measure on, labelled ones for top-1; the calibration images without.
        labels: labels for them, as for :func:`mrecg_onnx.validate`.
        limit: images measured on at most.
        top: suggestions made.
        metric: what a network is worth on these images, as for :func:`mrecg_onnx.validate`: suggestions are ordered by it.
        progress: called as the work proceeds (:class:`mrecg_onnx.Progress`).

    Raises:
        MrecgError: as :func:`mrecg_onnx.quantize`.
    """
    settings = settings or Settings()
    if limit < 1 or top < 0:
        raise SettingsError(f"limit is {limit} and top is {top}: give at least one image and no negative number")
    wanted_metric = metric_of(metric)
    clock = Clock(progress)
    measured_on = None if data is None else given(data)
    ready = prepare(model, calib, settings, Run(clock=clock), measured_on=measured_on)
    settings, plan = ready.settings, ready.plan
    if wanted_metric is not None and ready.tail is not None:
        raise SettingsError(
            f"the model is measured where it is cut, {told_cut(ready.graph.metadata_props)}; metric "
            f"{wanted_metric.name} counts what the whole gives: leave it out"
        )
    images = _images(
        ready, measured_on, labels, limit, classes=wanted_metric is None
    )  # what is wrong there is told now
    with clock.stage("sensitivity"):
        weights, tensors = _candidates(plan)
        bits = {a.name: a.bits for a in plan.activations}
        costs = measure_costs(
            ready.network,
            plan,
            cost_images(ready.dataset),
            settings,
            layers=dict.fromkeys(weights, WIDTHS),
            tensors={n: sorted({*WIDTHS, bits[n]}) if readers else [bits[n]] for n, readers in tensors.items()},
            dataset=ready.ranging,
        )
    found = [Ranked(n, "weights", plan.layer(n).wbits, (n,), costs.weights[n]) for n in weights]
    found += [Ranked(n, "activations", bits[n], readers, costs.tensors[n]) for n, readers in tensors.items()]
    found.sort(key=lambda r: r.loss, reverse=True)
    with clock.stage("suggestions"):
        judge = _Judge(ready, images, wanted_metric)
        simulation = calibrate(ready.network, plan, ready.data, settings, ready.ranging)
        float_quality, _ = judge.judged(None)
        quality, before = judge.judged(simulation)
        lost = quality.worth < float_quality.worth
        wanted: dict[tuple[str, str], list[int]] = {}  # weights of a layer and what it alone reads may have the same
        for rank, entry in enumerate(found, 1):
            if lost and entry.bits <= max(WIDTHS) and len(wanted) < top:
                for pair in suggested(ready, entry.name, entry.kind, entry.layers, entry.losses, entry.bits):
                    wanted.setdefault(pair, []).append(rank)
        suggestions = []
        for option, value in told(list(wanted), "suggestions"):
            alone, after = judge.judged(variant(ready, simulation, [(option, value)]))
            p = None if before is None or after is None else mcnemar_p(before, after)
            suggestions.append(Suggestion(option, value, alone, p, tuple(wanted[option, value])))
        suggestions.sort(key=lambda s: s.quality.order, reverse=True)
        helpful: list[tuple[str, str]] = []
        for one in (s for s in suggestions if s.quality.worth > quality.worth):
            # All of them might leave no layer to quantize.
            if possible(ready, [*helpful, (one.option, one.value)]) is not None:
                helpful.append((one.option, one.value))
        together, after = judge.judged(variant(ready, simulation, helpful)) if helpful else (None, None)
        return Ranking(
            settings=settings,
            images=judge.count,
            labelled=judge.labels is not None,
            float_quality=float_quality,
            quality=quality,
            ranked=tuple(found),
            suggestions=tuple(suggestions),
            together=together,
            together_p=None if before is None or after is None else mcnemar_p(before, after),
            skipped=tuple(f"{path} ({reason})" for path, reason in ready.dataset.skipped),
            metric=wanted_metric,
            targets=wanted_metric is not None and judge.targets is not None,
            available=judge.available,
            helpful=tuple(helpful),
            source=model,
            warnings=tuple(map(with_arguments, (*ready.dataset.doubts, *images.doubts, *judge.doubts(float_quality)))),
        )


def _candidates(plan: Plan) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Layers with quantized weights, and all quantizers of activations with the layers that read them."""
    tensors = {quantizer.name: tuple(x.name for x in plan.readers(quantizer)) for quantizer in plan.activations}
    return [x.name for x in plan.quantized_layers], tensors


@dataclass(frozen=True)
class _Images:
    """What networks are measured on.

    Attributes:
        data: inputs by name, [N, ...].
        labels: classes, where there are any.
        source: where those are from.
        handed: they came from Python.
        targets: what a metric is given.
        available: images that there were to choose from.
        doubts: what is wrong with the targets.
    """

    data: dict[str, Tensor]
    labels: npt.NDArray[np.int64] | None = None
    source: str = ""
    handed: bool = False
    targets: list[Any] | None = None
    available: int | None = None
    doubts: tuple[str, ...] = ()


def _images(ready: Prepared, data: Source | None, labels: Labels | None, limit: int, *, classes: bool) -> _Images:
    """At most ``limit`` of ``data``, or of the calibration images."""
    if data is None:
        own = ready.dataset
        loaded = {n: torch.from_numpy(x) for n, x in own.load(limit).items()}
        return _Images(loaded, available=len(own) if own.total is None else own.total)
    inputs, preprocess = list(ready.dataset.inputs), ready.settings.preprocess
    dataset = open_validation(data, inputs, preprocess, labels, limit, classes=classes)
    parts: list[Mapping[str, npt.NDArray[Any]]] = []
    rows: list[npt.NDArray[np.int64]] = []
    targets: list[list[Any] | None] = []
    for arrays, indices in dataset.batches(IMAGES):
        parts.append(arrays)
        rows.append(np.asarray(indices))
        targets.append(dataset.targets_of(indices))  # of a stream those of this batch alone are known
    if not parts:
        raise DataError("there is no image to measure on")
    dataset.require_taken(partial(run_onnx, ready.original), describe(ready.source), zip(parts, rows, strict=True))
    found = {n: torch.from_numpy(np.concatenate([p[n] for p in parts])) for n in parts[0]}
    known = dataset.labels[np.concatenate(rows)] if dataset.labels is not None else None
    wanted = None if any(t is None for t in targets) else [one for t in targets for one in t or ()]
    source, handed = dataset.labels_source, dataset.labels_handed
    return _Images(found, known, source, handed, wanted, dataset.total, dataset.doubts)


class _Judge:
    """Measures networks on the same images."""

    def __init__(self, ready: Prepared, images: _Images, metric: Metric | None) -> None:
        self.network, self.metric = ready.network, metric
        self.data, self.labels, self.targets = images.data, images.labels, images.targets
        self.count, self.available = len(next(iter(images.data.values()))), images.available
        self.reference = self._run(None)
        arrays = {n: x.cpu().numpy() for n, x in self.reference.items()}
        self.scores = prediction_output(arrays, Heads.of_network(self.network, self.data))
        labels = self.labels
        if labels is not None and self.scores is None:
            self.scores = next((n for n, x in arrays.items() if two_axes(x) is not None), None)
        if labels is not None and self.scores is not None:
            classes = arrays[self.scores].shape[1]
            check_classes(labels, classes, self.scores, images.source, lambda i: f"image {i}", handed=images.handed)

    def _run(self, simulation: Simulation | None) -> dict[str, Tensor]:
        parts: list[dict[str, Tensor]] = []
        with torch.no_grad():
            for batch in forward_batches(self.data, IMAGES, self.network.device):
                parts.append(self.network.run(batch) if simulation is None else simulation.run(batch))
        return {n: torch.cat([p[n] for p in parts]) for n in parts[0]}

    def judged(self, simulation: Simulation | None) -> tuple[Quality, npt.NDArray[np.bool_] | None]:
        """Of ``simulation``, or of the float network, and which answers count as right; None where others decide."""
        outputs = self.reference if simulation is None else self._run(simulation)
        error = output_error(outputs, self.reference)
        score, lower = self._score(outputs, "the float network" if simulation is None else "the quantized network")
        if self.scores is None:
            return Quality(None, None, error, score, lower), None
        answers, wanted = (values[self.scores].flatten(1).argmax(1) for values in (outputs, self.reference))
        agreement = float((answers == wanted).float().mean())
        if self.labels is None:
            right, top1 = (answers == wanted).cpu().numpy(), None
        else:
            right = answers.cpu().numpy() == self.labels
            top1 = float(right.mean())
        return Quality(top1, agreement, error, score, lower), right if self.metric is None else None

    def doubts(self, quality: Quality) -> tuple[str, ...]:
        """What is said where the float network, of this ``quality``, is worth nothing on these images."""
        if self.metric is not None:
            return worth_nothing(self.metric, quality.score)
        return guesses(quality.top1, self.count, None if self.scores is None else self.reference[self.scores].shape[1])

    def _score(self, outputs: Mapping[str, Tensor], called: str) -> tuple[float | None, bool]:
        """By the metric, and whether that counts errors."""
        if self.metric is None:
            return None, False
        scorer = Scorer(self.metric, called, self.count)
        for start in range(0, self.count, IMAGES):
            places = np.arange(start, min(start + IMAGES, self.count))
            rows = slice(start, start + IMAGES)
            made = {n: x[rows].cpu().numpy() for n, x in outputs.items()}
            scorer.add(places, made, None if self.targets is None else self.targets[rows])
        return scorer.value(), bool(self.metric.lower_is_better)
