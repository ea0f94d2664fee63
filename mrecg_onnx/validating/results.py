"""What validation finds: an accuracy, a report on each model, and both side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mrecg_onnx.converters.results import Pictured
from mrecg_onnx.converters.text import counted
from mrecg_onnx.data import Data, Labels, Preprocess
from mrecg_onnx.machine import byte_size, milliseconds, points, ratio
from mrecg_onnx.measures import Metric, wilson_interval
from mrecg_onnx.running import Model, is_noise, is_wide
from mrecg_onnx.validating.layer_errors import LayerErrors

__all__ = ["Accuracy", "Asked", "ModelReport", "ValidationResult"]


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

    def __str__(self) -> str:
        """``97.38% (95.9% to 98.4%)``."""
        return f"{self.value:.2%} ({self.low:.1%} to {self.high:.1%})"

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
        score: by the metric that was asked for; None without one.
    """

    name: str
    size_bytes: int
    top1: Accuracy | None
    top5: Accuracy | None
    latency_s: float | None
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict that ``json.dumps`` takes."""
        return {
            "name": self.name,
            "size_bytes": self.size_bytes,
            "top1": self.top1 and self.top1.to_json(),
            "top5": self.top5 and self.top5.to_json(),
            "latency_s": self.latency_s,
            **({"score": self.score} if self.score is not None else {}),
        }


class Asked(NamedTuple):
    """What :func:`mrecg_onnx.validate` was called with, so that a page can be made of the same."""

    fp32: Model
    quantized: Model
    data: Data
    labels: Labels | None
    limit: int | None


@dataclass(frozen=True, repr=False)
class ValidationResult(Pictured):
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
        layers: every layer against the float model's; None where that was not asked for.
        metric: the metric that was asked for; None without one.
        asked: models and data as they were given; not in :meth:`to_json`.
        speedup_interval: between what :attr:`speedup` lies with 95 %, by sittings; None where no latency was asked for.
        differing: places in the data of the images on which the largest of :attr:`scores` differs, shape ``[images]``, ascending;
            None where no output holds class scores. Not in :meth:`to_json`.
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
    layers: LayerErrors | None = field(default=None, repr=False)
    metric: Metric | None = None
    asked: Asked | None = field(default=None, repr=False, compare=False)
    speedup_interval: tuple[float, float] | None = None
    differing: npt.NDArray[np.int64] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """What a user decides by: accuracy with its interval, agreement, size and time of both, and warnings."""
        fp32, quantized = self.fp32, self.quantized
        lines = [f"{quantized.name} against {fp32.name} on {counted(self.images, 'image')}"]
        for name, before, after in (("top-1", fp32.top1, quantized.top1), ("top-5", fp32.top5, quantized.top5)):
            if before is not None and after is not None:
                change = points(after.value - before.value)
                lines.append(f"{name}: {after}, FP32 {before}, {change}")
        if self.metric is not None and fp32.score is not None and quantized.score is not None:
            both, change = (fp32.score, quantized.score), self.metric.change(fp32.score, quantized.score)
            own, floating = (self.metric.text(score, both) for score in reversed(both))
            lines.append(f"{self.metric.name}: {own}, FP32 {floating}, {change}")
        if self.agreement is not None:
            lines.append(f"agreement: {self.agreement:.2%} of the predictions")
        if not math.isnan(self.sqnr_db):
            lines.append(f"SQNR: {self.sqnr_db:.1f} dB")
        lines.append(f"size: {byte_size(quantized.size_bytes)}, FP32 {byte_size(fp32.size_bytes)}")
        if fp32.latency_s is not None and quantized.latency_s is not None:
            times = f"{milliseconds(quantized.latency_s)} ms, FP32 {milliseconds(fp32.latency_s)} ms"
            lines.append(f"latency, batch {self.latency_batch}: {times}{self._factor()}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def _factor(self) -> str:
        """Which is faster, where runs say it."""
        if self.speedup is None:
            return ""
        if self.speedup_is_wide:
            return ", too noisy to say which is faster"
        return f", {'the same within noise' if self.speedup_is_noise else ratio(self.speedup, 1.0, 'faster', 'slower')}"

    @property
    def sqnr_db(self) -> float:
        """The worst output's ratio, in dB; ``nan`` where no output is float."""
        return min(self.sqnr_by_output.values(), default=math.nan)

    @property
    def score_drop(self) -> float | None:
        """How much worse the quantized model is by :attr:`metric`, in the metric's own unit; None without one."""
        if self.metric is None or self.fp32.score is None or self.quantized.score is None:
            return None
        return self.metric.loss(self.fp32.score, self.quantized.score)

    @property
    def speedup(self) -> float | None:
        """How many times faster the quantized model is, by the medians; None where no latency was asked for."""
        if self.fp32.latency_s is None or self.quantized.latency_s is None:
            return None
        return self.fp32.latency_s / self.quantized.latency_s

    @property
    def speedup_is_noise(self) -> bool:
        """Tell whether runs do not say which model is faster."""
        return is_noise(self.speedup_interval)

    @property
    def speedup_is_wide(self) -> bool:
        """Tell whether :attr:`speedup` is no figure: the ends of its interval are further apart than a factor of 1.5."""
        return is_wide(self.speedup_interval)

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
            "speedup_interval": self.speedup_interval and list(self.speedup_interval),
            "provider": self.provider,
            "latency_batch": self.latency_batch,
            "op_counts": dict(self.op_counts),
            "preprocess": self.preprocess and self.preprocess.to_json(),
            "warnings": list(self.warnings),
            **({"metric": self._metric_json()} if self.metric is not None else {}),
            **({"layers": [entry.to_json() for entry in self.layers.worst_first]} if self.layers is not None else {}),
        }

    def _metric_json(self) -> dict[str, Any]:
        assert self.metric is not None
        return {
            **self.metric.to_json(),
            "fp32": self.fp32.score,
            "quantized": self.quantized.score,
            "drop": self.score_drop,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
