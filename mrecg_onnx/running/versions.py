"""Whether the installed ONNX Runtime is new enough for a file (:mod:`mrecg_onnx.targets.needed_versions`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnxruntime as ort

from mrecg_onnx.converters.errors import ModelError
from mrecg_onnx.converters.metadata_keys import CONTAINER_KEY
from mrecg_onnx.running.models import Model, describe, read_graph
from mrecg_onnx.targets import Requirement, requirements, stored_requirements, unmet

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["needed", "refuse_wrong", "slower_here", "wrong_here"]

PACKAGE = "onnxruntime"


def needed(model: Model) -> str | None:
    """Why the installed ONNX Runtime does not open ``model``: the line of what is too old for it, None where that is not it."""
    try:
        rows = requirements(read_graph(model))
    except ModelError:
        return None
    lines = [r.line(describe(model), ort.__version__) for r in _too_old(rows) if r.otherwise != "slower"]
    return lines[0] if lines else None


def refuse_wrong(model: Model, session: ort.InferenceSession) -> None:
    """Refuse an open model of which this version of ONNX Runtime computes something else at its default level.

    Raises:
        ModelError: it does.
    """
    wrong = wrong_here(model, session)
    if wrong:
        raise ModelError(wrong[0].line(describe(model), ort.__version__))


def wrong_here(model: Model, session: ort.InferenceSession) -> list[Requirement]:
    """What in an open model this version of ONNX Runtime computes wrong at its default settings."""
    return [row for row in _too_old(_rows(model, session)) if row.otherwise == "wrong values"]


def slower_here(model: Model) -> tuple[str, ...]:
    """A line where this version of ONNX Runtime runs a file of this package slower than a newer one."""
    graph = read_graph(model)
    stored = stored_requirements({entry.key: entry.value for entry in graph.metadata_props})
    slower = [row for row in _too_old(stored or ()) if row.otherwise == "slower"]
    return tuple(row.line(describe(model), ort.__version__) for row in slower)


def _too_old(rows: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
    return unmet(rows, PACKAGE, ort.__version__)


def _rows(model: Model, session: ort.InferenceSession) -> tuple[Requirement, ...]:
    """What the metadata say; where they say nothing, as in files of older versions, what the graph of another container does."""
    metadata: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    stored = stored_requirements(metadata)
    if stored is not None:
        return stored
    if CONTAINER_KEY not in metadata:
        return ()
    try:
        return requirements(read_graph(model))
    except ModelError:
        return ()
