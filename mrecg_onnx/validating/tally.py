"""What is counted of both models' outputs while a data set goes by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.data import Dataset, check_classes
from mrecg_onnx.machine import Workers
from mrecg_onnx.measures import (
    Heads,
    OutputSums,
    Scores,
    add_sums,
    as_numbers,
    named_detections,
    scores_of,
    topk_correct,
    two_axes,
)
from mrecg_onnx.validating.results import Accuracy
from mrecg_onnx.validating.worth import guesses

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Tally"]

Array: TypeAlias = npt.NDArray[Any]
_GUESSES = 5
# Targets that tell what all are like.
_LOOKED_AT = 8


@dataclass
class Tally:
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
    # Places in the whole data set of those that are not.
    _differing: dict[str, list[npt.NDArray[np.int64]]] = field(default_factory=dict)
    _right: dict[int, list[npt.NDArray[np.bool_]]] = field(default_factory=lambda: {1: [], _GUESSES: []})
    # The first targets are: None where none were seen.
    _one_hot: bool | None = None
    # What is wrong with the targets, once they were seen.
    _doubts: tuple[str, ...] = ()
    _rows: list[Mapping[str, Array]] = field(default_factory=list)
    _row_count: int = 0

    def add(
        self,
        indices: npt.NDArray[np.int64],
        fp32: dict[str, Array],
        quantized: dict[str, Array],
        places: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Take in the outputs of one batch; ``places`` are those in the whole data set where this is a share of it."""
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
            same = ours.argmax(1) == theirs.argmax(1)
            self._same.setdefault(name, []).append(same)
            self._differing.setdefault(name, []).append((indices if places is None else places)[~same])
        self.images += len(indices)
        if self.dataset.labels is None and logits and self._one_hot is None:
            targets = self.dataset.targets_of(indices[:_LOOKED_AT]) or ()
            self._one_hot = len(targets) > 0 and all(map(_is_one_hot, targets))
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
        handed = self.dataset.labels_handed
        if not self.has_accuracy:  # all of them, before the first batch counts
            others = "; --outputs NAME chooses another output" if len(self.outputs) > 1 else ""
            source = f"{self.dataset.labels_source}{others}"
            check_classes(labels, classes, output, source, lambda i: _origin(self.dataset, i), handed=handed)
        chosen = labels[indices]
        # Of data that go by, labels are known with the batch.
        check_classes(
            chosen,
            classes,
            output,
            self.dataset.labels_source,
            lambda i: _origin(self.dataset, int(indices[i])),
            handed=handed,
        )
        return chosen

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
        parts = workers.gather(
            (
                self.images,
                self.sums,
                self.found,
                self._same,
                self._right,
                self.labelled,
                self._differing,
                self.dataset.doubts,
            )
        )
        self._doubts = next((part[7] for part in parts if part[7]), ())
        if len(parts) == 1:
            return
        self.images = sum(part[0] for part in parts)
        self.sums, self.found, self._same, self._differing = {}, {}, {}, {}
        for _, sums, found, same, _, _, differing, _ in parts:
            add_sums(self.sums, sums)
            for name, scores in found.items():
                self.found[name] = self.found[name].merge(scores) if name in self.found else scores
                self._same.setdefault(name, []).extend(same[name])
                self._differing.setdefault(name, []).extend(differing[name])
        self._right = {k: [right for part in parts for right in part[4][k]] for k in self._right}
        self.labelled = next((part[5] for part in parts if part[5] is not None), None)

    def rows(self, count: int) -> dict[str, Array]:
        """Inputs of exactly ``count`` rows, repeated where the data set has fewer."""
        chosen = np.arange(count) % self._row_count
        return {name: np.concatenate([feeds[name] for feeds in self._rows])[chosen] for name in self._rows[0]}

    @property
    def has_accuracy(self) -> bool:
        """There are labels, and an output to hold against them."""
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
        """Share of images with the largest of :attr:`scores` at the same place; None without scores."""
        return float(np.concatenate(self._same[self.scores]).mean()) if self.scores is not None else None

    def differing(self) -> npt.NDArray[np.int64] | None:
        """Places in the data of the images on which :attr:`scores` have it elsewhere, ascending; None without scores."""
        return np.sort(np.concatenate(self._differing[self.scores])) if self.scores is not None else None

    def warnings(self, top1: Accuracy | None, *, unasked: bool) -> tuple[str, ...]:
        """What a reader of the numbers has to know.

        Args:
            top1: the float model's.
            unasked: nobody said that there are no labels.
        """
        if not self.found:
            boxes = "; --metric mAP with --labels BOXES.json counts boxes" if named_detections(self.outputs) else ""
            return (*self._doubts, f"no output is [N, classes]: there is no accuracy and no agreement{boxes}")
        if top1 is None and self._one_hot:
            return ("labels are one-hot: agreement only, no accuracy; give class indices, labels.argmax(1)",)
        if self.classes is None:
            choose = ", or choose the scores with --outputs NAME" if len(self.outputs) > 1 else ""
            shapes = " and ".join(f"{name!r} [N, {scores.columns}]" for name, scores in self.found.items())
            said = f"nothing says that {shapes} holds class scores: there is no accuracy and no agreement; give labels{choose}"
            return (*self._doubts, said)
        if unasked and top1 is None and self.dataset.targets_of([]) is None:
            return ("no labels: agreement only, no accuracy; give labels (--labels FILE)",)
        return (*self._doubts, *guesses(None if top1 is None else top1.value, self.images, self.classes))


def _is_one_hot(target: Any) -> bool:
    """Whether it is a row of zeros with one 1 among them."""
    values = as_numbers(target)
    if values is None or values.ndim != 1 or len(values) < 2:
        return False
    return bool(np.count_nonzero(values) == 1 and values.max() == 1)


def _origin(dataset: Dataset, index: int) -> str:
    return str(dataset.files[index]) if dataset.files is not None else f"row {index}"
