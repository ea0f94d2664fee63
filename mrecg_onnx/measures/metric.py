"""What outputs are worth: a metric of the user's own, or a ready one, called safely on the outputs of a model.

A metric is a function ``(outputs, targets) -> number``, called once with the outputs for all images, or an object with
``update(outputs, targets)``, called for every batch, and ``compute()``, as those of torchmetrics. What it is given:

* outputs: an array ``[N, ...]`` where one output is looked at, else a dict of arrays by the outputs' names; of outputs that have
  as many rows as are found (NonMaxSuppression) a list of arrays, one an image, where these are of different sizes;
* targets: what the data hold for these images, in their order: numbers and arrays of one shape as an array ``[N, ...]``, anything
  else as a list; None where the data have none.

A module of torch (all metrics of torchmetrics are) is given tensors in place of arrays.
"""

from __future__ import annotations

import copy
import functools
import math
import numbers
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import psutil

from mrecg_onnx.converters.errors import DataError, MetricError, MrecgError, SettingsError, first_line
from mrecg_onnx.converters.text import with_article
from mrecg_onnx.machine import byte_size, figure, points

if TYPE_CHECKING:
    from mrecg_onnx.machine import Workers

__all__ = ["Accumulating", "Metric", "Scorer"]

Array: TypeAlias = npt.NDArray[Any]
_LAMBDA = "<lambda>"


@runtime_checkable
class Accumulating(Protocol):
    """A metric that is told of one batch after the other, as those of torchmetrics; each model has a copy of its own."""

    def update(self, outputs: Any, targets: Any, /) -> Any:
        """Take in a batch."""

    def compute(self) -> Any:
        """The number for all batches since the last ``reset``."""


@dataclass(frozen=True)
class Metric:
    """A metric with what a call cannot tell of it.

    Attributes:
        score: a function ``(outputs, targets) -> number``, an object with ``update`` and ``compute``, or a class of such objects
            (:mod:`mrecg_onnx.measures.metric`).
        name: how tables and messages call it; the function's or the class's own name by default.
        lower_is_better: it counts errors. By default what an attribute ``higher_is_better`` of ``score`` says, else False.
        percent: it is a share, 0 to 1, shown in percent, and a drop counts in points of percent.
        key: the entry to take where ``compute`` gives a dict.
        needs_targets: it cannot do without targets: data that have none are refused before anything is run.
        spec: what names it where it came by name, as ``--metric`` takes it; None for one from memory.

    Raises:
        SettingsError: ``score`` is no metric.
    """

    score: Callable[[Any, Any], Any] | Accumulating | type[Accumulating]
    name: str = ""
    lower_is_better: bool | None = None
    percent: bool = False
    key: str | None = None
    needs_targets: bool = False
    spec: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        score = self.score
        if isinstance(score, Metric):
            raise SettingsError("a Metric of a Metric: give the function itself, or the Metric as it is")
        if not callable(score) and not isinstance(score, Accumulating):
            raise SettingsError(
                f"metric: {with_article(type(score).__name__)} is no metric: give a function (outputs, targets) -> number, or an "
                "object with update(outputs, targets) and compute()"
            )
        if not self.name:
            object.__setattr__(self, "name", _name_of(score))
        if self.lower_is_better is None:
            object.__setattr__(self, "lower_is_better", getattr(score, "higher_is_better", None) is False)

    def to_json(self) -> dict[str, Any]:
        """What it is, without the function."""
        return {"name": self.name, "lower_is_better": bool(self.lower_is_better), "percent": self.percent}

    @property
    def called(self) -> str:
        """How messages call it: a lambda has no name, but a place."""
        score = _unwrapped(self.score)
        code = getattr(score, "__code__", None)
        if code is None or score.__name__ != _LAMBDA or self.name != _name_of(score):
            return f"metric {self.name}"
        return f"metric {_LAMBDA} ({Path(code.co_filename).name}:{code.co_firstlineno})"

    @property
    def unit(self) -> str:
        """What a drop is counted in."""
        return f"points of {self.name}" if self.percent else self.name

    def loss(self, before: float, after: float) -> float:
        """How much worse ``after`` is, in the metric's own unit; below 0 where it is better."""
        return after - before if self.lower_is_better else before - after

    def drop(self, before: float, after: float) -> float:
        """The same as people count it: shares in points."""
        return self.loss(before, after) * (100.0 if self.percent else 1.0)

    def text(self, value: float, beside: Iterable[float | None] = ()) -> str:
        """``value`` for people; those that stand ``beside`` it have as many digits."""
        return f"{value:.2%}" if self.percent else figure(value, [x for x in beside if x is not None])

    def change(self, before: float, after: float) -> str:
        """What became of it, for people."""
        # Sums of the same figures in another order differ by their last digits.
        change = 0.0 if math.isclose(before, after, rel_tol=1e-9) else after - before
        return points(change) if self.percent else figure(change, (before, after), 3, "+")


def _unwrapped(score: Any) -> Any:
    while isinstance(score, functools.partial):
        score = score.func
    return score


def _name_of(score: object) -> str:
    score = _unwrapped(score)
    name = getattr(score, "__name__", None) or type(score).__name__
    return "metric" if name == _LAMBDA else str(name)


class Scorer:
    """What one model is worth, while its outputs go by.

    Args:
        metric: what is asked.
        model: how messages call the model.
        total: images there will be in all, for a bound on what is held.
        held: keep all batches, also for a metric that takes them one by one: shares of other processes come in between.
    """

    def __init__(self, metric: Metric, model: str, total: int, *, held: bool = False) -> None:
        self.metric, self.model, self._total = metric, model, total
        self._state: Any = None
        score = metric.score
        if isinstance(score, type):
            self._state = self._asked(cast("Callable[[], Any]", score))
        elif _accumulates(score):
            self._state = self._asked(lambda: copy.deepcopy(score))
            if callable(getattr(self._state, "reset", None)):
                self._asked(self._state.reset)
        if isinstance(score, type) and not _accumulates(self._state):
            raise MetricError(f"{metric.called}: its objects have no update(outputs, targets) and compute()")
        self._by_name = bool(getattr(score, "by_name", False))  # ready ones say which output is wrong
        self._held = held or self._state is None
        self._parts: list[tuple[npt.NDArray[np.int64], Any, list[Any] | None]] = []
        self._without_targets = False

    def add(self, indices: npt.NDArray[np.int64], outputs: Mapping[str, Any], targets: list[Any] | None) -> None:
        """Take in a batch.

        Args:
            indices: where its images lie in the data.
            outputs: by name, ``[rows, ...]``.
            targets: one for each row; None where there are none.

        Raises:
            DataError: the metric needs targets, and there are none.
            MetricError: the metric fails on it, or all outputs together would not fit into memory.
        """
        given = next(iter(outputs.values())) if len(outputs) == 1 and not self._by_name else dict(outputs)
        self._without_targets = targets is None
        if targets is None and self.metric.needs_targets:
            raise DataError(
                f"{self.metric.called} holds outputs against targets, and the data have none: give --labels, or pairs "
                "(inputs, target)"
            )
        if not self._held:
            self._update(given, targets)
            return
        if not self._parts:
            self._check_room(outputs, len(indices))
        self._parts.append((np.asarray(indices), given, targets))

    def _check_room(self, outputs: Mapping[str, Any], rows: int) -> None:
        size = sum(x.nbytes for x in outputs.values()) // max(rows, 1) * self._total
        free = psutil.virtual_memory().available
        if 2 * size > free:  # once as they come, once put together
            raise MetricError(
                f"{self.metric.called} is a function of all outputs, which take {byte_size(size)} for "
                f"{self._total} images ({byte_size(free)} are free): give an object with update() and "
                "compute(), or fewer images"
            )

    def join(self, workers: Workers) -> None:
        """Put together what all processes saw, in the data's order."""
        parts = [entry for found in workers.gather(self._parts) for entry in found]
        if workers.size > 1:
            rows = [(int(i), part, row) for part, (indices, _, _) in enumerate(parts) for row, i in enumerate(indices)]
            order = [(part, row) for _, part, row in sorted(rows)]
            targets = None if any(t is None for _, _, t in parts) else [parts[p][2][r] for p, r in order]  # type: ignore[index]
            given = _put_together([_taken(parts[part][1], row) for part, row in order])
            parts = [(np.arange(len(order)), given, targets)]
        self._parts = parts

    def value(self) -> float:
        """The number.

        Raises:
            MetricError: the metric fails, or gives no finite number.
        """
        metric = self.metric
        if self._state is None:
            given = _put_together([part for _, part, _ in self._parts])
            lists = [targets for _, _, targets in self._parts]
            targets = None if any(t is None for t in lists) else [one for t in lists for one in t or ()]
            function = cast("Callable[[Any, Any], Any]", metric.score)
            arguments = self._arguments(function, given, targets)
            return self._number(self._asked(lambda: function(*arguments)))
        for _, given, targets in self._parts:
            self._update(given, targets)
        return self._number(self._asked(self._state.compute))

    def _update(self, given: Any, targets: list[Any] | None) -> None:
        arguments = self._arguments(self._state, given, targets)
        self._asked(lambda: self._state.update(*arguments))

    def _arguments(self, score: object, given: Any, targets: list[Any] | None) -> tuple[Any, Any]:
        pair = given, None if targets is None else _stacked(targets)
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(score, torch.nn.Module):
            return pair
        return _tensors(pair[0], torch), _tensors(pair[1], torch)

    def _asked(self, call: Callable[[], Any]) -> Any:
        """What the metric says.

        Raises:
            MetricError: it raises something.
        """
        try:
            return call()
        except MrecgError:
            raise
        except Exception as error:
            hint = "; the data have no targets" if self._without_targets else ""
            said = f"{type(error).__name__}: {first_line(error)}{_where(error)}{hint}"
            raise MetricError(f"{self.metric.called} fails on {self.model}: {said}") from error

    def _number(self, value: Any) -> float:
        metric, said = self.metric, f"{self.metric.called} of {self.model}"
        if isinstance(value, Mapping):
            if metric.key is None or metric.key not in value:
                names = ", ".join(str(name) for name in list(value)[:8])
                raise MetricError(f"{said} is a dict of {names}: name the entry to take, Metric(..., key='...')")
            value = value[metric.key]
        if hasattr(value, "item") and math.prod(getattr(value, "shape", ())) == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            shape = list(value.shape) if hasattr(value, "shape") else ""
            raise MetricError(
                f"{said} is no number but {with_article(type(value).__name__)}{f' {shape}' if shape else ''}: return one"
            )
        if not math.isfinite(value):
            raise MetricError(f"{said} is {float(value)}: it has to be a finite number")
        return float(value)


def _accumulates(score: object) -> bool:
    return callable(getattr(score, "update", None)) and callable(getattr(score, "compute", None))


def _where(error: BaseException) -> str:
    """Where in the metric it happened: the first place behind this file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    return f" ({Path(frames[0].filename).name}, line {frames[0].lineno})" if frames else ""


def _put_together(parts: Sequence[Any]) -> Any:
    """Batches as one: arrays along their first axis, those of a dict by name; a list where images have different sizes."""
    if isinstance(parts[0], Mapping):
        return {name: _put_together([part[name] for part in parts]) for name in parts[0]}
    if len({part.shape[1:] for part in parts}) > 1:
        return [one for part in parts for one in part]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _taken(given: Any, row: int) -> Any:
    """One row of a batch, as a batch."""
    if isinstance(given, Mapping):
        return {name: x[row : row + 1] for name, x in given.items()}
    return given[row : row + 1]


def _stacked(targets: list[Any]) -> Any:
    """Numbers and arrays of one shape as an array, anything else as it is."""
    plain = all(isinstance(t, numbers.Number | np.ndarray | np.generic) or _is_tensor(t) for t in targets)
    if not plain or not targets:
        return targets
    arrays = [np.asarray(t.detach().cpu() if _is_tensor(t) else t) for t in targets]
    return np.stack(arrays) if len({a.shape for a in arrays}) == 1 else targets


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _tensors(value: Any, torch: Any) -> Any:
    """Arrays as tensors, however deep they lie in dicts and lists."""
    if isinstance(value, np.ndarray | np.generic):
        return torch.as_tensor(np.ascontiguousarray(value)) if np.asarray(value).dtype.kind in "fiub" else value
    if isinstance(value, Mapping):
        return {name: _tensors(one, torch) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_tensors(one, torch) for one in value]
    return value
