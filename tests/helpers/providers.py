"""Providers that are not there: what another one would be asked runs on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrecg_onnx.running import kernel_counts, sessions

if TYPE_CHECKING:
    import pytest


def all_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device opens as ONNX Runtime does where it registers the provider and gives it no node."""
    on_device = sessions.open_on_device
    for module in (sessions, kernel_counts):
        monkeypatch.setattr(module, "open_on_device", lambda model, options, _device: on_device(model, options, "cpu"))
