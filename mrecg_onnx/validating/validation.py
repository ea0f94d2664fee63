"""A float model and its quantized version side by side on ONNX Runtime: accuracy, agreement, noise, size and speed."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.deadline import LIMIT_S, limit_runs
from mrecg_onnx.converters.errors import DataError, ModelError, SettingsError
from mrecg_onnx.converters.made import model_of
from mrecg_onnx.converters.metadata_keys import PREPROCESS_KEY, VERSION_KEY
from mrecg_onnx.converters.text import with_arguments
from mrecg_onnx.data import (
    Data,
    Dataset,
    Labels,
    Preprocess,
    Source,
    beside,
    check_lost,
    given,
    holds_images,
    open_validation,
    profile,
    require_numbers,
)
from mrecg_onnx.machine import Workers, joined
from mrecg_onnx.measures import Heads, Metric, mcnemar_p, metric_of
from mrecg_onnx.planning import is_quantized
from mrecg_onnx.progress import Progress, Report
from mrecg_onnx.running import (
    InTurn,
    Seconds,
    check_provider,
    describe,
    elsewhere,
    fixed_batch,
    fused_op_counts,
    input_specs,
    kernels,
    latency,
    medians,
    ratio_interval,
    read_graph,
    require_room,
    size_bytes,
    slower_here,
)
from mrecg_onnx.validating.input_ranges import Watch, calibrated_ranges
from mrecg_onnx.validating.layer_errors import measure_layers
from mrecg_onnx.validating.metadata import metadata_of, stored_preprocess
from mrecg_onnx.validating.pairing import check_feeds, check_interface, check_source, chosen_outputs
from mrecg_onnx.validating.results import Asked, ModelReport, ValidationResult
from mrecg_onnx.validating.rowless import Rowless
from mrecg_onnx.validating.scored import Scored
from mrecg_onnx.validating.tally import Tally
from mrecg_onnx.validating.worth import worth_nothing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnxruntime as ort

    from mrecg_onnx.converters.made import Made
    from mrecg_onnx.measures import AnyMetric
    from mrecg_onnx.running import Model

__all__ = ["gain_warnings", "validate"]

logger = logging.getLogger(__name__)

CLEAR_GAIN, CLEAR_P = 0.01, 0.01
"""From these on, in top-1 and in McNemar's p, a quantized model that is better than its float model makes both doubtful."""


@takes(preprocess=Preprocess, metric=Metric)
def validate(
    fp32: Model | Made,
    quantized: Model | Made,
    data: Data,
    *,
    labels: Labels | None = None,
    preprocess: Preprocess | str | Path | None = None,
    limit: int | None = None,
    outputs: Sequence[str] | None = None,
    batch_size: int = 32,
    latency_batch: int = 1,
    repeats: int = 50,
    threads: int | None = None,
    device: str = "cpu",
    layers: bool = False,
    metric: AnyMetric = None,
    timeout: float = LIMIT_S,
    progress: Report | None = None,
) -> ValidationResult:
    """Compare a quantized model with the float model it was made from, both at ONNX Runtime's default level.

    Args:
        fp32: The float model.
        quantized: The quantized model, of this package or another; or what :func:`mrecg_onnx.quantize` or
            :func:`mrecg_onnx.convert` returned.
        data: A folder of images or arrays of ready inputs (see :func:`mrecg_onnx.data.opening.open_validation`); or arrays,
            tensors, PIL images or whatever hands them out (docs/data.md).
        labels: For images a CSV of ``file,label``, boxes in COCO's JSON or a folder of PNG masks (docs/metrics.md), ``.npy`` of
            one class a row for arrays; of what is handed over in Python an array or a list. By default labels are read from
            folder names, from an array called y or labels in an ``.npz`` or a dict, or from pairs ``(inputs, label)``; the word
            "none": there are none.
        preprocess: How images become inputs, also by name or from a file (:mod:`mrecg_onnx.data.profiles`); by default what the
            quantized file's metadata says, else a file beside the float model. Without either ImageNet's mean and deviation
            are assumed for files of other tools, with a warning, and not for one of ours, which was calibrated on arrays.
        limit: Use at most so many images, spread evenly.
        outputs: Names of the outputs to compare, all by default; the model's order is kept. Labels belong to the one that holds
            class scores, or to the first that is ``[N, classes]``.
        batch_size: Images at a time, >= 1; a model's fixed batch goes before it, and one at a time where outputs have as many
            rows as are found (NonMaxSuppression), of which ``metric`` alone tells anything.
        latency_batch: Images a timed run, >= 1; a model's fixed batch goes before it.
        repeats: Timed runs of each model, spread over sittings in sessions opened anew; 0 leaves latency out.
        threads: ONNX Runtime's threads inside an operator, its own choice by default.
        device: a row of :data:`mrecg_onnx.running.PROVIDERS`; what its provider leaves to the CPU is among the warnings.
        layers: Compare every layer, too, on up to 64 of the images, both graphs run as written on the CPU
            (docs/method.md 23).
        metric: What outputs are worth, beside top-1 and top-5: a function ``(outputs, targets) -> number``, an object with
            ``update`` and ``compute``, a :class:`mrecg_onnx.Metric`, the name of a ready one or ``"module:function"``
            (docs/metrics.md). It is given the outputs that ``outputs`` names.
        timeout: Seconds that one call of ONNX Runtime may take.
        progress: Called after every batch (:class:`mrecg_onnx.Progress`).

    Returns:
        Everything measured; images are read once and nothing but counts is kept of them.

    Raises:
        ModelError: A model cannot be opened or run, gives NaN or Inf, or the two do not belong together: their inputs
            or outputs differ, or the quantized file says it was made from another one. (Only a file or its bytes can
            be recognized; a float model given as ModelProto is compared by inputs and outputs alone.)
        DataError: The data cannot be read, or its labels exceed the model's classes.
        MetricError: ``metric`` fails, or gives no finite number.
        SettingsError: Nothing says how images become inputs, a setting is out of range, ``outputs`` names one that is not
            there, ``device`` is not there or runs
            nothing, ``metric`` is none, or ``labels``, ``preprocess`` or ``limit`` come with a data set that is already open.
    """
    if latency_batch < 1 or repeats < 0:
        raise SettingsError(f"latency of {repeats} runs with {latency_batch} images: give >= 0 runs and >= 1 images")
    if not timeout > 0:
        raise SettingsError(f"timeout is {timeout}: it must be above 0")
    limit_runs(timeout)
    fp32, quantized = model_of(fp32), model_of(quantized)
    wanted = metric_of(metric)
    with joined("cpu") as workers:
        found = _validate(
            fp32,
            quantized,
            given(data),
            workers,
            labels=labels,
            preprocess=profile(preprocess) if isinstance(preprocess, str | Path) else preprocess,
            limit=limit,
            outputs=outputs,
            batch_size=batch_size,
            latency_batch=latency_batch,
            repeats=repeats,
            threads=threads,
            device=device,
            layers=layers,
            metric=wanted,
            progress=progress if workers.first else None,
        )
    return dataclasses.replace(found, asked=Asked(fp32, quantized, data, labels, limit))


def _validate(
    fp32: Model,
    quantized: Model,
    data: Source,
    workers: Workers,
    *,
    labels: Labels | None,
    preprocess: Preprocess | None,
    limit: int | None,
    outputs: Sequence[str] | None,
    batch_size: int,
    latency_batch: int,
    repeats: int,
    threads: int | None,
    device: str,
    layers: bool,
    metric: Metric | None,
    progress: Report | None,
) -> ValidationResult:
    names = describe(fp32, "the FP32 model"), describe(quantized, "the quantized model")
    models = InTurn({"fp32": fp32, "quantized": quantized}, threads, device)
    sessions = models.sessions
    check_source(fp32, sessions, names)
    check_interface(sessions, names)
    chosen = chosen_outputs(sessions["fp32"], outputs, names[0])
    rowless = Rowless.of(fp32, chosen, metric, names[0])
    specs = input_specs(sessions["quantized"])
    notes: tuple[str, ...] = ()
    if isinstance(data, Dataset):
        if labels is not None or preprocess is not None or limit is not None:
            raise SettingsError("labels, preprocess and limit belong to the opening of data: it is already open")
        check_feeds(data, specs)
        dataset = data
    else:
        preprocess, notes = _image_preprocess(preprocess, sessions["quantized"], names[1], fp32, data)
        dataset = open_validation(data, specs, preprocess, labels, limit, classes=metric is None)

    dataset = dataset.shard(workers.rank, workers.size) if workers.size > 1 else dataset
    tally = Tally(names, dataset, rowless.others, Heads.of_model(read_graph(fp32)))
    watch = Watch(calibrated_ranges(metadata_of(sessions["quantized"]), quantized, names[1]))
    scored = Scored.of(metric, names, dataset, chosen, workers)
    rows = fixed_batch(sessions["fp32"]) or fixed_batch(sessions["quantized"]) or latency_batch
    timed = bool(repeats) or device != "cpu"
    if timed:
        require_room(specs, rows)
    for feeds, indices in dataset.batches(rowless.batch(batch_size)):
        watch.add(feeds)
        try:
            before, after = (
                rowless.run(session, feeds, name) for session, name in zip(sessions.values(), names, strict=True)
            )
        except ModelError:
            dataset.require_taken(
                lambda row: rowless.run(sessions["fp32"], row, names[0]), names[0], [(feeds, indices)]
            )
            raise
        tally.add(indices, before, after, indices * workers.size + workers.rank)  # of a share every so many are ours
        scored.add(indices, rowless.scored(before), rowless.scored(after))
        tally.keep_rows(feeds, rows if timed else 0)
        logger.info("validated %d of %d images", tally.images, len(dataset))
        if progress is not None:
            progress(Progress("validate", done=tally.images, total=len(dataset), of="images"))
    skipped = tuple(
        entry for part in workers.gather([f"{path} ({reason})" for path, reason in dataset.skipped]) for entry in part
    )
    check_lost(skipped, dataset.whole)
    tally.join(workers)
    scored.join()
    watch.join(workers)
    if not tally.images:
        raise DataError("there is no image to validate on")

    def measure() -> dict[str, Seconds]:
        return latency(models, tally.rows(rows), repeats) if repeats else {}

    def placed() -> tuple[str, ...]:
        if device == "cpu":
            return ()
        said = []
        for model, name in zip((fp32, quantized), names, strict=True):
            found = kernels(model, tally.rows(rows), threads, device, runs=1)
            check_provider(found, device, name)
            said += [f"{name} is not all on {device}: {others}" for others in [elsewhere(found, device)] if others]
        return tuple(said)

    scores = workers.once(scored.values)
    left = workers.once(placed)
    taken = workers.once(measure)  # the others wait: timings beside working processes mean nothing
    seconds = medians(taken)
    compared = workers.once(lambda: measure_layers(fp32, quantized, dataset, threads=threads)) if layers else None
    reports = [
        ModelReport(name, size_bytes(model), *tally.accuracies(i), seconds.get(key), scores[i])
        for i, (key, model, name) in enumerate(zip(sessions, (fp32, quantized), names, strict=True))
    ]
    drop = reports[0].top1.value - reports[1].top1.value if reports[0].top1 and reports[1].top1 else None
    p = mcnemar_p(*tally.right(1)) if tally.has_accuracy else None
    doubts = tally.warnings(reports[0].top1, unasked=labels is None) if metric is None or tally.has_accuracy else ()
    said = [
        *notes,
        *watch.warnings(images=dataset.preprocess is not None),
        *doubts,
        *worth_nothing(metric, reports[0].score),
        *left,
    ]
    said += slower_here(quantized)
    if names[0] == names[1]:
        said.append(f"{names[0]} was compared with itself: give the FP32 model first, and the quantized one behind it")
    elif not is_quantized(read_graph(quantized)):
        said.append(f"{names[1]} quantizes nothing: what is measured is how two float models differ")
    return ValidationResult(
        images=tally.images,
        skipped=skipped,
        fp32=reports[0],
        quantized=reports[1],
        drop=drop,
        mcnemar_p=p,
        agreement=tally.agreement(),
        sqnr_by_output={name: sums.sqnr_db for name, sums in tally.sums.items() if sums.floating},
        equal_by_output={name: sums.equal for name, sums in tally.sums.items() if not sums.floating},
        scores=tally.scores,
        provider=sessions["quantized"].get_providers()[0],
        latency_batch=rows,
        op_counts=dict(fused_op_counts(quantized).most_common()),
        preprocess=dataset.preprocess,
        warnings=tuple(map(with_arguments, (*said, *gain_warnings(drop, p)))),
        top1_right=tally.right(1) if tally.has_accuracy else None,
        layers=compared,
        metric=metric,
        differing=tally.differing(),
        speedup_interval=ratio_interval(taken["fp32"], taken["quantized"]) if taken else None,
    )


def gain_warnings(drop: float | None, p: float | None) -> tuple[str, ...]:
    """A sentence where the quantized model is clearly better than the float model it was made from."""
    if drop is None or p is None or drop > -CLEAR_GAIN or p > CLEAR_P:
        return ()
    said = f"the FP32 model is {-100 * drop:.1f} points of top-1 worse than its quantized version (p = {p:.2g})"
    return (f"{said}: both are likely fed what they were not made for; check preprocessing and labels",)


def _image_preprocess(
    given: Preprocess | None, session: ort.InferenceSession, name: str, fp32: Model, data: Source
) -> tuple[Preprocess, tuple[str, ...]]:
    """How images become inputs of the open quantized model ``name``, and what had to be assumed for that."""
    if not holds_images(data):
        return given or Preprocess(), ()
    chosen = given or stored_preprocess(session, name) or beside(fp32) or Preprocess()
    metadata, specs = metadata_of(session), input_specs(session)
    if PREPROCESS_KEY in metadata or chosen.normalizes or any(spec.dtype == np.uint8 for spec in specs):
        return chosen, ()
    if VERSION_KEY in metadata:
        require_numbers(chosen, specs, f"{name} was calibrated on arrays, and {data} holds images")
    said = f"{name} does not say how images become its inputs: ImageNet's mean and deviation are assumed"
    return chosen, (f"{said}; say it with --preprocess imagenet|unit|raw|FILE, or --mean, --std and --scale",)
