"""Rewriting a quantized file for another container, without calibrating again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from mrecg_onnx.containers import contained, container_of
from mrecg_onnx.converters import check_writable, load_model, save_model
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.runtime import describe, input_specs, open_session
from mrecg_onnx.verification import verify_container

__all__ = ["Conversion", "convert"]

#: Items of noise on which both files are compared.
ROWS = 2


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` made.

    Attributes:
        model: the converted model.
        output: where it was written, None if it was not.
        before: container of the source.
        container: container of the result.
        size_before: bytes of the source.
        size: bytes of the result.
        compared: whether both were run and gave the same; False where the input's sizes are free.
        fused: ops that ONNX Runtime runs at its default level, by type.
        notes: what the container could not hold in low-bit types.
    """

    model: onnx.ModelProto
    output: Path | None
    before: str
    container: str
    size_before: int
    size: int
    compared: bool
    fused: dict[str, int]
    notes: tuple[str, ...]


def convert(
    model: onnx.ModelProto | str | Path, container: str | None = None, *, output: str | Path | None = None
) -> Conversion:
    """Rewrite a file of :func:`mrecg_onnx.quantize`.

    Args:
        model: the quantized model; not changed.
        container: a row of :data:`mrecg_onnx.containers.CONTAINERS`; None keeps the one it has.
        output: where to write the result; it appears there whole or not at all.

    Returns:
        The converted model, compared with the source on ONNX Runtime, bit for bit, graph run as written.

    Raises:
        SettingsError: ``container`` is unknown, or ``output`` is the model itself.
        ModelError: ``model`` cannot be read or was not written by :func:`mrecg_onnx.quantize`.
        ExportError: the result cannot be written, or the runtime refuses it.
    """
    where = describe(model)
    source = load_model(model)
    before = container_of(source, where)
    if output is not None:
        if isinstance(model, str | Path) and Path(output).resolve() == Path(model).resolve():
            raise SettingsError(f"--output {output} is the model itself: choose another file")
        check_writable(output)
    held = contained(source, container or before, where)
    feeds = _noise(source)
    fused = verify_container(source, held, feeds)
    if output is not None:
        save_model(held.model, output)
    return Conversion(
        model=held.model,
        output=Path(output) if output is not None else None,
        before=before,
        container=container or before,
        size_before=source.ByteSize(),
        size=held.model.ByteSize(),
        compared=feeds is not None,
        fused=fused,
        notes=held.notes,
    )


def _noise(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]] | None:
    """Normal random inputs, None where sizes other than the batch are free."""
    random, feeds = np.random.default_rng(0), {}
    for spec in input_specs(open_session(model, level="off")):
        sizes = [ROWS if i == 0 and size is None else size for i, size in enumerate(spec.shape)]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        feeds[spec.name] = random.standard_normal(known).astype(spec.dtype)
    return feeds
