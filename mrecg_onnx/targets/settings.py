"""Where the file runs and how it stores codes, as a user chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mrecg_onnx.converters.choices import OneOf, SettingsGroup
from mrecg_onnx.converters.errors import SettingsError
from mrecg_onnx.targets.target import CONTAINER_NAMES, load_target

__all__ = ["TargetSettings"]


@dataclass(frozen=True, kw_only=True)
class TargetSettings(SettingsGroup):
    """Form of the file.

    Attributes:
        target: where the file is meant to run: one of :data:`mrecg_onnx.targets.target.TARGET_NAMES`, or the path of a file
            of rules.
        container: how codes are stored, a row of :data:`mrecg_onnx.writing.containers.CONTAINERS`.
    """

    target: str = "ort"
    container: Annotated[str, OneOf(*CONTAINER_NAMES)] = "int8"

    def check(self) -> None:
        """The target exists and has the container."""
        super().check()
        rules = load_target(self.target)
        if self.container not in rules.containers:
            raise SettingsError.among(f"target {rules.name} has no container '{self.container}'", rules.containers)
