"""Equalization decided by an earlier run: each stream's decision holds for itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from mrecg_onnx.machine import Kept
from mrecg_onnx.planning import ActivationPlan, LayerPlan
from mrecg_onnx.rewriting.equalization import Equalized
from mrecg_onnx.rewriting.streams import Stream

__all__ = ["recalled_scales"]

_NUMBERS = ("alpha", "spread", "error_before", "error_after")


def recalled_scales(
    kept: Kept,
    streams: Sequence[Stream],
    quantizers: Sequence[ActivationPlan],
    layers: Sequence[LayerPlan],
    choose: Callable[[list[Stream]], list[Equalized]],
) -> list[Equalized]:
    """The decision for every stream, as :func:`~mrecg_onnx.rewriting.choose_scales` makes it, kept ones where they hold.

    A decision depends on the float network and its images (``kept`` knows them), on the widths of the stream's own tensors, and
    where weights take part (``layers`` are given), on those of its readers.

    Args:
        kept: decisions of earlier runs.
        streams: from :func:`~mrecg_onnx.rewriting.find_streams`.
        quantizers: activation quantizers with their widths.
        layers: as for :func:`~mrecg_onnx.rewriting.choose_scales`.
        choose: decides on some of the streams.
    """
    bits = {plan.name: plan.bits for plan in quantizers}
    known = {layer.name: layer for layer in layers}
    judged = {s.name: s for s in streams if any(name in bits for name in s.tensors)}

    def restored(name: str, plain: Any) -> Equalized:
        return _restored(judged[name], plain)

    wanted = {
        name: {
            "stream": asdict(stream),
            "bits": {tensor: bits[tensor] for tensor in stream.tensors if tensor in bits},
            "weights": {reader: _rounded(known[reader]) for reader in stream.consumers if reader in known},
        }
        for name, stream in judged.items()
    }
    made = kept.recall(
        "equalization",
        wanted,
        lambda names: {entry.stream.name: entry for entry in choose([judged[name] for name in names])},
        plain=_plain,
        restored=restored,
    )
    return list(made.values())


def _rounded(layer: LayerPlan) -> list[Any]:
    """What the rounding of a layer's weight depends on beside its values."""
    return [layer.wbits, layer.axis, layer.groups, layer.excluded]


def _plain(entry: Equalized) -> dict[str, Any]:
    return {**{name: getattr(entry, name) for name in _NUMBERS}, "scale": entry.scale, "bounded": entry.bounded}


def _restored(stream: Stream, plain: Any) -> Equalized:
    scale, bounded = tuple(plain["scale"]), plain["bounded"]
    numbers = {name: plain[name] for name in _NUMBERS}
    if len(scale) != stream.channels or not all(isinstance(s, float) and 0.0 < s < math.inf for s in scale):
        raise ValueError("scales of another stream")
    if not all(isinstance(x, float | int) for x in numbers.values()) or not isinstance(bounded, bool):
        raise ValueError("no decision")
    return Equalized(stream, scale=scale, bounded=bounded, **numbers)
