"""Where a result comes from: what its file says of how it was made, and what makes two runs the same.

A file says what was used, however it was asked for, and nothing of where: runs that compute the same write the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from mrecg_onnx import __version__
from mrecg_onnx.converters.metadata_keys import (
    CALIBRATION_KEY,
    INPUT_RANGES_KEY,
    PREPROCESS_KEY,
    PROTECTED_KEY,
    SETTINGS_KEY,
    SOURCE_KEY,
    UNITS_KEY,
    VERSION_KEY,
)
from mrecg_onnx.converters.save import digest
from mrecg_onnx.planning import Plan
from mrecg_onnx.preparation import Prepared
from mrecg_onnx.quantizers import kernels_compiled
from mrecg_onnx.settings import Settings
from mrecg_onnx.targets import load_target
from mrecg_onnx.validating import ranges_entry, source_sha256

__all__ = ["identity", "metadata"]


def identity(ready: Prepared, protected: tuple[str, ...]) -> dict[str, Any]:
    """What has to be the same for finished units of an earlier run to be used.

    Decisions that a last digit may tip are in it, too: other threads or another device sum in another order.
    """
    # Units do not depend on what follows them; its outcome is kept by the number of its steps.
    free = {"device", "threads", "compile", "finish"}
    settings = {k: v for k, v in _kept_settings(ready.settings).items() if k not in free}
    # What files say, not where they lie.
    if "target" in settings:
        settings["target"] = dataclasses.asdict(load_target(ready.settings.target))
    if ready.settings.scheme_file:
        settings["scheme"] = [list(group) for group in ready.plan.merges]
    return {
        "version": __version__,
        "model": digest(ready.original),
        "images": ready.image_digest(),
        "equalized": {e.stream.name: (e.alpha, e.bounded) for e in ready.equalized},
        "absorbed": [a.tensor for a in ready.absorbed if a.used],
        "protected": list(protected),
        **settings,
    }


def metadata(
    ready: Prepared, plan: Plan, protected: tuple[str, ...] = (), settings: Settings | None = None
) -> dict[str, str]:
    """Entries of metadata_props: who made the file, how, and what ``validate`` needs to check it."""
    entries = {
        VERSION_KEY: __version__,
        SETTINGS_KEY: json.dumps(_used_settings(ready, settings or ready.settings), separators=(",", ":")),
        UNITS_KEY: json.dumps([list(u.layers) for u in plan.merged_units()], separators=(",", ":")),
        PROTECTED_KEY: json.dumps(list(protected)),
        INPUT_RANGES_KEY: ranges_entry(ready.data),
    }
    dataset = ready.dataset
    if dataset.preprocess is not None:
        entries[PREPROCESS_KEY] = json.dumps(dataset.preprocess.to_json(), separators=(",", ":"))
    if dataset.origin is not None:
        entries[CALIBRATION_KEY] = json.dumps(dataset.origin, separators=(",", ":"))
    source = source_sha256(ready.source) if isinstance(ready.source, str | Path) else None
    if source is not None:
        entries[SOURCE_KEY] = source
    return entries


def _used_settings(ready: Prepared, settings: Settings) -> dict[str, Any]:
    """Settings as they were used: threads, device and kernels may have been left to the machine, or to the environment."""
    used = {
        "device": ready.network.device.type,
        "threads": torch.get_num_threads(),
        "compile": "on" if kernels_compiled() else "off",
    }
    return _kept_settings(settings) | used


def _kept_settings(settings: Settings) -> dict[str, Any]:
    """Settings for the metadata.

    Container and target, which ``convert`` changes, have entries of their own; memory and time limit change no result. A file
    that was given goes by its name: a target is called as it is, and the units of a scheme have an entry of their own.
    """
    left_out = {"container", "memory", "timeout"} | ({"target"} if settings.target == "ort" else set())
    named = {"target": load_target(settings.target).name} | ({"scheme": "file"} if settings.scheme_file else {})
    return {name: value for name, value in (settings.to_json() | named).items() if name not in left_out}
