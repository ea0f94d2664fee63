"""Which output of a model holds class scores, so that its largest value may be called a prediction (docs/method.md 20).

A tensor [N, k] may as well be a reconstruction, an embedding, boxes or keypoints. Without labels an output counts as class scores

* where every row holds probabilities: none negative, sum 1; or
* where the graph ends there as classifiers end (a weighted layer, or the mean over positions of one, with nothing but views
  behind; no Sigmoid, no normalization), it does not have as many values as an input (a reconstruction), it is the only float
  output looked at (or all are such heads of the same classes), and its values behave like logits: the largest of a row stands
  out, and is not at the same place in every row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mrecg_onnx.measures.metrics import agreement, sqnr_db

if TYPE_CHECKING:  # torch takes seconds to load, onnx half of one
    import onnx

    from mrecg_onnx.network import Network

__all__ = ["Heads", "Scores", "likeness", "prediction_output", "scores_of", "two_axes"]

#: Rows of probabilities sum to 1 but for so much: half precision keeps three digits.
SUM_TOLERANCE = 5e-3
#: The largest of a row of logits exceeds the row's mean by this much on average: 1.6 times as likely as the mean class.
STANDS_OUT = 0.5
#: From so many rows on the largest value has to be at another place in one of them: in boxes and keypoints it never is.
ROWS = 8
_VIEWS = frozenset({
    "Cast", "DequantizeLinear", "Dropout", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Unsqueeze",
})  # fmt: skip
_MEANS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"})
_CLAMPS = frozenset({"Clip", "Relu"})
_HEADS = frozenset({"Conv", "Gemm", "MatMul"})


def two_axes(values: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """[N, k] of a float output with k > 1, None of any other. Older exports end in [N, k, 1, 1]."""
    if values.ndim < 2 or values.dtype.kind != "f" or values.shape[1] < 2 or math.prod(values.shape[2:]) != 1:
        return None
    return values.reshape(values.shape[:2])


@dataclass(frozen=True)
class Heads:
    """How a graph ends.

    Attributes:
        logits: outputs that come straight from a weighted layer.
        sizes: values of one sample of each input, where they are known.
    """

    logits: frozenset[str]
    sizes: frozenset[int] = frozenset()

    @classmethod
    def of_model(cls, model: onnx.ModelProto) -> Heads:
        """Of a model, float or quantized."""
        makers = {made: (n.op_type, tuple(n.input)) for n in model.graph.node for made in n.output}
        names = [value.name for value in model.graph.output]
        constants = {tensor.name for tensor in model.graph.initializer}
        shapes = [v.type.tensor_type.shape.dim[1:] for v in model.graph.input if v.name not in constants]
        sizes = {math.prod(d.dim_value for d in shape) for shape in shapes}
        return cls(frozenset(n for n in names if _is_head(makers, n)), frozenset(sizes - {0}))

    @classmethod
    def of_network(cls, network: Network, batch: Mapping[str, Any]) -> Heads:
        """Of the graph in torch; ``batch`` holds inputs, [N, ...] by name."""
        arguments = {step.node: tuple(a or "" for a in step.arguments) for step in network.steps}
        makers = {made: (s.op, arguments[s.node]) for s in network.steps for made in s.outputs}
        sizes = {math.prod(x.shape[1:]) for x in batch.values()}
        return cls(frozenset(n for n in network.outputs if _is_head(makers, n)), frozenset(sizes))


def _is_head(makers: Mapping[str, tuple[str, tuple[str, ...]]], name: str) -> bool:
    """``name`` comes straight from a weighted layer, through views, a bias and the mean over positions."""
    averaged = False
    while name in makers:
        op, inputs = makers[name]
        if op in _HEADS or op == "LogSoftmax":
            return True
        behind = [n for n in inputs if n in makers]
        if op == "Add" and len(behind) == 1:
            name = behind[0]
        elif op in _VIEWS or op in _MEANS or (averaged and op in _CLAMPS):
            averaged, name = averaged or op in _MEANS, inputs[0]
        else:
            return False
    return False


def prediction_output(outputs: Mapping[str, npt.NDArray[Any]], heads: Heads) -> str | None:
    """The one of a float model's ``outputs`` that holds class scores, by :func:`scores_of`."""
    found = {name: Scores.of(rows) for name, x in outputs.items() if (rows := two_axes(x)) is not None}
    return scores_of(found, [name for name, x in outputs.items() if x.dtype.kind == "f"], heads)


@dataclass
class Scores:
    """What is kept of one output's rows to tell what they are."""

    columns: int
    rows: int = 0
    least: float = math.inf
    deviation: float = 0.0
    lead: float = 0.0
    places: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Scores:
        """Of an output that :func:`two_axes` takes."""
        found = cls(values.shape[1])
        found.add(values)
        return found

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take in [N, columns]."""
        if not len(values):
            return
        x = values.astype(np.float64)
        self.rows += len(x)
        self.least = min(self.least, float(x.min()))
        self.deviation = max(self.deviation, float(np.abs(x.sum(1) - 1).max()))
        self.lead += float((x.max(1) - x.mean(1)).sum())
        self.places |= {int(i) for i in np.unique(x.argmax(1))[:2]}

    def merge(self, other: Scores) -> Scores:
        """Of the rows of both."""
        return Scores(
            self.columns,
            self.rows + other.rows,
            min(self.least, other.least),
            max(self.deviation, other.deviation),
            self.lead + other.lead,
            self.places | other.places,
        )

    @property
    def probabilities(self) -> bool:
        """Every row is a distribution."""
        return self.rows > 0 and self.least >= 0 and self.deviation <= SUM_TOLERANCE

    @property
    def logits(self) -> bool:
        """The largest value of a row stands out, and not always at the same place."""
        varied = len(self.places) > 1 or self.rows < ROWS
        return self.rows > 0 and varied and self.lead / self.rows >= STANDS_OUT


def scores_of(found: Mapping[str, Scores], floats: Sequence[str], heads: Heads) -> str | None:
    """The output that holds class scores, None where none does without doubt.

    Args:
        found: the outputs [N, k] with what their rows are like.
        floats: all float outputs looked at, in order.
        heads: how the float model's graph ends.
    """
    sure = next((name for name, scores in found.items() if scores.probabilities), None)
    if sure is not None:
        return sure
    like = [n for n, s in found.items() if n in heads.logits and s.columns not in heads.sizes and s.logits]
    same = len({found[n].columns for n in like}) == 1
    return like[0] if like and same and len(like) == len(floats) else None


def likeness(
    reference: Mapping[str, npt.NDArray[Any]], found: Mapping[str, npt.NDArray[Any]], heads: Heads
) -> tuple[float | None, dict[str, float]]:
    """How like two runs of one network are.

    Args:
        reference: outputs ``[N, ...]`` by name.
        found: the same of another run, which may have made fewer items.
        heads: what the graph says of its outputs.

    Returns:
        The share of equal predictions, None where no output holds class scores, and SQNR in dB of every float output, the
        worst first.
    """
    rows = min(len(array) for array in found.values())
    pairs = {name: (array[:rows], found[name][:rows]) for name, array in reference.items()}
    figures = {n: sqnr_db(x, y.astype(x.dtype)) for n, (x, y) in pairs.items() if x.dtype.kind == "f"}
    scores = prediction_output(reference, heads)
    same = agreement(*(x.reshape(rows, -1) for x in pairs[scores])) if scores is not None else None
    return same, dict(sorted(figures.items(), key=lambda entry: entry[1]))
