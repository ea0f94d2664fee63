"""A float model and its quantized version side by side on ONNX Runtime: accuracy, agreement, noise, size and speed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from mrecg_onnx.converters.errors import DataError, ModelError, SettingsError
from mrecg_onnx.data import (
    Dataset,
    Preprocess,
    beside,
    check_classes,
    check_lost,
    holds_images,
    open_validation,
    profile,
    require_numbers,
)
from mrecg_onnx.machine import Workers, joined
from mrecg_onnx.measures import (
    Heads,
    OutputSums,
    Scores,
    add_sums,
    mcnemar_p,
    scores_of,
    topk_correct,
    two_axes,
    wilson_interval,
)
from mrecg_onnx.runtimes import (
    check_provider,
    describe,
    elsewhere,
    fixed_batch,
    fused_op_counts,
    input_specs,
    kernels,
    latency,
    medians,
    open_session,
    run_padded,
)
from mrecg_onnx.validating.input_ranges import Watch, calibrated_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnxruntime as ort

    from mrecg_onnx.data import InputSpec
    from mrecg_onnx.runtimes import Model

__all__ = [
    "PREPROCESS_KEY",
    "SOURCE_KEY",
    "VERSION_KEY",
    "Accuracy",
    "ModelReport",
    "ValidationResult",
    "chosen_outputs",
    "gain_warnings",
    "size_bytes",
    "source_sha256",
    "stored_preprocess",
    "validate",
]

logger = logging.getLogger(__name__)

Array: TypeAlias = npt.NDArray[Any]

PREPROCESS_KEY = "mrecg_onnx.preprocess"
"""``metadata_props`` of a quantized file: how its calibration images were prepared, the JSON of a Preprocess."""
VERSION_KEY = "mrecg_onnx.version"
"""``metadata_props`` of a quantized file: the version of this package that made it."""
SOURCE_KEY = "mrecg_onnx.source_sha256"
"""``metadata_props`` of a quantized file: :func:`source_sha256` of the float model it was made from."""

CLEAR_GAIN, CLEAR_P = 0.01, 0.01
"""From these on, in top-1 and in McNemar's p, a quantized model that is better than its float model makes both doubtful."""
_HASH_CHUNK = 1 << 20
_GUESSES = 5


@dataclass(frozen=True)
class Accuracy:
    """A share of images with its 95 % interval (Wilson's), all in ``[0, 1]``."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, right: npt.NDArray[np.bool_]) -> Accuracy:
        """The share of True in ``right``, shape ``[N]``, ``N >= 1``."""
        correct, n = int(np.count_nonzero(right)), len(right)
        return cls(correct / n, *wilson_interval(correct, n))

    def to_json(self) -> dict[str, float]:
        """A plain dict."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class ModelReport:
    """What was measured on one of the two models.

    Attributes:
        name: its path, or what it is where it came from memory.
        size_bytes: the file with its external data.
        top1: accuracy; None without labels, or where no output is ``[N, classes]``.
        top5: the share with the label among the five largest; None also for five classes or fewer.
        latency_s: median seconds of a run at ``latency_batch``; None where no latency was asked for.
    """

    name: str
    size_bytes: int
    top1: Accuracy | None
    top5: Accuracy | None
    latency_s: float | None

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``json.dumps`` takes."""
        return {
            "name": self.name,
            "size_bytes": self.size_bytes,
            "top1": self.top1 and self.top1.to_json(),
            "top5": self.top5 and self.top5.to_json(),
            "latency_s": self.latency_s,
        }


@dataclass(frozen=True)
class ValidationResult:
    """Both models on the same images.

    Attributes:
        images: how many images (or rows of arrays) both models ran on.
        skipped: unreadable images that were left out, with the reason.
        fp32: the float model.
        quantized: the quantized model.
        drop: top-1 of the float model less that of the quantized one; None without accuracy.
        mcnemar_p: exact two-sided p-value for "equally accurate", top-1, on the same images; None without accuracy.
        agreement: share of images with the same largest value of :attr:`scores`; None where no output holds class scores.
        sqnr_by_output: signal-to-quantization-noise ratio in dB of each float output, over all images; the signal is the float
            model's output about its mean, ``inf`` where both models give the same.
        provider: ONNX Runtime's execution provider.
        latency_batch: images a timed run.
        op_counts: operators ONNX Runtime runs for the quantized model after fusion on CPU, the most frequent first.
        preprocess: what was done to the images; None for arrays.
        warnings: what makes the numbers doubtful or absent, a sentence each.
        equal_by_output: share of equal values of each output without floats (integers, booleans).
        scores: the output taken for class scores (:mod:`mrecg_onnx.measures.predictions`); None where none is.
        top1_right: which images the float (row 0) and the quantized model (row 1) get right, shape ``[2, images]``, in the
            data's order where one process validates; None without accuracy. Not in :meth:`to_json`.
    """

    images: int
    skipped: tuple[str, ...]
    fp32: ModelReport
    quantized: ModelReport
    drop: float | None
    mcnemar_p: float | None
    agreement: float | None
    sqnr_by_output: dict[str, float]
    provider: str
    latency_batch: int
    op_counts: dict[str, int]
    preprocess: Preprocess | None
    warnings: tuple[str, ...]
    equal_by_output: dict[str, float] = field(default_factory=dict)
    scores: str | None = None
    top1_right: npt.NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)

    @property
    def sqnr_db(self) -> float:
        """The worst output's ratio, in dB; ``nan`` where no output is float."""
        return min(self.sqnr_by_output.values(), default=math.nan)

    @property
    def speedup(self) -> float | None:
        """How many times faster the quantized model is, by the medians; None where no latency was asked for."""
        if self.fp32.latency_s is None or self.quantized.latency_s is None:
            return None
        return self.fp32.latency_s / self.quantized.latency_s

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``json.dumps(allow_nan=False)`` takes: ``inf`` dB (equal outputs) becomes None."""
        return {
            "images": self.images,
            "skipped": list(self.skipped),
            "fp32": self.fp32.to_json(),
            "quantized": self.quantized.to_json(),
            "drop": self.drop,
            "mcnemar_p": self.mcnemar_p,
            "agreement": self.agreement,
            "sqnr_db": _finite(self.sqnr_db),
            "sqnr_by_output": {name: _finite(value) for name, value in self.sqnr_by_output.items()},
            "equal_by_output": dict(self.equal_by_output),
            "scores": self.scores,
            "speedup": self.speedup,
            "provider": self.provider,
            "latency_batch": self.latency_batch,
            "op_counts": dict(self.op_counts),
            "preprocess": self.preprocess and self.preprocess.to_json(),
            "warnings": list(self.warnings),
        }


def validate(
    fp32: Model,
    quantized: Model,
    data: Dataset | str | Path,
    *,
    labels: str | Path | None = None,
    preprocess: Preprocess | str | Path | None = None,
    limit: int | None = None,
    outputs: Sequence[str] | None = None,
    batch_size: int = 32,
    latency_batch: int = 1,
    repeats: int = 50,
    threads: int | None = None,
    device: str = "cpu",
    report: Callable[[int, int], None] | None = None,
) -> ValidationResult:
    """Compare a quantized model with the float model it was made from, both at ONNX Runtime's default level.

    Args:
        fp32: The float model.
        quantized: The quantized model, of this package or another.
        data: A folder of images or arrays of ready inputs (see :func:`mrecg_onnx.data.opening.open_validation`), or a data
            set that is already open.
        labels: CSV of ``file,label`` for images, ``.npy`` of one class a row for arrays. By default labels are read from
            folder names, or from an array called y or labels in an ``.npz``; the word "none": there are none.
        preprocess: How images become inputs, also by name or from a file (:mod:`mrecg_onnx.data.profiles`); by default what the
            quantized file's metadata says, else a file beside the float model. Without either ImageNet's mean and deviation
            are assumed for files of other tools, with a warning, and not for one of ours, which was calibrated on arrays.
        limit: Use at most so many images, spread evenly.
        outputs: Names of the outputs to compare, all by default; the model's order is kept. Labels belong to the one that holds
            class scores, or to the first that is ``[N, classes]``.
        batch_size: Images at a time, >= 1; a model's fixed batch goes before it.
        latency_batch: Images a timed run, >= 1; a model's fixed batch goes before it.
        repeats: Timed runs of each model; 0 leaves latency out.
        threads: ONNX Runtime's threads inside an operator, its own choice by default.
        device: a row of :data:`mrecg_onnx.runtimes.runtime.PROVIDERS`; what its provider leaves to the CPU is among the warnings.
        report: Called with (images done, images in all) after every batch.

    Returns:
        Everything measured; images are read once and nothing but counts is kept of them.

    Raises:
        ModelError: A model cannot be opened or run, gives NaN or Inf, or the two do not belong together: their inputs
            or outputs differ, or the quantized file says it was made from another one. (Only a file or its bytes can
            be recognized; a float model given as ModelProto is compared by inputs and outputs alone.)
        DataError: The data cannot be read, or its labels exceed the model's classes.
        SettingsError: Nothing says how images become inputs, a setting is out of range, ``outputs`` names one that is not
            there, ``device`` is not there or runs
            nothing, or ``labels``, ``preprocess`` or ``limit`` come with a data set that is already open.
    """
    if latency_batch < 1 or repeats < 0:
        raise SettingsError(f"latency of {repeats} runs with {latency_batch} images: give >= 0 runs and >= 1 images")
    with joined("cpu") as workers:
        return _validate(
            fp32,
            quantized,
            data,
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
            report=report if workers.first else None,
        )


def _validate(
    fp32: Model,
    quantized: Model,
    data: Dataset | str | Path,
    workers: Workers,
    *,
    labels: str | Path | None,
    preprocess: Preprocess | None,
    limit: int | None,
    outputs: Sequence[str] | None,
    batch_size: int,
    latency_batch: int,
    repeats: int,
    threads: int | None,
    device: str,
    report: Callable[[int, int], None] | None,
) -> ValidationResult:
    names = describe(fp32, "the FP32 model"), describe(quantized, "the quantized model")
    sessions = {
        name: open_session(model, threads=threads, device=device)
        for name, model in zip(("fp32", "quantized"), (fp32, quantized), strict=True)
    }
    _check_source(fp32, sessions, names)
    _check_interface(sessions, names)
    specs = input_specs(sessions["quantized"])
    notes: tuple[str, ...] = ()
    if isinstance(data, Dataset):
        if labels is not None or preprocess is not None or limit is not None:
            raise SettingsError("labels, preprocess and limit belong to the opening of data: it is already open")
        _check_feeds(data, specs)
        dataset = data
    else:
        preprocess, notes = _image_preprocess(preprocess, sessions["quantized"], names[1], fp32, data)
        dataset = open_validation(data, specs, preprocess, labels, limit)

    dataset = dataset.shard(workers.rank, workers.size) if workers.size > 1 else dataset
    tally = _Tally(names, dataset, chosen_outputs(sessions["fp32"], outputs, names[0]), _heads(fp32))
    watch = Watch(calibrated_ranges(_metadata(sessions["quantized"]), quantized, names[1]))
    rows = fixed_batch(sessions["fp32"]) or fixed_batch(sessions["quantized"]) or latency_batch
    for feeds, indices in dataset.batches(batch_size):
        watch.add(feeds)
        tally.add(indices, *(run_padded(session, feeds) for session in sessions.values()))
        tally.keep_rows(feeds, rows if repeats or device != "cpu" else 0)
        logger.info("validated %d of %d images", tally.images, len(dataset))
        if report is not None:
            report(tally.images, len(dataset))
    skipped = tuple(
        entry for part in workers.gather([f"{path} ({reason})" for path, reason in dataset.skipped]) for entry in part
    )
    check_lost(skipped, dataset.whole)
    tally.join(workers)
    watch.join(workers)
    if not tally.images:
        raise DataError("there is no image to validate on")

    def measure() -> dict[str, float]:
        return medians(latency(sessions, tally.rows(rows), repeats)) if repeats else {}

    def placed() -> tuple[str, ...]:
        if device == "cpu":
            return ()
        said = []
        for model, name in zip((fp32, quantized), names, strict=True):
            found = kernels(model, tally.rows(rows), threads, device, runs=1)
            check_provider(found, device, name)
            said += [f"{name} is not all on {device}: {others}" for others in [elsewhere(found, device)] if others]
        return tuple(said)

    left = workers.once(placed)
    seconds = workers.once(measure)  # the others wait: timings beside working processes mean nothing
    reports = [
        ModelReport(name, size_bytes(model), *tally.accuracies(i), seconds.get(key))
        for i, (key, model, name) in enumerate(zip(sessions, (fp32, quantized), names, strict=True))
    ]
    drop = reports[0].top1.value - reports[1].top1.value if reports[0].top1 and reports[1].top1 else None
    p = mcnemar_p(*tally.right(1)) if tally.has_accuracy else None
    said = [*notes, *watch.warnings(images=dataset.preprocess is not None), *tally.warnings(reports[0].top1), *left]
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
        warnings=(*said, *gain_warnings(drop, p)),
        top1_right=tally.right(1) if tally.has_accuracy else None,
    )


def gain_warnings(drop: float | None, p: float | None) -> tuple[str, ...]:
    """A sentence where the quantized model is clearly better than the float model it was made from."""
    if drop is None or p is None or drop > -CLEAR_GAIN or p > CLEAR_P:
        return ()
    said = f"the FP32 model is {-100 * drop:.1f} points of top-1 worse than its quantized version (p = {p:.2g})"
    return (f"{said}: both are likely fed what they were not made for; check preprocessing and labels",)


def source_sha256(model: Model) -> str | None:
    """The fingerprint by which a quantized file names its float model.

    Args:
        model: A file or its bytes.

    Returns:
        SHA-256 over the bytes of the ``.onnx`` file (external data not included), in hexadecimal; None for a
        ModelProto, whose serialization is not unique.
    """
    if isinstance(model, bytes):
        return hashlib.sha256(model).hexdigest()
    if not isinstance(model, (str, Path)):
        return None
    digest = hashlib.sha256()
    with Path(model).open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass
class _Tally:
    """What is kept of the outputs while the data set goes by: a few numbers a batch, whatever the outputs' size."""

    names: tuple[str, str]
    dataset: Dataset
    outputs: tuple[str, ...]
    heads: Heads
    images: int = 0
    sums: dict[str, OutputSums] = field(default_factory=dict)
    # What the float model's outputs [N, k] are like, and in which rows both have the largest value at the same place.
    found: dict[str, Scores] = field(default_factory=dict)
    labelled: str | None = None
    _same: dict[str, list[npt.NDArray[np.bool_]]] = field(default_factory=dict)
    _right: dict[int, list[npt.NDArray[np.bool_]]] = field(default_factory=lambda: {1: [], _GUESSES: []})
    _rows: list[Mapping[str, Array]] = field(default_factory=list)
    _row_count: int = 0

    def add(self, indices: npt.NDArray[np.int64], fp32: dict[str, Array], quantized: dict[str, Array]) -> None:
        """Take in the outputs of one batch."""
        logits: dict[str, tuple[Array, Array]] = {}
        for name in self.outputs:
            r, q = fp32[name], quantized[name]
            if r.dtype.kind == "f":
                self._check_finite(indices, name, r, q)
            if r.shape != q.shape:
                shapes = f"{list(q.shape)} instead of {list(r.shape)}"
                raise ModelError(f"{self.names[1]} is not a quantized version of {self.names[0]}: {name!r} is {shapes}")
            add_sums(self.sums, {name: OutputSums.of(r, q)})
            ours, theirs = two_axes(r), two_axes(q)
            if ours is None or theirs is None:
                continue
            logits[name] = ours, theirs
            self.found.setdefault(name, Scores(ours.shape[1])).add(ours)
            self._same.setdefault(name, []).append(ours.argmax(1) == theirs.argmax(1))
        self.images += len(indices)
        if self.dataset.labels is None or not logits:
            return
        if self.labelled is None:  # the first batch decides
            self.labelled = self._by_rule() or next(iter(logits))
        labels = self._labels(indices, self.labelled, self.found[self.labelled].columns)
        for k, right in self._right.items():
            right.append(np.stack([topk_correct(y, labels, k) for y in logits[self.labelled]]))

    def _by_rule(self) -> str | None:
        return scores_of(self.found, [name for name, sums in self.sums.items() if sums.floating], self.heads)

    @property
    def scores(self) -> str | None:
        """The output that is held against labels, or that holds class scores without any."""
        return self.labelled or self._by_rule()

    def _labels(self, indices: npt.NDArray[np.int64], output: str, classes: int) -> npt.NDArray[np.int64]:
        labels = self.dataset.labels
        assert labels is not None
        if not self.has_accuracy:  # all of them, before the first batch counts
            others = "; --outputs NAME chooses another output" if len(self.outputs) > 1 else ""
            source = f"{self.dataset.labels_source}{others}"
            check_classes(labels, classes, output, source, lambda i: _origin(self.dataset, i))
        return labels[indices]

    def _check_finite(self, indices: npt.NDArray[np.int64], name: str, *outputs: Array) -> None:
        for model, y in zip(self.names, outputs, strict=True):
            finite = np.isfinite(y.reshape(len(y), -1)).all(axis=1)
            if not finite.all():
                where = _origin(self.dataset, int(indices[finite.argmin()]))
                raise ModelError(f"{model}: output {name!r} holds NaN or Inf for {where}")

    def keep_rows(self, feeds: Mapping[str, Array], count: int) -> None:
        """Keep inputs until there are ``count`` rows to time the models on."""
        if self._row_count < count:
            self._rows.append(feeds)
            self._row_count += len(next(iter(feeds.values())))

    def join(self, workers: Workers) -> None:
        """Put together what all processes counted, each on its share of the images."""
        parts = workers.gather((self.images, self.sums, self.found, self._same, self._right, self.labelled))
        if len(parts) == 1:
            return
        self.images = sum(part[0] for part in parts)
        self.sums, self.found, self._same = {}, {}, {}
        for _, sums, found, same, _, _ in parts:
            add_sums(self.sums, sums)
            for name, scores in found.items():
                self.found[name] = self.found[name].merge(scores) if name in self.found else scores
                self._same.setdefault(name, []).extend(same[name])
        self._right = {k: [right for part in parts for right in part[4][k]] for k in self._right}
        self.labelled = next((part[5] for part in parts if part[5] is not None), None)

    def rows(self, count: int) -> dict[str, Array]:
        """Inputs of exactly ``count`` rows, repeated where the data set has fewer."""
        chosen = np.arange(count) % self._row_count
        return {name: np.concatenate([feeds[name] for feeds in self._rows])[chosen] for name in self._rows[0]}

    @property
    def has_accuracy(self) -> bool:
        return bool(self._right[1])

    def right(self, k: int) -> npt.NDArray[np.bool_]:
        """Which images each model gets right with ``k`` guesses, shape ``[2, N]``."""
        return np.concatenate(self._right[k], axis=1)

    @property
    def classes(self) -> int | None:
        """Columns of :attr:`scores`."""
        return self.found[self.scores].columns if self.scores is not None else None

    def accuracies(self, model: int) -> tuple[Accuracy | None, Accuracy | None]:
        """Top-1 and top-5 of model 0 (float) or 1 (quantized)."""
        if not self.has_accuracy or self.classes is None:
            return None, None
        top5 = Accuracy.of(self.right(_GUESSES)[model]) if self.classes > _GUESSES else None
        return Accuracy.of(self.right(1)[model]), top5

    def agreement(self) -> float | None:
        return float(np.concatenate(self._same[self.scores]).mean()) if self.scores is not None else None

    def warnings(self, top1: Accuracy | None) -> tuple[str, ...]:
        """What a reader of the numbers has to know; ``top1`` is the float model's."""
        if not self.found:
            return ("no output is [N, classes]: there is no accuracy and no agreement",)
        if self.classes is None:
            choose = ", or choose the scores with --outputs NAME" if len(self.outputs) > 1 else ""
            shapes = " and ".join(f"{name!r} [N, {scores.columns}]" for name, scores in self.found.items())
            said = f"nothing says that {shapes} holds class scores: there is no accuracy and no agreement; give labels{choose}"
            return (said,)
        if top1 is not None and top1.low <= 1 / self.classes:
            said = f"{top1.value:.4f} of the images right among {self.classes} classes"
            return (f"the FP32 model is no better than chance ({said}): labels or preprocessing do not fit it",)
        return ()


def chosen_outputs(session: ort.InferenceSession, wanted: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Names of the outputs to compare, in the model's order.

    Raises:
        SettingsError: one is not there, or none is named.
    """
    names = [node.name for node in session.get_outputs()]
    if wanted is None:
        return tuple(names)
    if not wanted:
        raise SettingsError(f"no output is named: {where} has {', '.join(names)}")
    for name in wanted:
        if name not in names:
            near = get_close_matches(name, names, n=3, cutoff=0.4) or names
            raise SettingsError(f"--outputs {name}: {where} has no such output; did you mean {', '.join(near)}?")
    return tuple(name for name in names if name in set(wanted))


def _heads(model: Model) -> Heads:
    if isinstance(model, onnx.ModelProto):
        return Heads.of_model(model)
    if isinstance(model, bytes):
        return Heads.of_model(onnx.load_model_from_string(model))
    return Heads.of_model(onnx.load(model, load_external_data=False))


def _check_source(fp32: Model, sessions: Mapping[str, ort.InferenceSession], names: tuple[str, str]) -> None:
    source = _metadata(sessions["quantized"]).get(SOURCE_KEY)
    if source is None and SOURCE_KEY in _metadata(sessions["fp32"]):
        raise ModelError(f"{names[0]} is a quantized model: give the FP32 model first and the quantized one second")
    actual = source_sha256(fp32)
    if source is not None and actual is not None and source != actual:
        raise ModelError(
            f"{names[1]} was made from another model than {names[0]} "
            f"(SHA-256 {source[:12]}..., this file's is {actual[:12]}...): give the one it was made from"
        )


def _check_interface(sessions: Mapping[str, ort.InferenceSession], names: tuple[str, str]) -> None:
    fp32, quantized = sessions["fp32"], sessions["quantized"]
    for kind, wanted, got in (
        ("inputs", fp32.get_inputs(), quantized.get_inputs()),
        ("outputs", fp32.get_outputs(), quantized.get_outputs()),
    ):
        ours = {node.name: node for node in got}
        same = len(wanted) == len(got) and all(
            node.name in ours and _compatible(node, ours[node.name]) for node in wanted
        )
        if not same:
            raise ModelError(
                f"{names[1]} is not a quantized version of {names[0]}: "
                f"its {kind} are {_signature(got)}, not {_signature(wanted)}"
            )


def _compatible(a: ort.NodeArg, b: ort.NodeArg) -> bool:
    """Same type and shape; a symbolic size fits any, and so does a shape that nothing is known about."""
    if a.type != b.type:
        return False
    if not a.shape or not b.shape:
        return True
    fits = (not isinstance(m, int) or not isinstance(n, int) or m == n for m, n in zip(a.shape, b.shape, strict=False))
    return len(a.shape) == len(b.shape) and all(fits)


def _signature(nodes: list[ort.NodeArg]) -> str:
    def one(node: ort.NodeArg) -> str:
        shape = ", ".join("?" if size is None else str(size) for size in node.shape)
        return f"{node.name!r} {node.type.removeprefix('tensor(').rstrip(')')} ({shape})"

    return " and ".join(one(node) for node in nodes)


def _check_feeds(dataset: Dataset, specs: list[InputSpec]) -> None:
    if {spec.name for spec in dataset.inputs} != {spec.name for spec in specs}:
        have, want = (" and ".join(repr(spec.name) for spec in some) for some in (dataset.inputs, specs))
        raise DataError(f"the data feeds {have}, the models take {want}")


def stored_preprocess(session: ort.InferenceSession, name: str) -> Preprocess | None:
    """How the images of the open quantized model ``name`` are prepared, by its metadata; None where they do not say.

    Raises:
        ModelError: The metadata are there and do not fit this version.
    """
    stored = _metadata(session).get(PREPROCESS_KEY)
    if stored is None:
        return None
    try:
        return Preprocess.from_json(json.loads(stored))
    except (ValueError, RecursionError, SettingsError) as error:
        raise ModelError(f"{name}: metadata {PREPROCESS_KEY} cannot be used: {error}") from error


def _image_preprocess(
    given: Preprocess | None, session: ort.InferenceSession, name: str, fp32: Model, data: str | Path
) -> tuple[Preprocess, tuple[str, ...]]:
    """How images become inputs of the open quantized model ``name``, and what had to be assumed for that."""
    if not holds_images(data):
        return given or Preprocess(), ()
    chosen = given or stored_preprocess(session, name) or beside(fp32) or Preprocess()
    metadata, specs = _metadata(session), input_specs(session)
    if PREPROCESS_KEY in metadata or chosen.normalizes or any(spec.dtype == np.uint8 for spec in specs):
        return chosen, ()
    if VERSION_KEY in metadata:
        require_numbers(chosen, specs, f"{name} was calibrated on arrays, and {data} holds images")
    said = f"{name} does not say how images become its inputs: ImageNet's mean and deviation are assumed"
    return chosen, (f"{said}; say it with --preprocess imagenet|unit|raw|FILE, or --mean, --std and --scale",)


def _metadata(session: ort.InferenceSession) -> dict[str, str]:
    return dict(session.get_modelmeta().custom_metadata_map)


def size_bytes(model: Model) -> int:
    """Bytes of the file and of the external data of its initializers."""
    if isinstance(model, bytes):
        return len(model)
    if not isinstance(model, (str, Path)):
        return int(model.ByteSize())
    values = (value.const_value for value in ir.load(model).graph.initializers.values())
    beside = {Path(tensor.path) for tensor in values if isinstance(tensor, ir.ExternalTensor)}
    return Path(model).stat().st_size + sum(path.stat().st_size for path in beside)


def _origin(dataset: Dataset, index: int) -> str:
    return str(dataset.files[index]) if dataset.files is not None else f"row {index}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
