"""Whether two models and the data belong together, and which of their outputs are compared."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from mrecg_onnx.converters.errors import DataError, ModelError, SettingsError
from mrecg_onnx.converters.metadata_keys import SOURCE_KEY, VERSION_KEY
from mrecg_onnx.data import Dataset
from mrecg_onnx.validating.metadata import metadata_of, source_sha256

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnxruntime as ort

    from mrecg_onnx.data import InputSpec
    from mrecg_onnx.running import Model

__all__ = ["check_feeds", "check_interface", "check_source", "chosen_outputs"]


def chosen_outputs(session: ort.InferenceSession, wanted: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Names of the outputs to compare, in the model's order.

    Raises:
        SettingsError: one is not there, or none is named.
    """
    names = [node.name for node in session.get_outputs()]
    if wanted is None:
        return tuple(names)
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not wanted:
        raise SettingsError(f"no output is named: {where} has {', '.join(names)}")
    for name in wanted:
        if name not in names:
            near = get_close_matches(name, names, n=3, cutoff=0.4) or names
            raise SettingsError(f"--outputs {name}: {where} has no such output; did you mean {', '.join(near)}?")
    return tuple(name for name in names if name in set(wanted))


def check_source(fp32: Model, sessions: Mapping[str, ort.InferenceSession], names: tuple[str, str]) -> None:
    """Refuse a quantized file that says it was made from another float model; ``sessions`` are "fp32" and "quantized".

    Raises:
        ModelError: it was, or the float model is a quantized one.
    """
    if {SOURCE_KEY, VERSION_KEY} & set(metadata_of(sessions["fp32"])):
        raise ModelError(f"{names[0]} is a quantized model: give the FP32 model first and the quantized one second")
    source, actual = metadata_of(sessions["quantized"]).get(SOURCE_KEY), source_sha256(fp32)
    if source is not None and actual is not None and source != actual:
        raise ModelError(
            f"{names[1]} was made from another model than {names[0]} "
            f"(SHA-256 {source[:12]}..., this file's is {actual[:12]}...): give the one it was made from"
        )


def check_interface(sessions: Mapping[str, ort.InferenceSession], names: tuple[str, str]) -> None:
    """Refuse two models of different inputs or outputs; free sizes fit any.

    Raises:
        ModelError: they differ.
    """
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


def check_feeds(dataset: Dataset, specs: list[InputSpec]) -> None:
    """Refuse an open data set that feeds other inputs than ``specs``.

    Raises:
        DataError: it does.
    """
    if {spec.name for spec in dataset.inputs} != {spec.name for spec in specs}:
        have, want = (" and ".join(repr(spec.name) for spec in some) for some in (dataset.inputs, specs))
        raise DataError(f"the data feeds {have}, the models take {want}")
