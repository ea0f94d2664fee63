"""Rewriting a quantized file for another target or container, without calibrating again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import onnx

from mrecg_onnx.checking import verify_container
from mrecg_onnx.converters import check_writable, load_model, save_model
from mrecg_onnx.converters.calls import takes
from mrecg_onnx.converters.errors import ModelError, SettingsError
from mrecg_onnx.converters.kinds import require_kind
from mrecg_onnx.converters.made import Made, model_of
from mrecg_onnx.converters.results import Printed
from mrecg_onnx.litert import LiteRTFile, to_litert
from mrecg_onnx.machine import byte_size
from mrecg_onnx.planning import outputs_without_rows
from mrecg_onnx.running import Opened, describe, fixed_batch, input_specs, noise, open_session, open_with
from mrecg_onnx.targets import TARGET_NAMES, Target, load_target
from mrecg_onnx.writing import as_written, contained, container_of, fix_batch, remarks, retarget, runnable, target_of

__all__ = ["Conversion", "convert"]

#: Items of noise on which both files are compared.
ROWS = 4
#: What a result becomes.
FORMS = ("onnx", "tflite")


@dataclass(frozen=True, repr=False)
class Conversion(Printed):
    """What :func:`convert` made.

    Attributes:
        model: the converted model.
        output: where it was written, None if it was not.
        before: target and container of the source.
        after: target and container of the result.
        size_before: bytes of the source.
        size: bytes of the result.
        compared: whether both were run and gave the same; False where the input's sizes are free.
        opened: what the target's runtime made of the result.
        notes: what the container could not hold in low-bit types, and what the target takes but what is behind it does not want.
    """

    model: onnx.ModelProto
    output: Path | None
    before: tuple[str, str]
    after: tuple[str, str]
    size_before: int
    size: int
    compared: bool
    opened: Opened
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Where it is, what it was and is, both sizes, what the target's runtime made of it, and notes."""
        forms = " to ".join(f"{target}, container {container}" for target, container in (self.before, self.after))
        sizes = f"{byte_size(self.size)}, before {byte_size(self.size_before)}"
        return "\n".join([f"{self.output or 'not written'}: {forms}; {sizes}", self.opened.line(), *self.notes])

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary without the model itself."""
        forms = zip(("before", "after"), (self.before, self.after), (self.size_before, self.size), strict=True)
        return {
            "output": str(self.output) if self.output else None,
            **{when: {"target": form[0], "container": form[1], "size_bytes": size} for when, form, size in forms},
            "compared": self.compared,
            "opened": self.opened.to_json(),
            "notes": list(self.notes),
        }


@overload
def convert(
    model: onnx.ModelProto | str | Path | Made,
    container: str | None = None,
    target: str | None = None,
    *,
    to: Literal["onnx"] = "onnx",
    batch: int | None = None,
    output: str | Path | None = None,
) -> Conversion: ...
@overload
def convert(
    model: onnx.ModelProto | str | Path | Made,
    container: str | None = None,
    target: str | None = None,
    *,
    to: Literal["tflite"],
    batch: int | None = None,
    output: str | Path | None = None,
) -> LiteRTFile: ...
@takes()
def convert(
    model: onnx.ModelProto | str | Path | Made,
    container: str | None = None,
    target: str | None = None,
    *,
    to: str = "onnx",
    batch: int | None = None,
    output: str | Path | None = None,
) -> Conversion | LiteRTFile:
    """Rewrite a file of :func:`mrecg_onnx.quantize`.

    Args:
        model: the quantized model, or what :func:`mrecg_onnx.quantize` returned; not changed. Only one that was written for the
            target ``ort`` can get another one.
        container: a row of :data:`mrecg_onnx.writing.containers.CONTAINERS`; None keeps the one it has where the target
            allows it.
        target: one of :data:`mrecg_onnx.targets.target.TARGET_NAMES` or the path of a file of rules; None keeps the one it has.
        to: "onnx", or "tflite": a flatbuffer of LiteRT (:func:`mrecg_onnx.to_litert`), which is a target of its own.
        batch: the one batch size of the result, for runtimes that take no free one; None leaves it as it is.
        output: where to write the result; it appears there whole or not at all.

    Returns:
        The converted model, or the flatbuffer, compared with the source on ONNX Runtime, bit for bit, graph run as written.

    Raises:
        SettingsError: ``container`` or ``target`` is unknown or excludes what the file has, ``batch`` is below 1, or ``output``
            is what is read.
        ModelError: ``model`` cannot be read or was not written by :func:`mrecg_onnx.quantize`, is for another target, or has
            another fixed batch than ``batch``, or none.
        ExportError: the result cannot be written, or the runtime refuses it.
    """
    if to not in FORMS:
        raise SettingsError.among(f"convert makes no '{to}'", FORMS, to)
    if to == "tflite":
        if target is not None or batch is not None:
            raise SettingsError(
                f"tflite is a target of its own: leave out {'target' if target is not None else 'batch'}"
            )
        return to_litert(model, container or "int8", output=output)
    model = model_of(model)
    where = describe(model)
    source = load_model(model)
    before = target_of(source, where), container_of(source, where)
    rules = _rules(target, before[0], where)
    wanted = container or (before[1] if before[1] in rules.containers else "int8")
    if wanted not in rules.containers:
        raise SettingsError.among(f"target {rules.name} has no container '{wanted}'", rules.containers)
    if output is not None:
        require_kind(output, "model", "output")
        check_writable(output)
    plain = source
    with as_written(where):
        ran = runnable(source)
        feeds = _noise(model if ran is source else ran, batch)
        if rules.name != before[0]:
            plain = retarget(contained(source, "int8", where).model, rules, where)
        if batch is not None:
            plain = fix_batch(plain, batch, where)
        held = contained(plain, wanted, where, rules.opset[1], zero_points=rules.typed_weights == "any")
    verify_container(source, held, feeds)
    # Outputs without a row an image are compared where they are cut off; the runtime runs the whole.
    seen = None if outputs_without_rows(source) else feeds
    opened = open_with(rules, held.model, seen, written=runnable(held.model))
    if output is not None:
        save_model(held.model, output)
    return Conversion(
        model=held.model,
        output=Path(output) if output is not None else None,
        before=before,
        after=(rules.name, wanted),
        size_before=source.ByteSize(),
        size=held.model.ByteSize(),
        compared=feeds is not None,
        opened=opened,
        notes=(*held.notes, *remarks(runnable(held.model), rules)),
    )


def _rules(wanted: str | None, has: str, where: str) -> Target:
    """The rules of the result."""
    if wanted is not None:
        rules = load_target(wanted)
        if has not in {"ort", rules.name}:
            raise ModelError(
                f"{where}: was written for target {has}; other targets are made from a file for ort: give that one"
            )
        return rules
    if has not in TARGET_NAMES:
        raise SettingsError(f"{where}: was written for target {has}: give its file of rules with --target")
    return load_target(has)


def _noise(model: onnx.ModelProto | str | Path, batch: int | None) -> dict[str, npt.NDArray[np.generic]] | None:
    """Normal random inputs, None where sizes other than the batch are free."""
    session = open_session(model, level="off")
    specs = input_specs(session)
    if any(size is None for spec in specs for size in spec.shape[1:]):
        return None
    return noise(specs, fixed_batch(session) or max(batch or ROWS, 1))
