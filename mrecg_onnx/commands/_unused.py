"""Options that have no effect beside the others that were given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrecg_onnx.data import ZEROQ
from mrecg_onnx.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mrecg_onnx.settings import Settings

__all__ = ["unused_options"]


def unused_options(settings: Settings, given: Sequence[str], calib: str | Path | None = None) -> list[str]:
    """A sentence for each option among ``given`` that the other choices leave without a use."""
    if calib == ZEROQ:
        given = [name for name in given if name != "batch_size"]  # images are made in batches, whatever the method
    method = METHODS[settings.method]
    scheme_only = {"selection", "merges", "penalty", "alpha"}
    idle: list[tuple[str, set[str]]] = []
    if calib is not None and calib != ZEROQ:
        idle.append((f"--calib {calib}", {"zeroq_iters"}))
    if not method.merge:
        idle.append((f"--method {settings.method}", {"base", "scheme", "joint_iters"} | scheme_only))
    elif settings.scheme == "none":
        idle.append((f"--scheme {settings.scheme}", {"joint_iters"} | scheme_only))
    elif settings.scheme not in {"loss", "modcap"}:
        idle.append((f"--scheme {settings.scheme}", scheme_only))
    elif settings.selection == "peak":
        idle.append((f"--selection {settings.selection}", {"penalty"}))
    if method.granularity == "none":
        learning = {"iters", "stop", "window", "drop", "compile", "rounding", "anneal", "loss"}
        if not settings.finish:  # where the network is learned together it takes these
            learning |= {"preset", "batch_size"} | (set() if settings.bias_correction else {"augment"})
        idle.append((f"--method {settings.method}", learning))
    elif method.solver != "gradient":
        learning = {"iters", "stop", "batch_size", "window", "drop", "compile", "rounding", "anneal", "loss"}
        finishing = {"iters", "batch_size"} if settings.finish is None else {"batch_size"} if settings.finish else set()
        idle.append((f"--method {settings.method}", learning - finishing))
    elif method.keep_quantized is None:
        idle.append((f"--method {settings.method}", {"drop"}))
    if method.granularity != "none" and method.solver == "gradient" and _rounding(settings) != "adaround":
        idle.append((f"--rounding {_rounding(settings)}", {"anneal"}))
    idle += _idle_choices(settings)
    if settings.range != "percentile":
        idle.append((f"--range {settings.range}", {"percentile"}))
    if not method.allocate:
        idle.append((f"--method {settings.method}", {"channel_bits"}))
    if not method.joint_steps:
        idle.append((f"--method {settings.method}", {"lapq_evaluations", "lapq_images"}))
    return [
        f"--{name.replace('_', '-')} has no effect {choice if choice.startswith('without ') else f'with {choice}'}"
        for choice, names in idle
        for name in given
        if name in names
    ]


def _idle_choices(settings: Settings) -> list[tuple[str, set[str]]]:
    budgets = [n for n in ("size_budget", "avg_wbits", "max_drop") if getattr(settings, n) is not None]
    found = [(f"--{name.replace('_', '-')}", {"wbits"}) for name in budgets]
    if "max_drop" not in budgets:
        found.append(("without --max-drop or --report", {"data", "labels", "metric"}))
    if settings.equalize == "off":
        found.append(("--equalize off", {"relu6"}))
    return found


def _rounding(settings: Settings) -> str:
    return METHODS[settings.method].rounding if settings.rounding == "auto" else settings.rounding
