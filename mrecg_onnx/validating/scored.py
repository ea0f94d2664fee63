"""Both models by the metric that was asked for, while their outputs go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mrecg_onnx.measures import Scorer

if TYPE_CHECKING:
    from mrecg_onnx.data import Dataset
    from mrecg_onnx.machine import Workers
    from mrecg_onnx.measures import Metric

__all__ = ["Scored"]


@dataclass
class Scored:
    """A scorer for each model; none without a metric."""

    scorers: tuple[Scorer, ...]
    dataset: Dataset
    outputs: Sequence[str]
    workers: Workers

    @classmethod
    def of(
        cls,
        metric: Metric | None,
        names: Sequence[str],
        dataset: Dataset,
        outputs: Sequence[str],
        workers: Workers,
    ) -> Scored:
        """For the models called ``names``."""
        if metric is None:
            return cls((), dataset, outputs, workers)
        several = workers.size > 1
        return cls(
            tuple(Scorer(metric, name, dataset.whole, held=several) for name in names), dataset, outputs, workers
        )

    def add(self, indices: npt.NDArray[np.int64], *made: Mapping[str, Any]) -> None:
        """Take in a batch: the outputs of each model."""
        if not self.scorers:
            return
        targets = self.dataset.targets_of(indices)
        places = indices * self.workers.size + self.workers.rank  # of a share every so many are this process's
        for scorer, outputs in zip(self.scorers, made, strict=True):
            scorer.add(places, {name: outputs[name] for name in self.outputs}, targets)

    def join(self) -> None:
        """Put together what all processes saw."""
        for scorer in self.scorers:
            scorer.join(self.workers)

    def values(self) -> tuple[float | None, ...]:
        """What each model is worth; None without a metric."""
        return tuple(scorer.value() for scorer in self.scorers) or (None, None)
