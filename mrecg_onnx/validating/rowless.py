"""Outputs that have no row for each image, as those of NonMaxSuppression: run image by image, and counted by a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.converters.text import quoted
from mrecg_onnx.planning import outputs_without_rows
from mrecg_onnx.running import fixed_batch, read_graph, run_outputs, run_padded

if TYPE_CHECKING:
    import onnxruntime as ort

    from mrecg_onnx.measures import Metric
    from mrecg_onnx.running import Model

__all__ = ["Rowless", "require_metric"]


@dataclass(frozen=True)
class Rowless:
    """How a model is run that may have such outputs.

    Attributes:
        names: of the outputs without a row an image that are looked at.
        others: of those with one.
        there: the model has some, looked at or not.
    """

    names: tuple[str, ...]
    others: tuple[str, ...]
    there: bool

    @classmethod
    def of(cls, model: Model, chosen: Sequence[str], metric: Metric | None, where: str) -> Rowless:
        """Of the float model, of whose outputs those that are ``chosen`` are compared.

        Raises:
            SettingsError: none of them can be compared without a metric, and there is none.
        """
        lone = set(outputs_without_rows(read_graph(model)))
        found = cls(
            tuple(name for name in chosen if name in lone),
            tuple(name for name in chosen if name not in lone),
            bool(lone),
        )
        if metric is None and not found.others:
            raise SettingsError(_said(where, found.names[0]))
        return found

    def batch(self, wanted: int) -> int:
        """Images that are run at a time."""
        return 1 if self.there else wanted

    def run(self, session: ort.InferenceSession, feeds: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Outputs by name; those without a row an image belong to the one image that is fed.

        Raises:
            ModelError: the model takes several at once, or ONNX Runtime fails on it.
        """
        if not self.there:
            return run_padded(session, feeds)
        if (size := fixed_batch(session) or 1) > 1:
            raise ModelError(
                f"{where} takes {size} images at once, and does not say whose its outputs are: export it with a batch of 1"
            )
        return run_outputs(session, feeds)

    def scored(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs of one run as a metric is given them, a row for each image."""
        return {name: value[None] if name in self.names else value for name, value in made.items()}


def require_metric(model: Model, metric: Metric | None, where: str) -> None:
    """Refuse, before any work, a model that nothing but a metric could compare, without one.

    Raises:
        SettingsError: no output has a row for each image.
    """
    graph = read_graph(model)
    if metric is None:
        Rowless.of(graph, [value.name for value in graph.graph.output], None, where)


def _said(where: str, name: str) -> str:
    return (
        f"{where}: output {quoted(name)} has as many rows as are found, not one an image: there is no accuracy, agreement or "
        "noise of it; say with --metric what it is worth (mAP, or a function of your own)"
    )
